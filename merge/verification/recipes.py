"""Of what each tensor of a result must be made: rows of which inputs, and which steps on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..layouts.llama import EMBED_TOKENS, LM_HEAD
from ..lazy import Checkpoint, LazyTensor
from .adapters import AdapterContents
from .reference import AddDense, AddProduct, AddVector, ReplaceRows, Round, ScaleRows, Step

VOCABULARY = (EMBED_TOKENS, LM_HEAD)


@dataclass(frozen=True)
class Segment:
    """Rows ``first`` to ``last`` of the result: the same rows of ``start``, with ``steps`` on them.

    ``start`` None stands for rows of zeros.
    """

    first: int
    last: int
    start: LazyTensor | None
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How one tensor is made. ``uncovered`` says why its arithmetic cannot be checked, if so."""

    segments: tuple[Segment, ...]
    columns: tuple[int, ...]
    uncovered: str | None = None

    @property
    def rows(self) -> int:
        """Rows that are accounted for."""
        return self.segments[-1].last if self.segments else 0

    def with_step(self, *steps: Step) -> Recipe:
        """The recipe with steps on every row."""
        done = tuple(replace(segment, steps=(*segment.steps, *steps)) for segment in self.segments)
        return replace(self, segments=done)

    def replaced(self, tensor: LazyTensor) -> Recipe:
        """The recipe with ``tensor`` in place of as many rows; rows beyond stay as they are."""
        rest = tuple(
            replace(segment, first=max(segment.first, tensor.rows))
            for segment in self.segments
            if segment.last > tensor.rows
        )
        whole = self.uncovered if rest else None
        return Recipe((Segment(0, tensor.rows, tensor), *rest), tensor.shape[1:], whole)

    def cut(self, rows: int) -> Recipe:
        """The recipe for the first ``rows`` rows."""
        kept = tuple(
            replace(segment, last=min(segment.last, rows))
            for segment in self.segments
            if segment.first < rows
        )
        return replace(self, segments=kept)


@dataclass(frozen=True)
class Inputs:
    """What a result was made of. ``sign`` is -1 where ``base`` was taken from ``dense``."""

    base: Checkpoint
    dense: Checkpoint | None = None
    sign: int = 1
    adapters: tuple[AdapterContents, ...] = ()
    round_each: bool = False


def recipes(
    inputs: Inputs, result: Mapping[str, LazyTensor]
) -> tuple[dict[str, Recipe], list[str]]:
    """The recipe of each tensor of ``result``, and the names that should be there and are not."""
    starts = _starts(inputs)
    tied = _ties(inputs)
    if tied and LM_HEAD in result and LM_HEAD not in starts:
        starts[LM_HEAD] = starts[EMBED_TOKENS]
    stays = tied and _stays_tied(inputs.adapters)
    made = {}
    for name, tensor in result.items():
        source = EMBED_TOKENS if name == LM_HEAD and stays else name
        if source in starts:
            recipe = _with_adapters(source, starts[source], inputs, tensor.dtype, tied)
            made[name] = recipe.cut(tensor.rows)
    return made, [name for name in starts if name not in result and not (tied and name == LM_HEAD)]


def _ties(inputs: Inputs) -> bool:
    checkpoint = inputs.dense or inputs.base
    return bool(checkpoint.config.get("tie_word_embeddings"))


def _stays_tied(adapters: Sequence[AdapterContents]) -> bool:
    """Whether the LM head follows the embeddings: every adapter that touches these says so."""
    touching = [a for a in adapters if a.touches(EMBED_TOKENS) or a.touches(LM_HEAD)]
    return bool(touching) and all(a.ties and not a.touches(LM_HEAD) for a in touching)


def _starts(inputs: Inputs) -> dict[str, Recipe]:
    """The base, or its sum or difference with a dense model."""
    base = {name: _plain(tensor) for name, tensor in inputs.base.tensors.items()}
    if inputs.dense is None:
        return base | {name: _plain(tensor) for name, tensor in inputs.base.extra.items()}
    if inputs.base.config.get("tie_word_embeddings"):
        base.setdefault(LM_HEAD, base[EMBED_TOKENS])
    made = {}
    for name, dense in inputs.dense.tensors.items():
        if inputs.sign < 0:
            made[name] = _difference(dense, inputs.base.tensors.get(name))
            continue
        recipe = base[name]
        if dense.rows > recipe.rows:
            grown = Segment(recipe.rows, dense.rows, None)
            recipe = replace(recipe, segments=(*recipe.segments, grown))
        made[name] = recipe.with_step(AddDense(dense, 1))
        if inputs.adapters:
            ours = inputs.base.tensors[name if name in inputs.base.tensors else EMBED_TOKENS]
            dtype = torch.promote_types(ours.dtype, dense.dtype)
            made[name] = made[name].with_step(Round(dtype))
    return made | {name: _plain(tensor) for name, tensor in inputs.dense.extra.items()}


def _difference(target: LazyTensor, base: LazyTensor | None) -> Recipe:
    """``target - base``; rows that the base lacks are the target's own."""
    plain = _plain(target)
    if base is None:
        return replace(plain, uncovered="the base has no such tensor")
    head = Segment(0, base.rows, target, (AddDense(base, -1),))
    tail = Segment(base.rows, target.rows, target)
    return replace(plain, segments=(head, tail) if target.rows > base.rows else (head,))


def _plain(tensor: LazyTensor) -> Recipe:
    return Recipe((Segment(0, tensor.rows, tensor),), tensor.shape[1:])


def _with_adapters(
    name: str, recipe: Recipe, inputs: Inputs, dtype: torch.dtype, tied: bool
) -> Recipe:
    for number, adapter in enumerate(inputs.adapters):
        if name in adapter.whole:
            recipe = recipe.replaced(adapter.whole[name])
        before = recipe
        recipe = _added(name, recipe, adapter, tied)
        last = number == len(inputs.adapters) - 1
        if inputs.round_each and not last and recipe is not before:
            recipe = recipe.with_step(Round(dtype))
    return recipe


def _added(name: str, recipe: Recipe, adapter: AdapterContents, tied: bool) -> Recipe:
    """What one adapter adds to a tensor: product, magnitude, trained rows, in this order."""
    product = adapter.products.get(name)
    if product is not None:
        recipe = recipe.with_step(AddProduct(product))
    if name in adapter.magnitudes and product is not None:
        if product.is_embedding:
            recipe = replace(recipe, uncovered="DoRA of embeddings: its norms go over all rows")
        else:
            recipe = recipe.with_step(ScaleRows(adapter.magnitudes[name]))
    if name in adapter.vectors:
        recipe = recipe.with_step(AddVector(*adapter.vectors[name]))
    rows = adapter.rows.get(name)
    if rows is None and tied and name == LM_HEAD and not adapter.touches(LM_HEAD):
        rows = adapter.rows.get(EMBED_TOKENS)
    return recipe.with_step(ReplaceRows(*rows)) if rows is not None else recipe
