"""An adapter's configuration as PEFT's own, with nothing in it that a stranger's file may abuse.

PEFT matches names of modules with Python's ``re``, which some expressions keep busy for years, and
makes tensors as large as a field says. Expressions become lists of names, and numbers have bounds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from ..messages import compose, tr
from ..untrusted.safe_regex import compile_matcher, is_plain
from .skeleton import LIBRARY_ERRORS

# Larger ones are of no training, and would fill the memory.
_LARGEST_NUMBER = 1 << 20
_ALL_LINEAR = "all-linear"
# Fields whose text is an expression for whole names of modules.
_EXPRESSIONS = ("target_modules", "exclude_modules", "feedforward_modules")
# What is merged by other code, or says nothing of a finished adapter.
_NOT_FOR_PEFT: Mapping[str, Any] = {
    "modules_to_save": None,
    "trainable_token_indices": None,
    "layer_replication": None,
    "bias": "none",
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "revision": None,
    "inference_mode": True,
    "progressbar": False,
}


def make_peft_config(
    path: Path, fields: Mapping[str, Any], modules: Sequence[str], harmless: Collection[str]
) -> Any:
    """PEFT's configuration of an adapter, for a model whose modules have these names.

    ``harmless`` are fields that change nothing, whatever they say. Raises ``AdapterError`` for
    fields that this PEFT does not know and that are set, for values that it refuses, and for
    expressions that cannot be matched in bounded time.
    """
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS

    kind = fields.get("peft_type", "LORA")
    known = {field.name for field in fields_of(CONFIGS[kind])}
    given = {name: value for name, value in fields.items() if name in known}
    _require_known(path, {n: v for n, v in fields.items() if n not in known and n not in harmless})
    _require_bounded(path, given)
    saved = [name for name in fields.get("modules_to_save") or () if isinstance(name, str)]
    given |= {name: value for name, value in _NOT_FOR_PEFT.items() if name in known}
    given |= _spell_out(path, given, modules)
    if "exclude_modules" in known and saved:
        inside = [name for name in modules if any(f".{s}." in f".{name}." for s in saved)]
        given["exclude_modules"] = [*(given.get("exclude_modules") or ()), *inside] or None
    try:
        return PeftConfig.from_peft_type(**{**given, "peft_type": kind})
    except LIBRARY_ERRORS as error:
        raise AdapterError(
            tr("PEFT refuses the adapter's configuration"),
            file=path,
            found=f"{type(error).__name__}: {error}"[:500],
            remedy=tr("take adapter_config.json from the run that trained the adapter"),
        ) from None


def _require_known(path: Path, unknown: Mapping[str, Any]) -> None:
    for name, value in unknown.items():
        if value:
            raise AdapterError(
                tr(
                    "the adapter configuration has a field that the installed PEFT does "
                    "not know and that is set, so it may change the arithmetic"
                ),
                file=path,
                found=f'"{name}": {value!r}'[:200],
                remedy=tr("pip install -U peft"),
            )


def _require_bounded(path: Path, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        is_seed = "seed" in name or name.endswith("_key")
        numbers = value.values() if isinstance(value, dict) else [value]
        largest = max((n for n in numbers if isinstance(n, int)), default=0)
        if not is_seed and largest > _LARGEST_NUMBER:
            raise AdapterError(
                tr("the adapter configuration has a number that no training had"),
                file=path,
                expected=tr(
                    '"{name}" up to {largest_number}', name=name, largest_number=_LARGEST_NUMBER
                ),
                found=largest,
                remedy=tr("take adapter_config.json from the run that trained the adapter"),
            )


def _spell_out(path: Path, given: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """The fields that hold expressions, with the names of the modules that these match."""
    changed: dict[str, Any] = {}
    for name in _EXPRESSIONS:
        value = given.get(name)
        if isinstance(value, str) and value.lower() != _ALL_LINEAR:
            changed[name] = _match(path, name, value, "(KEY)$", modules)
    for name, value in given.items():
        if name.endswith("_pattern") and isinstance(value, dict):
            changed[name] = {
                exact: number
                for key, number in value.items()
                for exact in (
                    [key] if is_plain(key) else _match(path, name, key, r"(.*\.)?(KEY)$", modules)
                )
            }
    layers = given.get("layers_pattern") or ()
    for pattern in [layers] if isinstance(layers, str) else layers:
        if not is_plain(str(pattern)):
            raise _refuse_expression(path, "layers_pattern", repr(pattern)[:200])
    return changed


def _match(path: Path, name: str, pattern: str, wrapped: str, modules: Iterable[str]) -> list[str]:
    try:
        matches = compile_matcher(pattern, wrapped)
    except (re.error, OverflowError, RecursionError) as error:
        found = compose("{text}: {error}", text=repr(pattern)[:150], error=str(error))
        raise _refuse_expression(path, name, found) from None
    return [module for module in modules if matches(module)]


def _refuse_expression(path: Path, name: str, found: str) -> AdapterError:
    return AdapterError(
        tr(
            "the adapter configuration has an expression for names of modules "
            "that is not matched here"
        ),
        file=path,
        expected=tr(
            '"{name}" with the names of modules, or a plain expression for them', name=name
        ),
        found=found,
        remedy=tr("write out the names of the modules"),
    )
