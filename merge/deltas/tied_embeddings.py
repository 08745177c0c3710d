"""Embeddings that serve as the LM head too, and whether they still do after a merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

from ..errors import LayoutError
from ..layouts.decoder import HEAD_OF, embeddings
from ..messages import tr
from ..tensors.lazy import Checkpoint, LazyTensor
from ..tensors.patched import Patch, PatchedTensor
from .adapter import Adapter
from .patches import ReplacedRows
from .saved_modules import equal_values


class TiedPair(NamedTuple):
    """The names of tied embeddings and of the LM head that they serve as."""

    embeddings: str
    head: str


def find_tied_sides(base: Checkpoint) -> TiedPair | None:
    name = embeddings(base.tensors)
    tied = name is not None and base.config.get("tie_word_embeddings")
    return TiedPair(name, HEAD_OF[name]) if name is not None and tied else None


def require_equal_sides(tensors: Mapping[str, LazyTensor], sides: TiedPair) -> None:
    """A tied model may hold its embeddings twice, but not two different versions of them."""
    head = tensors.get(sides.head)
    if head is not None and not equal_values(tensors[sides.embeddings], head):
        raise LayoutError(
            tr("the base model's config.json ties the LM head to the embeddings, but they differ"),
            tensor=head.origin,
            expected=tr("the same values as {embeddings}", embeddings=sides.embeddings),
            remedy=tr(
                'write "tie_word_embeddings": false into config.json if the LM head '
                "is meant (an earlier merge may have forgotten it), else remove the "
                "tensor"
            ),
        )


def mirror_to_lm_head(adapter: Adapter, sides: TiedPair) -> Adapter:
    """The adapter with what it did to tied embeddings on the LM head too, where PEFT does so.

    Trained token rows are shared by both sides; a LoRA of the head goes around them, so its product
    is added after they are replaced (PEFT's ``TrainableTokensWrapper`` is the LoRA's base layer).
    With ``ensure_weight_tying`` the head follows in everything that it has no tensors of its own
    for, and was trained where the embeddings were. A head that the adapter holds whole, or with
    rows of its own, is left as it is.
    """
    added, replaced = dict(adapter.added), dict(adapter.replaced)
    if adapter.config.ensure_weight_tying and adapter.trained & {*sides}:
        adapter = replace(adapter, trained=adapter.trained | {*sides})
    stage, own = added.get(sides.embeddings, ()), added.get(sides.head, ())
    if sides.head in replaced or any(isinstance(patch, ReplacedRows) for patch in own):
        return adapter
    if adapter.config.ensure_weight_tying and not own:
        if sides.embeddings in replaced:
            replaced[sides.head] = replaced[sides.embeddings]
    else:
        stage = tuple(patch for patch in stage if isinstance(patch, ReplacedRows))
    if stage:
        added[sides.head] = (*stage, *own)
    return replace(adapter, added=added, replaced=replaced)


def have_same_values(one: PatchedTensor, other: PatchedTensor) -> bool:
    """Whether both sides are the same so far, so that one tensor still serves as both."""
    return (
        len(one.patches_by_adapter) == len(other.patches_by_adapter)
        and all(map(_same_stage, one.patches_by_adapter, other.patches_by_adapter))
        and equal_values(one.start, other.start)
    )


def _same_stage(one: Sequence[Patch], other: Sequence[Patch]) -> bool:
    return len(one) == len(other) and all(map(_same_patch, one, other))


def _same_patch(one: Patch, other: Patch) -> bool:
    if type(one) is not type(other):
        return False
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)]  # type: ignore[arg-type]
    return all(equal_values(a, b) if isinstance(a, LazyTensor) else bool(a == b) for a, b in pairs)
