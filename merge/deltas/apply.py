"""Adapters onto a base, in order: which tensor becomes what, and every contradiction refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import AdapterError, LayoutError
from ..layouts.llama import EMBED_TOKENS, LM_HEAD
from ..lazy import Checkpoint, LazyTensor
from .patches import LowRank, Merged
from .peft import Adapter, same_content

VOCABULARY_TENSORS = (EMBED_TOKENS, LM_HEAD)


@dataclass(frozen=True)
class Step:
    """What one adapter did to one tensor, for the manifest and the summary."""

    adapter: int
    action: str
    rows_before: int
    rows_after: int
    rank: int | None = None
    scaling: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The step without what does not apply to it."""
        fields: dict[str, Any] = {"adapter": self.adapter, "action": self.action}
        if self.action == "added":
            return fields | {"rank": self.rank, "scaling": self.scaling}
        return fields | {"rows_before": self.rows_before, "rows_after": self.rows_after}


@dataclass(frozen=True)
class MergedModel:
    """The tensors of the result by Hugging Face name, with what was done to each.

    ``tied`` says that there is no LM head of its own: the embeddings serve as one.
    """

    tensors: Mapping[str, Merged]
    steps: Mapping[str, tuple[Step, ...]]
    tied: bool


def apply_adapters(
    base: Checkpoint,
    adapters: Sequence[Adapter],
    dtype: torch.dtype | None,
    round_each_stage: bool = False,
) -> MergedModel:
    """Merge ``adapters`` into ``base`` in their order, lazily.

    ``dtype`` of the result; None keeps each base tensor's own. Raises ``AdapterError`` for tensors
    that the base does not have, for shapes that do not fit, and for an adapter that is merged
    already.
    """
    starts = dict(base.tensors)
    tied = bool(base.config.get("tie_word_embeddings"))
    if tied:
        _require_equal_sides(starts)
    touched = {name for adapter in adapters for name in (*adapter.added, *adapter.replaced)}
    if tied and LM_HEAD not in starts:
        starts[LM_HEAD] = starts[EMBED_TOKENS]
    for adapter in adapters:
        _require_fits(adapter, starts)
        _require_not_merged_yet(adapter, base)
    merged: dict[str, Merged] = {}
    steps: dict[str, tuple[Step, ...]] = {}
    for name, start in starts.items():
        merged[name], steps[name] = _merge(name, start, adapters, dtype, round_each_stage)
    if tied and _stays_tied(merged, touched, adapters):
        del merged[LM_HEAD], steps[LM_HEAD]
        return MergedModel(merged, steps, tied=True)
    return MergedModel(merged, steps, tied=False)


def _require_equal_sides(tensors: Mapping[str, LazyTensor]) -> None:
    """A tied model may hold its embeddings twice, but not two different versions of them."""
    if LM_HEAD in tensors and not same_content(tensors[EMBED_TOKENS], tensors[LM_HEAD]):
        raise LayoutError(
            "the base model's config.json ties the LM head to the embeddings, but they differ",
            tensor=tensors[LM_HEAD].origin,
            expected=f"the same values as {EMBED_TOKENS}",
            remedy='write "tie_word_embeddings": false into config.json if the LM head is meant '
            "(an earlier merge may have forgotten it), else remove the tensor",
        )


def _stays_tied(
    merged: Mapping[str, Merged], touched: set[str], adapters: Sequence[Adapter]
) -> bool:
    """Whether both sides end up the same, so that one tensor still serves as both."""
    sides = touched & set(VOCABULARY_TENSORS)
    if not sides:
        return True
    if sides == {EMBED_TOKENS} and all(
        adapter.config.ensure_weight_tying
        for adapter in adapters
        if EMBED_TOKENS in adapter.replaced
    ):
        return True
    one, other = merged[EMBED_TOKENS], merged[LM_HEAD]
    return not one.stages and not other.stages and same_content(one.start, other.start)


def _merge(
    name: str,
    start: LazyTensor,
    adapters: Sequence[Adapter],
    dtype: torch.dtype | None,
    round_each_stage: bool,
) -> tuple[Merged, tuple[Step, ...]]:
    result_dtype = dtype or start.dtype
    stages: list[tuple[LowRank, ...]] = []
    steps: list[Step] = []
    for number, adapter in enumerate(adapters, start=1):
        if name in adapter.replaced:
            tensor = adapter.replaced[name]
            steps.append(Step(number, "replaced", start.rows, tensor.rows))
            start, stages = tensor, []
        if name in adapter.added:
            patch = adapter.added[name]
            _require_same_shape(adapter, name, patch, start.shape)
            steps.append(Step(number, "added", start.rows, start.rows, patch.a.rows, patch.scaling))
            stages.append((patch,))
    return (
        Merged(start.shape, result_dtype, start.origin, start, tuple(stages), round_each_stage),
        tuple(steps),
    )


def _require_fits(adapter: Adapter, tensors: Mapping[str, LazyTensor]) -> None:
    for name in (*adapter.added, *adapter.replaced):
        if name not in tensors:
            raise AdapterError(
                "the adapter is for a tensor that the base model does not have",
                file=adapter.weights,
                tensor=name,
                expected="a name of the base model, such as model.layers.0.self_attn.q_proj.weight",
                remedy="the adapter was trained on another model: give the base that its author "
                f"names ({adapter.config.base_model_name_or_path or 'not recorded'})",
            )
    for name, tensor in adapter.replaced.items():
        free_rows = name in VOCABULARY_TENSORS  # checked together with the tokenizer
        base_shape = tensors[name].shape
        if tensor.shape[1:] != base_shape[1:] or not (free_rows or tensor.shape == base_shape):
            raise _other_size(adapter, name, base_shape, tensor.shape)


def _require_same_shape(
    adapter: Adapter, name: str, patch: LowRank, shape: tuple[int, ...]
) -> None:
    given = (patch.b.rows, patch.a.shape[1])
    if given != shape:
        raise _other_size(adapter, name, shape, given)


def _other_size(
    adapter: Adapter, name: str, expected: tuple[int, ...], found: tuple[int, ...]
) -> AdapterError:
    return AdapterError(
        "the adapter was trained on a model of another size",
        file=adapter.weights,
        tensor=name,
        expected=f"{expected}, as in the base model",
        found=found,
        remedy="give the base that the adapter was trained on, for instance a 13B base for a 13B "
        "adapter",
    )


def _require_not_merged_yet(adapter: Adapter, base: Checkpoint) -> None:
    """Refuse a base whose vocabulary tensors are this adapter's already."""
    pairs = [
        (base.tensors[name], adapter.replaced[name])
        for name in VOCABULARY_TENSORS
        if name in adapter.replaced and name in base.tensors
    ]
    if not adapter.added or not pairs:
        return
    if all(same_content(ours, _as(theirs, ours.dtype)) for ours, theirs in pairs):
        raise AdapterError(
            "the base model holds this adapter already; merging it again would add it twice",
            file=adapter.weights,
            tensor=EMBED_TOKENS,
            expected="a base whose embeddings differ from the adapter's",
            found=f"the same {pairs[0][1].rows} rows in both",
            remedy="give the original base model, not the merged one",
        )


def _as(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    return Merged(tensor.shape, dtype, tensor.origin, tensor)
