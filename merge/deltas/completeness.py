"""Whether an adapter holds what its configuration declares, by the names of the base.

PEFT saves a tensor for everything that it trained, so what is declared and in the base, but not in
the file, was lost. PEFT itself loads such a file with a warning at most, and the model is then not
the one that was trained. Names that the base does not have were never trained.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import AdapterError
from ..layouts.decoder import VOCABULARY_TENSORS
from ..messages import tr
from ..tensors.lazy import Checkpoint, LazyTensor
from .adapter import Adapter
from .adapter_config import CONFIG_NAME
from .patches import ReplacedRows
from .tied_embeddings import TiedPair

_INCOMPLETE = tr(
    "the file is incomplete, or adapter_config.json is of another run: "
    "take both from the run that trained the adapter"
)
# The number of a module's layer, as PEFT finds it for layers_to_transform.
_LAYER = re.compile(r".*\.[^.]*\.(\d+)\.")
# Modules that files and models call differently: transformers 5 fuses experts.
_EXPERTS = ".experts."


@dataclass(frozen=True)
class _Declared:
    """An adapter with the fields that say where it was trained, and the base's tensors."""

    adapter: Adapter
    fields: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]
    config: Mapping[str, Any]
    sides: TiedPair | None

    def missing(self, names: Collection[str], present: Collection[str]) -> list[str]:
        """Those of ``names`` that are not ``present``; of tied sides PEFT may save one for both."""
        shared = {*self.sides} if self.sides is not None else set()
        served = shared if shared & {*present} else set()
        return [name for name in names if name not in present and name not in served]

    def error(
        self, sentence: str, tensor: str, expected: str, found: str, remedy: str = _INCOMPLETE
    ) -> AdapterError:
        return AdapterError(
            sentence,
            file=self.adapter.weights,
            tensor=tensor,
            expected=tr("{expected}, by {config_name}", expected=expected, config_name=CONFIG_NAME),
            found=found,
            remedy=remedy,
        )


def require_declared(adapter: Adapter, base: Checkpoint, sides: TiedPair | None) -> None:
    """Raise ``AdapterError`` for what ``adapter_config.json`` declares and the file lacks.

    That is ``modules_to_save``, ``trainable_token_indices`` by modules, ``"bias": "all"``, and a
    LoRA for every module that a list of ``target_modules`` names, and for no other. ``sides`` are
    the tied ones of the base: PEFT may have saved one for both.
    """
    declared = _collect_declared(adapter, base, sides)
    _require_saved(declared)
    _require_tokens(declared)
    _require_biases(declared)
    _require_targets(declared)


def find_completeness_warnings(adapter: Adapter, base: Checkpoint) -> Iterator[str]:
    """What may be missing, but may as well never have been there."""
    declared = _collect_declared(adapter, base, None)
    biases = [f"{module}.bias" for module in _list_lora_modules(adapter)]
    mine = [name for name in biases if name in base.tensors]
    lora_only = adapter.config.bias == "lora_only"
    if lora_only and mine and not adapter.replaced.keys() & {*mine}:
        yield (
            tr(
                '{name}: "bias" is "lora_only", but the file holds none of the '
                "{n_mine} biases: some releases of PEFT trained them and did not "
                "save them",
                name=adapter.name,
                n_mine=len(mine),
            )
        )
    if _list_modules(declared.fields.get("target_modules")) or declared.fields.get(
        "layers_to_transform"
    ):
        return
    kinds = {_without_layer(module) for module in _list_lora_modules(adapter)}
    modules = [
        m
        for m in _list_linear_modules(declared)
        if _without_layer(m) in kinds and m not in _list_lora_modules(adapter)
    ]
    if modules:
        yield (
            tr(
                "{name}: no LoRA for {n_modules} modules that have one in other "
                "layers ({modules}, ...); whether one is lost its target_modules "
                "does not say",
                name=adapter.name,
                n_modules=len(modules),
                modules=modules[0],
            )
        )


def _collect_declared(adapter: Adapter, base: Checkpoint, sides: TiedPair | None) -> _Declared:
    return _Declared(adapter, adapter.folder.fields, base.tensors, base.config, sides)


def _require_saved(declared: _Declared) -> None:
    replaced = declared.adapter.replaced
    for module in declared.adapter.config.modules_to_save:
        names = [name for name in declared.tensors if _is_inside(name, module)]
        if missing := declared.missing(names, replaced):
            raise declared.error(
                tr("the adapter lacks a module that was trained as a whole"),
                missing[0],
                tr(
                    '{n_names} tensors of "{module}", which "modules_to_save" names',
                    n_names=len(names),
                    module=module,
                ),
                tr("{n_names} of them", n_names=len(names) - len(missing)),
            )


def _require_tokens(declared: _Declared) -> None:
    indices = declared.adapter.config.trainable_token_indices
    rows = [
        name
        for name, stage in declared.adapter.added.items()
        if any(isinstance(patch, ReplacedRows) for patch in stage)
    ]
    for module in indices if isinstance(indices, Mapping) else ():
        names = [name for name in declared.tensors if f".{name}".endswith(f".{module}.weight")]
        if missing := declared.missing(names, rows):
            raise declared.error(
                tr("the adapter lacks the trained rows of a module"),
                missing[0],
                tr(
                    'trainable_tokens_delta of "{module}", which "trainable_token_indices" names',
                    module=module,
                ),
                tr("rows of {rows}", rows=", ".join(rows) or tr("none")),
            )


def _require_biases(declared: _Declared) -> None:
    biases = [name for name in declared.tensors if name.endswith(".bias")]
    missing = declared.missing(biases, declared.adapter.replaced)
    if declared.adapter.config.bias == "all" and missing:
        raise declared.error(
            tr("the adapter lacks biases that were trained"),
            missing[0],
            tr('every bias of the base ({n_biases}), since "bias" is "all"', n_biases=len(biases)),
            tr("{n_biases} of them", n_biases=len(biases) - len(missing)),
        )


def _require_targets(declared: _Declared) -> None:
    targets = _list_modules(declared.fields.get("target_modules"))
    if not targets or declared.adapter.config.method:  # PEFT says what it expects
        return
    present = _list_lora_modules(declared.adapter)
    tied = declared.adapter.config.ensure_weight_tying
    for module in sorted(present):
        # PEFT up to 0.4 compared ends of names without the dot before them.
        if not module.endswith(targets) and not (tied and f"{module}.weight" in VOCABULARY_TENSORS):
            raise declared.error(
                tr("the adapter has a LoRA of a module that it was not trained on"),
                f"{module}.lora_A.weight",
                tr('LoRA for {targets} ("target_modules")', targets=", ".join(targets)),
                tr("one for another module"),
            )
    expected = [
        module for module in _list_linear_modules(declared) if _is_target(declared, module, targets)
    ]
    missing = declared.missing(
        [f"{module}.weight" for module in expected], {f"{module}.weight" for module in present}
    )
    if missing:
        raise declared.error(
            tr("the adapter lacks LoRA matrices that were trained"),
            f"{missing[0].removesuffix('.weight')}.lora_A.weight",
            tr(
                'a LoRA for {n_expected} modules of the base ("target_modules")',
                n_expected=len(expected),
            ),
            tr("{n_expected} of them", n_expected=len(expected) - len(missing)),
            tr(
                "the file is incomplete: save or fetch the adapter again; if these "
                "modules were never trained, say so in {config_name} "
                "(layers_to_transform, exclude_modules)",
                config_name=CONFIG_NAME,
            ),
        )


def _list_lora_modules(adapter: Adapter) -> set[str]:
    return {name.removesuffix(".weight") for name in adapter.low_rank}


def _list_linear_modules(declared: _Declared) -> list[str]:
    """Modules of the base with a matrix, in layers that the model has (others are for drafts)."""
    layers = declared.config.get("num_hidden_layers")
    count = layers if isinstance(layers, int) else None
    return [
        name.removesuffix(".weight")
        for name, tensor in declared.tensors.items()
        if name.endswith(".weight")
        and len(tensor.shape) == 2
        and _EXPERTS not in name
        and (count is None or (_find_layer(name) or 0) < count)
    ]


def _is_target(declared: _Declared, module: str, targets: tuple[str, ...]) -> bool:
    """Whether PEFT puts a LoRA on a module (``tuners_utils.check_target_module_exists``)."""
    fields, saved = declared.fields, declared.adapter.config.modules_to_save
    if not _ends_with(module, targets) or _is_excluded(module, fields.get("exclude_modules")):
        return False
    if any(_is_inside(f"{module}.weight", name) for name in saved):
        return False
    layers = fields.get("layers_to_transform")
    chosen = [layers] if isinstance(layers, int) else layers or []
    return module in targets or not chosen or _find_layer(module) in chosen


def _is_excluded(module: str, excluded: object) -> bool:
    """An expression counts as excluding anything: matching it could take unbounded time."""
    return bool(excluded) and (not (names := _list_modules(excluded)) or _ends_with(module, names))


def _ends_with(module: str, names: tuple[str, ...]) -> bool:
    return f".{module}".endswith(tuple(f".{name}" for name in names))


def _is_inside(name: str, module: str) -> bool:
    """Whether a tensor belongs to a module that is called by the end of its name, or one in it."""
    return f".{module}." in f".{name}"


def _list_modules(names: object) -> tuple[str, ...]:
    """A list of names; empty for an expression and for ``all-linear``."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return () if "all-linear" in names else tuple(names)


def _find_layer(name: str) -> int | None:
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def _without_layer(module: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", module)
