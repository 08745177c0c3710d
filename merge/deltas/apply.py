"""Adapters onto a base, in order: which tensor becomes what, and every contradiction refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import AdapterError, Topic
from ..layouts.conv1d import stores_transposed
from ..layouts.decoder import VOCABULARY_TENSORS
from ..messages import tr
from ..tensors.lazy import Checkpoint, LazyTensor, append_rows, take_rows
from ..tensors.patched import Patch, PatchedTensor
from .adapter import Adapter
from .completeness import find_completeness_warnings, require_declared
from .patches import AddedVector, DoraColumnScale, DoraRowScale, LowRank, ReplacedRows
from .peft_patches import MergedByPeft, attach_siblings
from .saved_modules import equal_values
from .tied_embeddings import (
    find_tied_sides,
    have_same_values,
    mirror_to_lm_head,
    require_equal_sides,
)

MERGED_BY_PEFT = tr("merged by PEFT")
WHOLE_ROWS = ("replaced", "cut")
"""Actions that take rows as they are, in place of what was there."""


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
        entries: dict[str, Any] = {"adapter": self.adapter, "action": self.action}
        if self.action.startswith("added"):
            given = {"rank": self.rank, "scaling": self.scaling}
            return entries | {key: value for key, value in given.items() if value is not None}
        return entries | {"rows_before": self.rows_before, "rows_after": self.rows_after}


@dataclass(frozen=True)
class MergedModel:
    """The tensors of the result by Hugging Face name, with what was done to each.

    ``tied`` says that there is no LM head of its own: the embeddings serve as one. ``notes`` tell
    what the adapters leave open.
    """

    tensors: Mapping[str, PatchedTensor]
    steps: Mapping[str, tuple[Step, ...]]
    tied: bool
    notes: tuple[str, ...] = ()


def apply_adapters(
    base: Checkpoint,
    adapters: Sequence[Adapter],
    dtype: torch.dtype | None,
    round_each_adapter: bool = False,
    vocab_mismatch: str = "error",
) -> MergedModel:
    """Merge ``adapters`` into ``base`` in their order, lazily.

    ``dtype`` of the result; None keeps each base tensor's own. ``vocab_mismatch`` says what becomes
    of vocabulary rows that an adapter does not have: refused, kept as the base has them
    (``keep_base_rows``), or dropped (``truncate``).

    Raises ``AdapterError`` for tensors that the base does not have, for shapes that do not fit, for
    what an adapter declares and does not hold, and for an adapter that is merged already.
    """
    starts = dict(base.tensors)
    sides = find_tied_sides(base)
    if sides is not None:
        require_equal_sides(starts, sides)
        starts.setdefault(sides.head, starts[sides.embeddings])
    for adapter in adapters:
        _require_fits(adapter, starts)
        require_declared(adapter, base, sides)
        _require_not_merged_yet(adapter, base)
    builders = {name: _TensorBuilder(name, start, vocab_mismatch) for name, start in starts.items()}

    def merged(name: str) -> PatchedTensor:
        return builders[name].result(dtype or starts[name].dtype, round_each_adapter)

    def so_far(name: str) -> LazyTensor:
        exact = None if round_each_adapter else torch.float32
        return builders[name].so_far(exact or dtype or starts[name].dtype, round_each_adapter)

    for number, adapter in enumerate(adapters, start=1):
        fitted = _transpose_patches(adapter, base.config)
        if sides is not None:
            fitted = mirror_to_lm_head(fitted, sides)
        fitted = attach_siblings(fitted, so_far)
        for builder in builders.values():
            builder.merge(number, fitted)
        if sides is not None and not have_same_values(merged(sides.embeddings), merged(sides.head)):
            sides = None  # from here on it is a model with two matrices
    if sides is not None:
        del builders[sides.head]
    steps = {name: tuple(builder.steps) for name, builder in builders.items()}
    notes = tuple(
        note for adapter in adapters for note in find_completeness_warnings(adapter, base)
    )
    tensors = {name: merged(name) for name in builders}
    return MergedModel(tensors, steps, sides is not None, notes)


def _transpose_patches(adapter: Adapter, config: Mapping[str, Any]) -> Adapter:
    """The adapter with its patches transposed where this base keeps matrices transposed."""
    added = {
        name: tuple(patch.transposed() for patch in stage)
        if stores_transposed(config, name)
        else stage
        for name, stage in adapter.added.items()
    }
    return replace(adapter, added=added)


class _TensorBuilder:
    """How one tensor is made, adapter after adapter."""

    def __init__(self, name: str, start: LazyTensor, vocab_mismatch: str) -> None:
        self.steps: list[Step] = []
        self._name = name
        self._base = self._start = start
        self._stages: list[tuple[Patch, ...]] = []
        self._mismatch = vocab_mismatch if name in VOCABULARY_TENSORS else "error"

    def merge(self, number: int, adapter: Adapter) -> None:
        """Let one adapter replace the tensor, add to it, or cut its rows off."""
        before = self._start.rows
        if self._name in adapter.replaced and not self._is_own_copy(adapter):
            self._replace(adapter)
            self.steps.append(Step(number, "replaced", before, self._start.rows))
        if self._mismatch == "truncate" and (rows := count_vocabulary_rows(adapter)):
            self._truncate(number, adapter, rows)
        if self._name in adapter.added:
            stage = adapter.added[self._name]
            self._require_fits(adapter, stage)
            self.steps.append(self._describe_step(number, stage))
            self._stages.append(stage)

    def result(self, dtype: torch.dtype, round_each_adapter: bool) -> PatchedTensor:
        start = self._start
        return PatchedTensor(
            start.shape, dtype, start.origin, start, tuple(self._stages), round_each_adapter
        )

    def so_far(self, dtype: torch.dtype, round_each_adapter: bool) -> LazyTensor:
        """The tensor as it is now, to be read beside the result."""
        start = self._start.without_digest()
        stages = tuple(self._stages)
        return PatchedTensor(start.shape, dtype, start.origin, start, stages, round_each_adapter)

    def _is_own_copy(self, adapter: Adapter) -> bool:
        """Whether the adapter only holds the base's tensor, which earlier adapters have changed.

        An untrained copy tells what the adapter was trained on: the base, or what the earlier ones
        made of it, in the dtype of that run. Raises ``AdapterError`` where it is neither. Read only
        where there is something to lose: for one adapter alone nothing is compared.
        """
        changed = self._stages or self._start is not self._base
        if not changed or self._name in adapter.trained:
            return False
        copy, base = adapter.replaced[self._name], self._base
        if copy.rows < base.rows and self._mismatch != "error":
            base = take_rows(base, copy.rows)
        so_far = self.result(torch.float32, round_each_adapter=False)
        dtypes = dict.fromkeys((copy.dtype, torch.float16, torch.bfloat16))
        if any(equal_values(copy, base, dtype) for dtype in dtypes):
            return True
        if any(equal_values(copy, so_far, dtype) for dtype in dtypes):
            return False
        raise AdapterError(
            tr(
                "the adapter holds an untrained copy of a tensor that an earlier "
                "adapter changed, and it is of another model"
            ),
            file=adapter.weights,
            tensor=self._name,
            expected=tr("the base's tensor, or what the earlier adapters made of it"),
            found=tr("other values or rows"),
            remedy=tr(
                "give the base that this adapter was trained on; if it trained this "
                'tensor, name its module in "modules_to_save" of adapter_config.json'
            ),
        )

    def _replace(self, adapter: Adapter) -> None:
        tensor = adapter.replaced[self._name]
        rest = self._start.without_digest()
        if tensor.rows < rest.rows and self._mismatch == "keep_base_rows":
            if self._stages:
                dtype = torch.float32
                rest = PatchedTensor(rest.shape, dtype, rest.origin, rest, tuple(self._stages))
            tensor = append_rows(tensor, rest)
        self._start, self._stages = tensor, []

    def _truncate(self, number: int, adapter: Adapter, rows: int) -> None:
        before = self._start.rows
        if rows >= before:
            return
        of_all_rows = (DoraColumnScale, MergedByPeft)
        if any(isinstance(patch, of_all_rows) for stage in self._stages for patch in stage):
            raise self._dora_rows_error(adapter, before, rows)
        self._start = take_rows(self._start, rows)
        self.steps.append(Step(number, "cut", before, rows))

    def _describe_step(self, number: int, stage: tuple[Patch, ...]) -> Step:
        rows = self._start.rows
        for patch in stage:
            if isinstance(patch, LowRank):
                action = tr("added, then scaled (DoRA)") if _is_dora(stage) else "added"
                if isinstance(stage[0], ReplacedRows):
                    action += tr(", after rows were replaced")
                return Step(number, action, rows, rows, patch.rank, patch.scaling)
            if isinstance(patch, AddedVector):
                return Step(number, "added", rows, rows, None, patch.scaling)
            if isinstance(patch, MergedByPeft):
                return Step(number, MERGED_BY_PEFT, rows, rows)
        return Step(number, tr("rows replaced"), rows, rows)

    def _require_fits(self, adapter: Adapter, stage: tuple[Patch, ...]) -> None:
        shape = self._start.shape
        for patch in stage:
            if isinstance(patch, LowRank):
                same_rows = patch.shape[0] == shape[0]
                if _is_dora(stage) and not same_rows and self._mismatch != "error":
                    raise self._dora_rows_error(adapter, shape[0], patch.shape[0])
                free = self._mismatch != "error" and patch.shape[1:] == shape[1:]
                if patch.shape != shape and not free:
                    raise _size_error(adapter, self._name, shape, patch.shape)
            if isinstance(patch, MergedByPeft) and patch.shape != shape:
                raise _size_error(adapter, self._name, shape, patch.shape)
            if isinstance(patch, AddedVector) and patch.vector.shape != shape:
                raise _size_error(adapter, self._name, shape, patch.vector.shape)
            if isinstance(patch, ReplacedRows):
                self._require_rows(adapter, patch)

    def _require_rows(self, adapter: Adapter, patch: ReplacedRows) -> None:
        shape = self._start.shape
        if patch.replacements.shape[1:] != shape[1:]:
            found = (shape[0], *patch.replacements.shape[1:])
            raise _size_error(adapter, self._name, shape, found)
        if patch.indices and max(patch.indices) >= shape[0]:
            raise AdapterError(
                tr("the adapter trained tokens that the model has no rows for"),
                file=adapter.weights,
                tensor=self._name,
                expected=tr("indices below {shape}", shape=shape[0]),
                found=max(patch.indices),
                remedy=tr(
                    "the vocabulary was grown before the training: give the grown base, "
                    "or save the adapter with PEFT's save_embedding_layers=True"
                ),
            )

    def _dora_rows_error(self, adapter: Adapter, expected: int, found: int) -> AdapterError:
        return AdapterError(
            tr(
                "a DoRA of the vocabulary, or what PEFT merges into it, fits only "
                "the rows that it was trained with"
            ),
            file=adapter.weights,
            tensor=self._name,
            expected=tr("{expected} rows, as in the base model", expected=expected),
            found=tr("{found} rows", found=found),
            remedy=tr(
                "give the base with the rows that the adapter was trained on; its "
                "norms go over all of them"
            ),
        )


def _is_dora(stage: tuple[Patch, ...]) -> bool:
    return any(isinstance(patch, (DoraRowScale, DoraColumnScale)) for patch in stage)


def count_vocabulary_rows(adapter: Adapter) -> int | None:
    """Rows of the vocabulary that an adapter was trained with; None where it does not say."""
    for name in VOCABULARY_TENSORS:
        if name in adapter.replaced:
            return adapter.replaced[name].rows
    return count_low_rank_rows(adapter)


def count_low_rank_rows(adapter: Adapter) -> int | None:
    """Rows of what an adapter adds to the vocabulary, None where it adds nothing."""
    products = adapter.low_rank
    return next((products[name].shape[0] for name in VOCABULARY_TENSORS if name in products), None)


def _require_fits(adapter: Adapter, tensors: Mapping[str, LazyTensor]) -> None:
    for name in (*adapter.added, *adapter.replaced):
        if name not in tensors:
            raise _not_in_base_error(adapter, name, tensors)
    for name, tensor in adapter.replaced.items():
        free_rows = name in VOCABULARY_TENSORS  # checked together with the tokenizer
        base_shape = tensors[name].shape
        if tensor.shape[1:] != base_shape[1:] or not (free_rows or tensor.shape == base_shape):
            raise _size_error(adapter, name, base_shape, tensor.shape)


def _not_in_base_error(
    adapter: Adapter, name: str, tensors: Mapping[str, LazyTensor]
) -> AdapterError:
    if name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in tensors:
        return AdapterError(
            tr("the adapter changes a bias that the base model does not have"),
            file=adapter.weights,
            tensor=name,
            expected=tr("a base whose layers have biases"),
            remedy=tr(
                "give the base that the adapter was trained on; without that bias "
                "there is nothing to merge it into"
            ),
        )
    return AdapterError(
        tr("the adapter is for a tensor that the base model does not have"),
        file=adapter.weights,
        tensor=name,
        expected=tr("a name of the base model, such as model.layers.0.self_attn.q_proj.weight"),
        remedy=tr(
            "the adapter was trained on another model: give the base that its "
            "author names ({base_model_name_or_path})",
            base_model_name_or_path=adapter.config.base_model_name_or_path or tr("not recorded"),
        ),
        topic=Topic.SIZES,
    )


def _size_error(
    adapter: Adapter, name: str, expected: tuple[int, ...], found: tuple[int, ...]
) -> AdapterError:
    return AdapterError(
        tr("the adapter was trained on a model of another size"),
        file=adapter.weights,
        tensor=name,
        expected=tr("{expected}, as in the base model", expected=expected),
        found=found,
        remedy=tr(
            "give the base that the adapter was trained on, for instance a 13B "
            "base for a 13B adapter"
        ),
        topic=Topic.SIZES,
    )


def _require_not_merged_yet(adapter: Adapter, base: Checkpoint) -> None:
    """Refuse a base whose vocabulary tensors are this adapter's already."""
    pairs = [
        (base.tensors[name], adapter.replaced[name])
        for name in VOCABULARY_TENSORS
        if name in adapter.trained and name in base.tensors
    ]
    if not adapter.added or not pairs:
        return
    if all(equal_values(ours, _cast(theirs, ours.dtype)) for ours, theirs in pairs):
        raise AdapterError(
            tr("the base model holds this adapter already; merging it again would add it twice"),
            file=adapter.weights,
            tensor=next(name for name in VOCABULARY_TENSORS if name in adapter.trained),
            expected=tr("a base whose embeddings differ from the adapter's"),
            found=tr("the same {rows} rows in both", rows=pairs[0][1].rows),
            remedy=tr("give the original base model, not the merged one"),
        )


def _cast(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    return PatchedTensor(tensor.shape, dtype, tensor.origin, tensor)
