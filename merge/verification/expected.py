"""What the inputs of a result make of each of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import AdapterError, LayoutError
from ..layouts.conv1d import stores_transposed
from ..layouts.decoder import HEAD_OF, embeddings
from ..layouts.llama import EMBED_TOKENS
from ..messages import tr
from ..tensors.lazy import Checkpoint, LazyTensor, block_rows
from .adapters import AdapterContents
from .by_peft import merge_again
from .expected_tensor import ExpectedTensor, RowSegment
from .reference import (
    AddDense,
    AddMean,
    AddProduct,
    AddVector,
    ReplaceRows,
    Round,
    ScaleRows,
    to_float64,
)
from .repeated_layers import RepeatedLayers

# Rows that tell whether a delta stores the vocabulary whole, and the cosine from which it does.
_DETECTION_ROWS = 256
_DETECTION_COSINE = 0.6


@dataclass(frozen=True)
class VocabularyGrowth:
    """Rows for new tokens: as many as make ``tokens`` of them, rounded up to ``multiple``.

    ``known`` are those of the model that have a token, where rows beyond are made anew too.
    """

    tokens: int
    multiple: int = 1
    known: int | None = None

    def count_rows(self, rows: int) -> int:
        """Rows of the result, where the inputs have ``rows``."""
        return -(-max(rows, self.tokens) // self.multiple) * self.multiple


@dataclass(frozen=True)
class MergeInputs:
    """What a result was made of. ``sign`` is -1 where ``base`` was taken from ``dense``.

    ``dtype`` is that of the sums where the container has another one, as GGUF may: None keeps
    that of the base. ``truncate`` says that rows of the vocabulary which an adapter lacks were
    dropped; else they are the model's. ``growth`` is None where no rows were added for new tokens.
    ``delta_embeddings`` says how ``dense`` stores the vocabulary, ``delta_mean`` that rows which
    the base lacks are less the mean of its rows.
    """

    base: Checkpoint
    dense: Checkpoint | None = None
    sign: int = 1
    adapters: tuple[AdapterContents, ...] = ()
    round_each: bool = False
    dtype: torch.dtype | None = None
    truncate: bool = False
    growth: VocabularyGrowth | None = None
    delta_embeddings: str = "auto"
    delta_mean: bool = False
    repeated: RepeatedLayers = field(default_factory=RepeatedLayers)

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration that says whether LM head and embeddings are one."""
        return (self.dense or self.base).config

    @property
    def embeddings(self) -> str:
        """Name of the embeddings."""
        return embeddings(self.base.tensors) or EMBED_TOKENS

    @property
    def head(self) -> str:
        """Name of the LM head."""
        return HEAD_OF[self.embeddings]

    def is_vocabulary(self, name: str) -> bool:
        """Whether a tensor has a row for each token."""
        return name in (self.embeddings, self.head)


@dataclass(frozen=True)
class ExpectedModel:
    """What inputs make of a result: how each tensor comes about, as far as its rows go, and its
    shape; names that are ``missing`` in the result, and those in it that no input has.
    """

    tensors: dict[str, ExpectedTensor]
    shapes: dict[str, tuple[int, ...]]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]


def build_expected_model(
    inputs: MergeInputs, result: Mapping[str, LazyTensor], in_gguf: bool = False
) -> ExpectedModel:
    """What ``inputs`` make of each tensor of ``result``.

    Raises ``AdapterError`` for an adapter whose shapes do not fit the model.
    """
    starts = _add_score_layer(_build_starts(inputs), inputs)
    head = inputs.head
    tied = bool(inputs.config.get("tie_word_embeddings"))
    if tied and head in result and head not in starts:
        starts[head] = starts[inputs.embeddings]
    tensors, shapes = {}, {}
    for name, tensor in result.items():
        if name not in starts:
            continue
        expected = _apply_adapters(name, starts[name], inputs, tensor.dtype, tied)
        if in_gguf:
            own = inputs.base.tensors.get(name, inputs.base.tensors[inputs.embeddings])
            expected = _round_to_dtype(expected, inputs.dtype or own.dtype)
        shapes[name] = _expect_shape(expected, inputs, name, tensor)
        if shapes[name][1:] != tensor.shape[1:]:
            expected = replace(expected, uncovered=tr("it has another shape than its inputs give"))
        tensors[name] = expected.take_rows(tensor.rows)
    optional = head if tied else None
    return ExpectedModel(
        tensors,
        shapes,
        tuple(name for name in starts if name not in result and name != optional),
        tuple(name for name in result if name not in tensors),
    )


def _add_score_layer(
    starts: dict[str, ExpectedTensor], inputs: MergeInputs
) -> dict[str, ExpectedTensor]:
    """What a classifier begins with: a score layer, the base's or an adapter's, and no LM head."""
    layers = ("score.weight", "score.bias")
    classifiers = (a for a in inputs.adapters if str(a.config.get("task_type")).endswith("_CLS"))
    adapters = [adapter.whole for adapter in classifiers]
    if "score.weight" not in {*starts, *(name for whole in adapters for name in whole)}:
        return starts
    tensors = {name: expected for name, expected in starts.items() if name != inputs.head}
    for whole in adapters:
        for name in layers:
            if name in whole:
                tensors.setdefault(name, _carry_over(whole[name]))
    return tensors


def _expect_shape(
    expected: ExpectedTensor, inputs: MergeInputs, name: str, found: LazyTensor
) -> tuple[int, ...]:
    """The shape that a tensor must have, which for the vocabulary depends on the tokenizer too."""
    growth = inputs.growth if inputs.is_vocabulary(name) else None
    rows = growth.count_rows(expected.rows) if growth is not None else expected.rows
    return (rows, *expected.columns) if found.shape else ()


def _round_to_dtype(expected: ExpectedTensor, dtype: torch.dtype) -> ExpectedTensor:
    """Sums are rounded to ``dtype`` before a container rounds them to its own."""
    segments = tuple(
        replace(segment, steps=(*segment.steps, Round(dtype)))
        if segment.steps or (segment.start is not None and segment.start.dtype != dtype)
        else segment
        for segment in expected.segments
    )
    return replace(expected, segments=segments)


def _keeps_tied(adapter: AdapterContents, inputs: MergeInputs) -> bool:
    """Whether LM head and embeddings are still one after this adapter: it asks for that, or changes
    neither side but by trained rows, which both sides get.
    """
    changed = {*adapter.products, *adapter.whole}
    untouched = inputs.embeddings not in changed and not adapter.touches(inputs.head)
    return adapter.ties or untouched


def _build_starts(inputs: MergeInputs) -> dict[str, ExpectedTensor]:
    """The base, or its sum or difference with a dense model."""
    base = {name: _carry_over(tensor) for name, tensor in inputs.base.tensors.items()}
    if inputs.growth is not None and inputs.growth.known is not None:
        for name in base.keys() & {inputs.embeddings, inputs.head}:
            base[name] = base[name].take_rows(inputs.growth.known)
    if inputs.dense is None:
        return base | {name: _carry_over(tensor) for name, tensor in inputs.base.extra.items()}
    if inputs.base.config.get("tie_word_embeddings"):
        base.setdefault(inputs.head, base[inputs.embeddings])
    tensors = {}
    for name, dense in inputs.dense.tensors.items():
        _require_same_model(name, dense, base.get(name), inputs)
        ours = inputs.base.tensors.get(name, inputs.base.tensors[inputs.embeddings])
        if inputs.is_vocabulary(name) and _stores_whole(dense, ours, inputs):
            tensors[name] = _carry_over(dense)
            continue
        if inputs.sign < 0:
            tensors[name] = _subtract_base(dense, inputs.base.tensors.get(name), inputs.delta_mean)
            continue
        expected = base[name]
        if dense.rows > expected.rows:
            filling = (AddMean(ours, 1),) if inputs.delta_mean else ()
            grown = RowSegment(expected.rows, dense.rows, None, filling)
            expected = replace(expected, segments=(*expected.segments, grown))
        tensors[name] = expected.with_step(AddDense(dense, 1))
        if inputs.adapters:
            dtype = torch.promote_types(ours.dtype, dense.dtype)
            tensors[name] = tensors[name].with_step(Round(dtype))
    return tensors | {name: _carry_over(tensor) for name, tensor in inputs.dense.extra.items()}


def _require_same_model(
    name: str, dense: LazyTensor, base: ExpectedTensor | None, inputs: MergeInputs
) -> None:
    """Raise ``LayoutError`` unless a delta can be added to the base, or a target be its sum.

    Only the vocabulary may have more rows than the base.
    """
    ours = (base.rows, *base.columns) if base is not None else None
    more = inputs.is_vocabulary(name) and ours is not None and dense.rows > ours[0]
    if ours is None and inputs.sign < 0:
        return
    if ours is None or dense.shape[1:] != ours[1:] or not (more or dense.rows == ours[0]):
        raise LayoutError(
            tr("base and delta are of different models, so the arithmetic cannot be checked"),
            file=dense.path,
            tensor=name,
            expected=tr("shape {ours}, as in the base", ours=ours)
            if ours
            else tr("a tensor that the base has"),
            found=tr("shape {shape}", shape=dense.shape),
            remedy=tr("give both as they were when the result was made"),
        )


def _stores_whole(dense: LazyTensor, base: LazyTensor, inputs: MergeInputs) -> bool:
    """Whether a dense model stores a tensor of the vocabulary as it is, and not as a difference.

    Where no option says it, the first rows of both are compared.
    """
    if inputs.delta_embeddings != "auto" or inputs.sign < 0:
        return inputs.delta_embeddings == "whole"
    rows = min(dense.rows, base.rows, _DETECTION_ROWS)
    ours, theirs = (to_float64(t.without_digest().read(0, rows)).flatten() for t in (base, dense))
    sizes = float(ours.norm()), float(theirs.norm())
    aligned = float(ours @ theirs) > _DETECTION_COSINE * sizes[0] * sizes[1]
    return aligned and sizes[1] > sizes[0] / 3


def _subtract_base(target: LazyTensor, base: LazyTensor | None, mean: bool) -> ExpectedTensor:
    """``target - base``; rows that the base lacks are the target's own, less its rows' ``mean``."""
    plain = _carry_over(target)
    if base is None:
        return replace(plain, uncovered=tr("the base has no such tensor"))
    head = RowSegment(0, base.rows, target, (AddDense(base, -1),))
    tail = RowSegment(base.rows, target.rows, target, (AddMean(base, -1),) if mean else ())
    return replace(plain, segments=(head, tail) if target.rows > base.rows else (head,))


def _carry_over(tensor: LazyTensor) -> ExpectedTensor:
    return ExpectedTensor((RowSegment(0, tensor.rows, tensor),), tensor.shape[1:])


def _apply_adapters(
    name: str, expected: ExpectedTensor, inputs: MergeInputs, dtype: torch.dtype, tied: bool
) -> ExpectedTensor:
    """What all adapters make of a tensor; ``tied`` says that the base's LM head is its embeddings.

    An LM head that an adapter has nothing of follows the embeddings where the adapter asks for it.
    Raises ``AdapterError`` for parts that do not fit.
    """
    sides, plain = (inputs.embeddings, inputs.head), expected
    for number, adapter in enumerate(inputs.adapters):
        is_head = tied and name == inputs.head
        follows = is_head and adapter.ties and not adapter.touches(name)
        source = inputs.embeddings if follows else name
        if name in adapter.new_rows and adapter.new_rows[name].shape[1:] == expected.columns:
            expected = expected.with_rows_after(adapter.new_rows[name])
        _require_fit(source, expected, adapter, name in sides)
        if source in adapter.whole:
            copy = adapter.whole[source]
            sisters = sides if adapter.ties and source in sides else (source,)
            trained = any(map(adapter.trains, sisters))
            kept = expected != plain and not trained and _is_copy(copy, plain)
            expected = expected if kept else expected.with_replacement(copy)
        trained_with = adapter.count_vocabulary_rows(sides)
        if inputs.truncate and name in sides and trained_with is not None:
            expected = expected.take_rows(trained_with)
        before = expected
        rows = adapter.rows.get(source)
        if is_head and rows is None and name not in adapter.whole:
            rows = adapter.rows.get(inputs.embeddings)
        if rows is not None:
            expected = expected.with_step(ReplaceRows(*rows))
        expected = _apply_adapter(source, expected, adapter, inputs)
        if adapter.peft is not None:
            expected = _ask_peft(source, expected, number, inputs)
        last = number == len(inputs.adapters) - 1
        if inputs.round_each and not last and expected is not before:
            expected = expected.with_step(Round(dtype))
        tied = tied and _keeps_tied(adapter, inputs)
    return expected


def _ask_peft(
    name: str, expected: ExpectedTensor, number: int, inputs: MergeInputs
) -> ExpectedTensor:
    """What PEFT's merge makes of a tensor, where what it is given is known to the bit."""
    adapter, earlier = inputs.adapters[number], inputs.adapters[:number]
    whole = len(expected.segments) == 1 and not expected.segments[0].steps

    def find_start(other: str) -> LazyTensor | None:
        if other == name:
            return expected.segments[0].start if whole else None
        changed = inputs.dense is not None or any(a.touches(other) or a.peft for a in earlier)
        return adapter.whole.get(other, None if changed else inputs.base.tensors.get(other))

    again = merge_again(adapter, name, (expected.rows, *expected.columns), find_start)
    if isinstance(again, str):
        return replace(expected, uncovered=again)
    return expected if again is None else expected.with_replacement(again)


def _is_copy(tensor: LazyTensor, plain: ExpectedTensor) -> bool:
    """Whether a tensor is the base's own, perhaps rounded: it then takes nothing away from what
    earlier adapters did.
    """
    start = plain.segments[0].start
    if start is None or plain.segments[0].steps or tensor.rows > start.rows:
        return False
    ours, theirs = start.without_digest().reader(), tensor.without_digest().reader()
    step = block_rows(tensor.shape)
    same = {tensor.dtype, torch.float16, torch.bfloat16}
    for first in range(0, tensor.rows, step):
        shape = (min(step, tensor.rows - first), *tensor.shape[1:])
        base, copy = torch.empty(shape, dtype=start.dtype), torch.empty(shape, dtype=tensor.dtype)
        ours(first, first + shape[0], base)
        theirs(first, first + shape[0], copy)
        same = {dtype for dtype in same if torch.equal(base.to(dtype).float(), copy.float())}
        if not same:
            return False
    return True


def _require_fit(
    name: str, expected: ExpectedTensor, adapter: AdapterContents, free_rows: bool
) -> None:
    """Raise ``AdapterError`` for parts that are no part of a tensor of this shape."""
    ours = (expected.rows, *expected.columns)
    for theirs in adapter.list_shapes(name):
        fits = theirs[1:] == ours[1:] if free_rows else theirs == ours
        if not fits and theirs != ours[::-1]:  # some models keep their matrices transposed
            raise AdapterError(
                tr("the adapter does not fit the model, so the arithmetic cannot be checked"),
                file=adapter.weights,
                tensor=name,
                expected=tr("shape {ours}", ours=ours),
                found=tr("shape {theirs}", theirs=theirs),
                remedy=tr("give base and adapters of the merge, in their order"),
            )


def _apply_adapter(
    name: str, expected: ExpectedTensor, adapter: AdapterContents, inputs: MergeInputs
) -> ExpectedTensor:
    """What one adapter adds to a tensor, whose trained rows are in place: product and magnitude."""
    product = adapter.products.get(name)
    if product is not None:
        transposed = product.is_transposed or stores_transposed(inputs.config, name)
        product = replace(product, is_transposed=transposed)
        expected = expected.with_step(AddProduct(product))
    if name in adapter.magnitudes and product is not None:
        if product.is_transposed:
            why = tr("DoRA over columns: its norms go over all rows")
            expected = replace(expected, uncovered=why)
        else:
            expected = expected.with_step(ScaleRows(adapter.magnitudes[name]))
    if name in adapter.vectors:
        expected = expected.with_step(AddVector(*adapter.vectors[name]))
    return expected
