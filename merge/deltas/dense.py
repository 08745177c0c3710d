"""Dense deltas: a whole model less its base, tensor by tensor, as Vicuna was published.

``base + delta`` and ``target - base`` are made in float32 and rounded once. A delta with more rows
than the base (FastChat's v0) was made from a base grown by rows of zeros, so the same is done here.

Rounding loses nothing where ``target - base`` has no more digits than the delta's dtype: certainly
where the two differ by a factor of at most two. Else the element comes back with an error of at
most half a unit in the last place of the difference, and one rounding to the dtype of the result.

Other families subtract the mean of the base's rows from new rows (stanford_alpaca), or store the
vocabulary whole (Ziya); ``DeltaForm`` says which.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from ..errors import LayoutError
from ..layouts.llama import EMBED_TOKENS, LM_HEAD
from ..layouts.model_folder import ModelFolder
from ..layouts.opening import open_checkpoint
from ..messages import tr
from ..storage.offload import Offload
from ..tensors.lazy import Checkpoint, LazyTensor, scratch
from ..tensors.patched import Blocks, Patch, PatchedTensor, RowPatch
from .differences import detect_whole_embeddings
from .new_rows import Grown, NewRows


@dataclass(frozen=True)
class Added(Patch):
    """``W += tensor``, of the same shape."""

    tensor: LazyTensor

    def prepare(self, before: Blocks) -> RowPatch:
        read, dtype = self.tensor.reader(), self.tensor.dtype

        def add(block: torch.Tensor, start: int, stop: int) -> object:
            rows = scratch("dense", tuple(block.shape), dtype)
            read(start, stop, rows)
            return block.add_(rows)

        return add


class ElementSum:
    """The sum of all elements that pass, in float64."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0.0

    def add(self, value: float) -> None:
        """Add the sum of a block."""
        with self._lock:
            self.value += value


@dataclass(frozen=True)
class Summed(Patch):
    """Changes nothing, and adds up the elements (float32, before they are rounded)."""

    total: ElementSum

    def prepare(self, before: Blocks) -> RowPatch:
        def add_up(block: torch.Tensor, start: int, stop: int) -> object:
            self.total.add(float(block.sum(dtype=torch.float64)))
            return block

        return add_up


class Losses:
    """How many elements will not come back when a delta is added to its base, and how far off."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.elements = 0
        self.largest = 0.0

    def add(self, differences: torch.Tensor) -> None:
        """Count the elements of a block that are not zero."""
        elements, largest = int(differences.count_nonzero()), float(differences.abs().max())
        with self._lock:
            self.elements += elements
            self.largest = max(self.largest, largest)


@dataclass(frozen=True)
class Subtracted(Patch):
    """``W -= tensor``, of the same shape; what ``dtype`` cannot hold of it is counted.

    ``dtype`` is that of the difference, ``target_dtype`` that of W and of what adding gives back.
    """

    tensor: LazyTensor
    dtype: torch.dtype
    target_dtype: torch.dtype
    losses: Losses

    def prepare(self, before: Blocks) -> RowPatch:
        read, given = self.tensor.reader(), self.tensor.dtype

        def subtract(block: torch.Tensor, start: int, stop: int) -> object:
            shape = tuple(block.shape)
            rows = scratch("dense", shape, given)
            read(start, stop, rows)
            target = scratch("dense target", shape, torch.float32).copy_(block)
            block.sub_(rows)
            restored = scratch("dense restored", shape, torch.float32)
            restored.copy_(scratch("dense rounded", shape, self.dtype).copy_(block)).add_(rows)
            again = scratch("dense again", shape, self.target_dtype).copy_(restored)
            self.losses.add(restored.copy_(again).sub_(target))
            return block

        return subtract


@dataclass(frozen=True)
class DeltaForm:
    """How a delta stores what a plain difference leaves open.

    ``embeddings`` is one of ``job_settings.DELTA_EMBEDDINGS``. ``new_token_init`` says what was
    subtracted from rows that the base lacks: ``zeros``, or the ``mean`` of the base's rows.
    """

    embeddings: str = "auto"
    new_token_init: str = "zeros"


@dataclass(frozen=True)
class DenseResult:
    """A whole model made of two: its tensors, those that only one has, and the rows it grew by.

    ``whole`` are tensors of the vocabulary that the delta stores whole, and why that is thought.
    ``losses`` counts, as the tensors are read, what a difference cannot bring back, and ``total``
    adds up the elements of a sum.
    """

    tensors: Mapping[str, LazyTensor]
    extra: Mapping[str, LazyTensor]
    grown: int
    whole: Mapping[str, str] = field(default_factory=dict)
    losses: Losses = field(default_factory=Losses)
    total: ElementSum = field(default_factory=ElementSum)

    @property
    def tied(self) -> bool:
        """Whether there is no LM head of its own."""
        return LM_HEAD not in self.tensors


def open_model(
    folder: ModelFolder,
    offload: Offload,
    keep_extra: bool = False,
    context_length: int | None = None,
) -> Checkpoint:
    """Open a delta or a model that may hold more than a LLaMA does, such as LLaVA's projector.

    Raises ``LayoutError`` naming the tensors unless ``keep_extra``.
    """
    checkpoint = open_checkpoint(folder, offload, context_length, with_extra=True)
    if checkpoint.extra and not keep_extra:
        names = list(checkpoint.extra)
        raise LayoutError(
            tr("the model holds tensors that a LLaMA does not have"),
            file=folder.path,
            tensor=names[0],
            found=", ".join(names[:8])
            + (tr(" and {n_names} more", n_names=len(names) - 8) if names[8:] else ""),
            remedy=tr(
                "apply_delta and make_delta copy them unchanged with "
                "--keep_extra_tensors, if the program that will load the result "
                "knows them"
            ),
        )
    return checkpoint


def add_delta(
    base: Checkpoint,
    delta: Checkpoint,
    dtype: torch.dtype | None,
    form: DeltaForm | None = None,
    sum_up: bool = False,
) -> DenseResult:
    """``base + delta`` in ``dtype``, or in one that holds both where that is None.

    Raises ``LayoutError`` unless both are of one shape; only the delta may have more tokens.
    """
    form = form or DeltaForm()
    pairs = _pair_tensors(base, delta, tr("delta"))
    whole = detect_whole_embeddings(
        {name: ours for name, (ours, _) in pairs.items()}, delta.tensors, form.embeddings
    )
    grown = _count_new_rows(base, delta) if EMBED_TOKENS not in whole else 0
    result = DenseResult({}, _cast(delta.extra, dtype), grown, whole)
    counted = (Summed(result.total),) if sum_up else ()
    steps = (counted,) if counted else ()
    tensors: dict[str, PatchedTensor] = {}
    for name, (ours, theirs) in pairs.items():
        wanted = dtype or torch.promote_types(ours.dtype, theirs.dtype)
        if name in whole:
            tensors[name] = PatchedTensor(theirs.shape, wanted, theirs.origin, theirs, steps)
            continue
        start = _grow_rows(ours, theirs.rows, form.new_token_init)
        origin = f"{ours.origin} plus {theirs.origin}"
        tensors[name] = PatchedTensor(
            start.shape, wanted, origin, start, ((Added(theirs), *counted),)
        )
    return replace(result, tensors=tensors)


def with_delta(
    base: Checkpoint, delta: Checkpoint, form: DeltaForm | None = None
) -> tuple[Checkpoint, DenseResult]:
    """``base + delta`` as a base for adapters: rounded as the published model is, before they are
    added. The configuration is the delta's.
    """
    result = add_delta(base, delta, None, form)
    files, dropped = (*base.files, *delta.files), (*base.dropped, *delta.dropped)
    return Checkpoint(result.tensors, delta.config, files, dropped, delta.notes), result


def subtract_base(
    base: Checkpoint,
    target: Checkpoint,
    dtype: torch.dtype | None,
    form: DeltaForm | None = None,
) -> DenseResult:
    """``target - base`` in ``dtype``; the inverse of ``add_delta`` but for what rounding takes.

    Raises ``LayoutError`` unless both are of one shape; only the target may have more tokens.
    """
    form = form or DeltaForm()
    pairs = _pair_tensors(base, target, tr("target"))
    is_whole = form.embeddings == "whole"
    whole = {name: tr("as asked") for name in (EMBED_TOKENS, LM_HEAD) if is_whole and name in pairs}
    result = DenseResult({}, _cast(target.extra, dtype), _count_new_rows(base, target), whole)
    tensors: dict[str, PatchedTensor] = {}
    for name, (ours, theirs) in pairs.items():
        wanted = dtype or torch.promote_types(ours.dtype, theirs.dtype)
        if name in whole:
            tensors[name] = PatchedTensor(theirs.shape, wanted, theirs.origin, theirs)
            continue
        start = _grow_rows(ours, theirs.rows, form.new_token_init)
        origin = f"{theirs.origin} minus {ours.origin}"
        patch = Subtracted(start, wanted, theirs.dtype, result.losses)
        tensors[name] = PatchedTensor(theirs.shape, wanted, origin, theirs, ((patch,),))
    return replace(result, tensors=tensors)


def _cast(tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None) -> dict[str, LazyTensor]:
    """Floating-point tensors in ``dtype``, all others as they are."""
    return {
        name: PatchedTensor(tensor.shape, dtype, tensor.origin, tensor)
        if dtype is not None and tensor.dtype.is_floating_point
        else tensor
        for name, tensor in tensors.items()
    }


def _count_new_rows(base: Checkpoint, other: Checkpoint) -> int:
    return other.tensors[EMBED_TOKENS].rows - base.tensors[EMBED_TOKENS].rows


def _pair_tensors(
    base: Checkpoint, other: Checkpoint, role: str
) -> dict[str, tuple[LazyTensor, LazyTensor]]:
    """Each tensor of the base beside the other's of that name."""
    ours = dict(base.tensors)
    if LM_HEAD in other.tensors:
        ours.setdefault(LM_HEAD, ours[EMBED_TOKENS])  # tied: the embeddings serve as LM head
    if lonely := [*(ours.keys() - other.tensors.keys()), *(other.tensors.keys() - ours.keys())]:
        raise _other_model_error(
            role,
            min(lonely),
            tr("a tensor in both base and {role}", role=role),
            tr("in one of them"),
        )
    pairs = {}
    for name, theirs in other.tensors.items():
        _require_same_model(role, name, ours[name], theirs)
        pairs[name] = (ours[name], theirs)
    return pairs


def _require_same_model(role: str, name: str, ours: LazyTensor, theirs: LazyTensor) -> None:
    if ours.shape == theirs.shape:
        return
    may_grow = name in (EMBED_TOKENS, LM_HEAD) and ours.shape[1:] == theirs.shape[1:]
    if may_grow and ours.rows < theirs.rows:
        return
    if may_grow:
        raise LayoutError(
            tr("the base has more tokens than the {role}", role=role),
            tensor=name,
            expected=tr("at most {rows} rows in {origin}", rows=theirs.rows, origin=ours.origin),
            found=tr("{rows} rows", rows=ours.rows),
            remedy=tr(
                "give the plain base, without tokens of its own, and check that base "
                "and {role} are not exchanged",
                role=role,
            ),
        )
    raise _other_model_error(
        role, name, tr("{shape}, as in the base", shape=ours.shape), str(theirs.shape)
    )


def _other_model_error(role: str, name: str, expected: str, found: str) -> LayoutError:
    return LayoutError(
        tr("base and {role} are of different models", role=role),
        tensor=name,
        expected=expected,
        found=found,
        remedy=tr(
            "give the base that the {role} was made from: of the same size and architecture",
            role=role,
        ),
    )


def _grow_rows(tensor: LazyTensor, rows: int, init: str) -> LazyTensor:
    """The tensor with rows of zeros, or of its rows' mean, after its own, up to ``rows``.

    A mean is kept in float32, as the tool that subtracts it does.
    """
    if tensor.rows == rows:
        return tensor
    if init == "mean":
        tensor = PatchedTensor(tensor.shape, torch.float32, tensor.origin, tensor)
    new = NewRows(init, ((),) * (rows - tensor.rows), 0.0, 0)
    origin = f"{tensor.origin}, rows of {init}"
    shape = (rows, *tensor.shape[1:])
    return Grown(shape, tensor.dtype, origin, tensor, tensor.rows, new)
