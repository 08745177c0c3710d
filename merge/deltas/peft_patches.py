"""A module that PEFT merges, as patches of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..errors import AdapterError, UsageError
from ..layouts.decoder import VOCABULARY_TENSORS, count_embedding_rows, embeddings
from ..messages import tr
from ..peft_layers.experts import find_expert_factors
from ..peft_layers.tuner import PeftTuner, open_tuner
from ..tensors.lazy import Checkpoint, LazyTensor
from ..tensors.patched import Blocks, Patch, RowPatch
from .adapter import Adapter
from .kinds import HARMLESS
from .patches import LowRank


@dataclass(frozen=True)
class MergedByPeft(Patch):
    """One parameter of a module as PEFT's merge of the module leaves it.

    ``shape`` is the parameter's. ``beside`` are the module's other parameters as they are before
    this adapter, which the merge may look at. The whole tensor is read and held in float32, and
    PEFT needs a few times as much meanwhile.
    """

    tuner: PeftTuner
    module: str
    parameter: str
    shape: tuple[int, ...]
    beside: Mapping[str, LazyTensor] = field(default_factory=dict)

    def prepare(self, before: Blocks) -> RowPatch:
        values = {name: tensor.read().float() for name, tensor in self.beside.items()}
        whole = torch.empty(self.shape)
        start = 0
        for block in before():
            whole[start : start + len(block)] = block
            start += len(block)
        merged = self.tuner.merge(self.module, {**values, self.parameter: whole})[self.parameter]

        def replace_rows(block: torch.Tensor, start: int, stop: int) -> object:
            return block.copy_(merged[start:stop])

        return replace_rows

    @property
    def tensors(self) -> tuple[LazyTensor, ...]:
        return tuple(t for t in self.tuner.tensors_of(self.module) if t.dtype.is_floating_point)

    def transposed(self) -> MergedByPeft:
        """The same: PEFT knows itself which layers store their matrices transposed."""
        return self


def attach_peft_to_all(adapters: Sequence[Adapter], base: Checkpoint) -> tuple[Adapter, ...]:
    """The adapters, with the patches that PEFT's merge is where PEFT merges them.

    The tensors of those are read. Raises ``AdapterError`` for what PEFT refuses, and ``UsageError``
    for a weight on what is added.
    """
    rows = count_embedding_rows(base.tensors)
    name = embeddings(base.tensors)
    attached = []
    for adapter in adapters:
        if name is not None and name in adapter.replaced:
            rows = adapter.replaced[name].rows
        by_peft = adapter.config.method is not None
        attached.append(_attach_peft(adapter, base, rows) if by_peft else adapter)
    return tuple(attached)


def _attach_peft(adapter: Adapter, base: Checkpoint, rows: int) -> Adapter:
    if adapter.config.weight != 1:
        raise UsageError(
            tr(
                "an adapter of {method} cannot be given a weight: what PEFT's merge "
                "of it does to a matrix is no sum",
                method=adapter.config.method,
            ),
            file=adapter.weights,
            expected=tr("--lora_weights 1"),
            found=f"{adapter.config.weight:g}",
            remedy=tr("leave --lora_weights out, or give this adapter 1"),
        )
    fields = adapter.folder.fields
    tuner = open_tuner(
        adapter.weights, adapter.config.path, fields, adapter.by_peft, base.config, rows, HARMLESS
    )
    added = dict(adapter.added)
    stacks = find_expert_factors(tuner, base.config, base.tensors)
    for experts in stacks.values():
        added |= {name: (LowRank(f.a, f.b, f.scaling),) for name, f in experts.items()}
    for module, changed in tuner.modules.items():
        parameters = [name for name in changed if f"{module}.{name}" not in stacks]
        shapes = {name: _find_shape(adapter, base, module, name, rows) for name in parameters}
        for name, shape in shapes.items():
            patch = MergedByPeft(tuner, module, name, shape)
            added[f"{module}.{name}"] = (patch,)
    return replace(adapter, added=added)


def _find_shape(
    adapter: Adapter, base: Checkpoint, module: str, parameter: str, rows: int
) -> tuple[int, ...]:
    name = f"{module}.{parameter}"
    if name not in base.tensors and ".experts." in f"{name}.":
        raise AdapterError(
            tr(
                "the adapter is on fused experts, and the base's files hold each "
                "expert by itself, under other names or not all of them"
            ),
            file=adapter.weights,
            tensor=name,
            expected=tr(
                "the fused tensors, as in the files of GPT-OSS, or every expert by "
                "the names from which transformers fuses them"
            ),
            found=", ".join([n for n in base.tensors if ".experts." in n][:2]) + ", ...",
            remedy=tr("merge it with PEFT's own merge_and_unload on a machine with enough memory"),
        )
    if name not in base.tensors:
        raise AdapterError(
            tr(
                "the base model's files do not hold a tensor by the name that transformers gives it"
            ),
            file=adapter.weights,
            tensor=name,
            expected=tr("the base's names to be those of transformers"),
            found=", ".join(list(base.tensors)[:3]) + ", ...",
            remedy=tr("save the base once with transformers' save_pretrained"),
        )
    shape = base.tensors[name].shape
    return (rows, *shape[1:]) if name in VOCABULARY_TENSORS else shape


def attach_siblings(adapter: Adapter, get: Callable[[str], LazyTensor]) -> Adapter:
    """The adapter with what PEFT may look at beside each tensor: ``get`` gives it by its name."""
    added = {
        name: tuple(_with_siblings(patch, adapter, get) for patch in stage)
        for name, stage in adapter.added.items()
    }
    return replace(adapter, added=added)


def _with_siblings(patch: Patch, adapter: Adapter, get: Callable[[str], LazyTensor]) -> Patch:
    if not isinstance(patch, MergedByPeft):
        return patch
    names = {name: f"{patch.module}.{name}" for name in patch.tuner.modules[patch.module]}
    beside = {
        name: adapter.replaced[full] if full in adapter.replaced else get(full)
        for name, full in names.items()
        if name != patch.parameter
    }
    return replace(patch, beside=beside)
