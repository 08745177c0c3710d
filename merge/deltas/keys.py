"""The tensor names of an adapter file: each is a part of some kind, or refused.

``X`` below is a module's name in the base model. Names of saved adapters and of raw training dicts
are read alike, since PEFT 0.2:

    base_model.model.X.lora_A.weight                       a part, as PEFT saves it
    base_model.model.X.lora_A.default.weight               in a raw dict, with the adapter's name
    base_model.model.X.weight                              a whole tensor
    base_model.model.X.modules_to_save[.default].weight    the trained copy of a whole module
    base_model.model.X.original_module.weight              the untrained one: never used
    base_model.model.X[.token_adapter].base_layer.weight   the base's own copy beside a delta
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import AdapterError
from ..layouts.llama import is_rotary_buffer
from ..layouts.names import without_wrappers
from ..messages import tr
from ..tensors.lazy import LazyTensor
from .kinds import HANDLED, PLAIN_KEY
from .peft_methods import find_method_of_tensor
from .refusals import find_key_refusal

_PREFIX = "base_model.model."
_TOKEN_ADAPTER = ".token_adapter"

PARTS = {part: re.compile(key) for kind in HANDLED for part, key in kind.keys.items()}
_PLAIN = re.compile(PLAIN_KEY)
# A plain name with one of these in it is a part whose name went wrong.
_RESERVED = re.compile(
    r"(^|\.)(lora_\w+|modules_to_save|original_module|base_layer|token_adapter)(\.|$)"
)
# Parts that are whole tensors; the others belong to a module.
_WHOLE = ("modules_to_save", "original_module", "base_layer", "plain")


@dataclass
class AdapterKeys:
    """Tensors of an adapter by what they are.

    Parts of a delta stand under their module's name, whole tensors under the tensor's own.
    """

    parts: dict[str, dict[str, LazyTensor]] = field(
        default_factory=lambda: {part: {} for part in (*PARTS, "plain")}
    )
    adapters: set[str] = field(default_factory=set)
    leftovers: list[str] = field(default_factory=list)


def sort_keys(path: Path, tensors: Mapping[str, LazyTensor]) -> AdapterKeys:
    """Sort every tensor by its part. Raises ``AdapterError`` for the first key of no kind."""
    keys = AdapterKeys()
    names = _find_adapter_names(tensors)
    for key, tensor in tensors.items():
        name = normalize_key(key)
        if is_rotary_buffer(name):
            keys.leftovers.append(name)
            continue
        part, match = _match_part(name) or (None, None)
        if part is None or match is None:
            raise _unknown_key_error(path, key)
        groups = match.groupdict()
        if groups.get("adapter"):
            keys.adapters.add(groups["adapter"])
        target = groups["module"].removesuffix(_TOKEN_ADAPTER)
        if part in _WHOLE:
            target = f"{target}.{_strip_adapter_name(groups['rest'], names)}"
        if target in keys.parts[part]:
            raise AdapterError(
                tr("the adapter holds the same tensor twice"),
                file=path,
                tensor=key,
                remedy=tr("keep one of the two adapters in the file"),
            )
        keys.parts[part][target] = tensor
    if len(keys.adapters) > 1:
        raise AdapterError(
            tr("the file holds several adapters"),
            file=path,
            found=", ".join(sorted(keys.adapters)),
            remedy=tr("save the one that is meant alone, with PEFT's save_pretrained"),
        )
    return keys


def normalize_key(key: str) -> str:
    """A tensor's name as the base model has it.

    >>> normalize_key("base_model.model._orig_mod.model.norm.weight")
    'model.norm.weight'
    """
    return without_wrappers(without_wrappers(key).removeprefix(_PREFIX))


def _match_part(name: str) -> tuple[str, re.Match[str]] | None:
    for part, pattern in PARTS.items():
        if match := pattern.fullmatch(name):
            module = match["module"].removesuffix(_TOKEN_ADAPTER)
            return None if _RESERVED.search(module) else (part, match)
    if (match := _PLAIN.fullmatch(name)) and not _RESERVED.search(match["module"]):
        return "plain", match
    return None


def _find_adapter_names(tensors: Mapping[str, LazyTensor]) -> set[str]:
    """Names of adapters, as raw dicts put them behind lora_A."""
    found = (PARTS["lora_A"].fullmatch(normalize_key(key)) for key in tensors)
    return {"default", *(match["adapter"] for match in found if match and match["adapter"])}


def _strip_adapter_name(rest: str, names: set[str]) -> str:
    """``weight`` for ``default.weight``; a module's own parameters have other names."""
    head, _, tail = rest.partition(".")
    return tail if tail and head in names else rest


def _unknown_key_error(path: Path, key: str) -> AdapterError:
    if kind := find_key_refusal(key):
        return AdapterError(
            tr(
                "the adapter holds {name}, which cannot be merged here: {reason}",
                name=kind.name,
                reason=kind.reason,
            ),
            file=path,
            tensor=key,
            remedy=kind.remedy,
        )
    if method := find_method_of_tensor(key):
        return AdapterError(
            tr(
                "the adapter holds a tensor of {method}, but its configuration describes a LoRA",
                method=method,
            ),
            file=path,
            tensor=key,
            remedy=tr("take adapter_config.json from the run that trained the adapter"),
        )
    return AdapterError(
        tr("the adapter holds a tensor of a kind that is not known here"),
        file=path,
        tensor=key,
        expected=tr(
            "parts that PEFT writes (docs/adapters.md lists them), or whole tensors of the base"
        ),
        remedy=tr("merge it with PEFT's own merge_and_unload on a machine with enough memory"),
    )
