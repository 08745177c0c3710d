"""What PEFT makes of a module, asked a second time: for adapters that PEFT's own code merges.

The adapter and the base are read by this package, and PEFT's answer is compared bit by bit with the
result. That shows that each matrix got its own adapter, whole and once; what PEFT's formula is, is
for PEFT to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from ..layouts.decoder import count_embedding_rows, embeddings
from ..layouts.llama import EMBED_TOKENS
from ..messages import tr
from ..storage.zipped_adapter import ADAPTER_CONFIG_NAME
from ..tensors.lazy import Checkpoint, LazyTensor, RowReader
from .adapters import AdapterContents, Product

if TYPE_CHECKING:
    from ..peft_layers.tuner import PeftTuner


@dataclass(frozen=True)
class PeftModules:
    """The tensors that PEFT's merge of one adapter changes, or ``why`` that cannot be asked."""

    tuner: PeftTuner | None = None
    why: str = ""

    def find(self, name: str) -> tuple[str, str] | None:
        """The module and the parameter that a tensor is, if PEFT changes it."""
        module, _, parameter = name.rpartition(".")
        parameters = self.tuner.modules.get(module, ()) if self.tuner is not None else ()
        return (module, parameter) if parameter in parameters else None


def load_again(
    adapters: Sequence[AdapterContents], model: Checkpoint, merged_by: str | None
) -> None:
    """Let PEFT load those adapters again that it merges, and set their ``peft``.

    ``model`` is what the first adapter was added to, ``merged_by`` are the releases of the merge,
    if recorded. Raises ``AdapterError`` for an adapter that PEFT refuses.
    """
    rows = count_embedding_rows(model.tensors)
    name = embeddings(model.tensors) or EMBED_TOKENS
    for adapter in adapters:
        if name in adapter.new_rows:
            rows += adapter.new_rows[name].rows
        if name in adapter.whole:
            rows = adapter.whole[name].rows
        if adapter.method is not None:
            adapter.peft = _load_adapter(adapter, model, rows, merged_by)


def _load_adapter(
    contents: AdapterContents, model: Checkpoint, rows: int, merged_by: str | None
) -> PeftModules:
    """Let PEFT load an adapter for a model with ``rows`` embeddings.

    What it adds to single experts of a stack goes into ``contents``, to be checked as a product.
    """
    if any(find_spec(package) is None for package in ("peft", "transformers")):
        return PeftModules(why=tr("PEFT is not installed here"))
    from ..peft_layers.experts import find_expert_factors
    from ..peft_layers.installed import get_versions
    from ..peft_layers.tuner import open_tuner, split_tensors

    installed = get_versions()
    if merged_by not in (None, installed):
        return PeftModules(
            why=tr(
                "it was by {merged_by}, and here is {installed}",
                merged_by=merged_by,
                installed=installed,
            )
        )
    tensors, _ = split_tensors(str(contents.config.get("peft_type", "LORA")), contents.by_key)
    path = contents.folder / ADAPTER_CONFIG_NAME
    config = contents.config
    tuner = open_tuner(contents.weights, path, config, tensors, model.config, rows, config)
    for experts in find_expert_factors(tuner, model.config, model.tensors).values():
        contents.products |= {name: Product(f.a, f.b, f.scaling) for name, f in experts.items()}
    return PeftModules(tuner)


@dataclass(frozen=True)
class MergedByPeft(LazyTensor):
    """One parameter of a module after PEFT's merge of it, in float32; its reader holds all of it.

    ``starts`` are the module's parameters before the adapter.
    """

    tuner: PeftTuner
    module: str
    parameter: str
    starts: Mapping[str, LazyTensor]

    def reader(self) -> RowReader:
        values = {name: t.without_digest().read().float() for name, t in self.starts.items()}
        merged = self.tuner.merge(self.module, values)[self.parameter]

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            out.copy_(merged[start:stop])

        return fill


def merge_again(
    adapter: AdapterContents,
    name: str,
    shape: tuple[int, ...],
    find_start: Callable[[str], LazyTensor | None],
) -> LazyTensor | str | None:
    """The tensor ``name`` as PEFT's merge of the adapter leaves it; why it cannot be asked of; or
    None where it is not changed.

    ``find_start`` gives a tensor before this adapter, None where it is not known to the bit.
    """
    modules = adapter.peft
    if modules is None:
        return None
    if modules.tuner is None:
        why = tr(
            "{method}, which PEFT is not asked of again: {why}",
            method=adapter.method,
            why=modules.why,
        )
        return why if adapter.may_change_by_peft(name) else None
    if (place := modules.find(name)) is None:
        return None
    module, parameter = place
    starts: dict[str, LazyTensor] = {}
    for other in modules.tuner.modules[module]:
        start = find_start(f"{module}.{other}")
        if start is None:
            return tr("merged by PEFT after other sums, which are not known to the bit here")
        starts[other] = start
    origin = f"{name}, merged by PEFT"
    return MergedByPeft(shape, torch.float32, origin, modules.tuner, module, parameter, starts)
