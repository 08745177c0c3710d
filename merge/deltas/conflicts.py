"""Parts of an adapter that meet on one module or one tensor, and may not.

Where PEFT defines what two parts make together (a base's own copy under a LoRA, a bias and that of
lora_B), both are used. Every other pair would need one of the two to be dropped.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import AdapterError
from ..messages import tr
from .adapter_config import AdapterConfig
from .keys import AdapterKeys
from .saved_modules import spell_key

# Deltas of a module's weight: PEFT gives a module one of these kinds.
_DELTAS = ("lora_A", "lora_embedding_A", "trainable_tokens_delta")


def require_no_collisions(path: Path, config: AdapterConfig, keys: AdapterKeys) -> None:
    """Raise ``AdapterError`` naming two keys of which one would have to be dropped.

    The rules are PEFT's: a module gets one kind of delta; a module of ``modules_to_save`` gets
    none (``tuners_utils.check_target_module_exists`` excludes it, and trainable tokens refuse to
    wrap it). That copies of one tensor are equal is checked by
    ``saved_modules.require_equal_copies``.
    """
    _require_one_delta(path, keys)
    _require_no_delta_of_saved(path, config, keys)
    rows = keys.parts["trainable_tokens_delta"]
    lonely = keys.parts["trainable_tokens_original"].keys() - rows.keys()
    if lonely:
        raise AdapterError(
            tr("the adapter holds the untrained rows of tokens without the trained ones"),
            file=path,
            tensor=f"{min(lonely)}.trainable_tokens_original",
            expected=tr("{lonely}.trainable_tokens_delta beside it", lonely=min(lonely)),
            found=tr("no such tensor"),
            remedy=tr("the file is incomplete: save or fetch the adapter again"),
        )


def _require_one_delta(path: Path, keys: AdapterKeys) -> None:
    first_of: dict[str, str] = {}
    for part in _DELTAS:
        for module in keys.parts[part]:
            if (other := first_of.setdefault(module, part)) != part:
                raise AdapterError(
                    tr("the adapter holds two kinds of delta for one module"),
                    file=path,
                    tensor=f"{module}.{part}",
                    expected=tr("one kind for each module, as PEFT writes them"),
                    found=tr("{other} of the same module", other=other),
                    remedy=tr("remove the one that is not meant, or save the adapter again"),
                )


def _require_no_delta_of_saved(path: Path, config: AdapterConfig, keys: AdapterKeys) -> None:
    whole = {
        name: part for part in ("modules_to_save", "original_module") for name in keys.parts[part]
    }
    for part in ("plain", "base_layer"):
        for name in keys.parts[part]:
            if config.saves(name.rpartition(".")[0]):
                whole.setdefault(name, part)
    by_module = {name.rpartition(".")[0]: (name, part) for name, part in whole.items()}
    for delta in _DELTAS:
        for module in sorted(keys.parts[delta].keys() & by_module.keys()):
            name, part = by_module[module]
            raise AdapterError(
                tr("the adapter holds a module trained as a whole and a delta of the same module"),
                file=path,
                tensor=f"{module}.{delta}",
                expected=tr("one or the other, as PEFT writes them"),
                found=tr("{spell_key} beside it", spell_key=spell_key(name, part)),
                remedy=tr("remove the one that is not meant, or save the adapter again"),
            )
