"""Everything that can be said of a result on disk: files, tensors, arithmetic, vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from ..checksums.files import file_digest, read_digest
from ..engines.threads import ComputePool, one_torch_thread
from ..errors import MergeError, VerificationError
from ..layouts.decoder import VOCABULARY_TENSORS, embedding_rows
from ..layouts.model_folder import ModelFolder
from ..settings import OnProgress
from ..tensors.lazy import Checkpoint, LazyTensor, dtype_name
from . import configuration
from .elementwise import Exactness, TensorResult, blocks_of, check_tensor
from .manifest import Manifest, TensorEntry, check_files, listed_files
from .recipes import ExpectedModel, ExpectedTensor, Inputs, wanted
from .ulps import ulp_text

_ROWS = (
    "merge again; rows that --vocab_mismatch or --new_token_init gave are right only where the "
    "manifest says so, or the options of the check"
)
_MERGE_AGAIN = "merge again; if it comes back, report it with the manifest"


@dataclass
class Findings:
    """What is wrong (``faults``), what was checked, and what could not be.

    ``exactness`` covers all elements that were compared with float64, ``furthest`` names the tensor
    in which they are least exact.
    """

    faults: list[MergeError] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    exactness: Exactness = field(default_factory=Exactness)
    furthest: str | None = None

    def take(self, compared: configuration.Compared) -> None:
        """Add what was found out about the configuration."""
        self.faults += compared.faults
        self.unchecked += compared.unchecked


def check_result(
    folder: Path,
    result: Checkpoint,
    manifest: Manifest | None,
    inputs: Inputs | None,
    workers: int,
    on_progress: OnProgress | None = None,
) -> Findings:
    """Read a result once, with its inputs beside it, and hold it against both.

    Files are hashed beside the tensors, in the same order, so the disk is asked once as long as
    the page cache holds what lies between the two. Without ``inputs`` only digests are checked.
    """
    found = Findings()
    entries = manifest.tensors if manifest is not None else {}
    found.faults += _names(result, entries, folder) if manifest is not None else []
    tensors, made = _all(result), {}
    if inputs is not None:
        tensors = _as_read(result, inputs)
        due = wanted(inputs, tensors, ModelFolder(folder).is_gguf)
        found.faults += _shapes(folder, tensors, due, inputs, entries)
        made, tensors = due.recipes, _without_same_head(tensors, result, due, inputs)
        found.take(_configuration(folder, result, manifest is not None, inputs))
    others: list[TensorResult] = []
    worst = Exactness()
    progress = _Progress(on_progress, _total(tensors, made) + _file_bytes(folder, manifest))
    with (
        ThreadPoolExecutor(1) as hashing,
        ComputePool(workers) as pool,
        progress.ending(),
        one_torch_thread(),
    ):
        files = hashing.submit(_files, folder, manifest, progress.add)
        for name, tensor in tensors.items():
            base = inputs.base.tensors.get(name) if inputs is not None else None
            try:
                checked = check_tensor(name, tensor, made.get(name), base, pool, progress.add)
            except MergeError as error:
                if not _is_of(folder, error):
                    raise
                found.faults.append(error)
                continue
            found.faults += _digests(checked, tensor, entries, folder)
            if _has_other_base(checked, manifest):
                others.append(checked)
            else:
                found.faults += _numbers(checked, tensor)
                worst = _count_exactness(found, checked, worst)
            if inputs is not None:
                found.unchecked += [f"{name}: {why}" for why in checked.unchecked]
        found.faults[:0] = [*files.result(), *_other_inputs(others, manifest, inputs)]
    if manifest is not None and (bare := manifest.tensors.keys() - _digested(manifest)):
        found.unchecked.append(f"content of {len(bare)} tensors: the manifest has no digest of it")
    found.checked += _told(result, manifest, inputs, found)
    return found


def _count_exactness(found: Findings, checked: TensorResult, worst: Exactness) -> Exactness:
    """Add a tensor's exactness to the findings; return that of the least exact one so far."""
    own = checked.exactness
    found.exactness.add(own)
    if (own.max_ulp, -own.share) <= (worst.max_ulp, -worst.share):
        return worst
    found.furthest = checked.name
    return own


def _digested(manifest: Manifest) -> set[str]:
    """The tensors whose content the manifest tells."""
    return {name for name, entry in manifest.tensors.items() if entry.digest is not None}


def _is_of(folder: Path, error: MergeError) -> bool:
    """Whether what could not be read is the result itself, and no input."""
    return Path(error.facts.get("file", "")).parent == folder


def _all(result: Checkpoint) -> dict[str, LazyTensor]:
    return {**result.tensors, **result.extra}


def _configuration(
    folder: Path, result: Checkpoint, is_ours: bool, inputs: Inputs
) -> configuration.Compared:
    """What the numbers beside the weights are; a manifest's digests hold for those of GGUF."""
    if is_ours and ModelFolder(folder).is_gguf:
        return configuration.Compared()
    rows = embedding_rows(result.tensors)
    return configuration.check(folder, result, inputs, is_ours, rows)


def _as_read(result: Checkpoint, inputs: Inputs) -> dict[str, LazyTensor]:
    """The tensors as readers take them: the embeddings are the LM head where the result ties it."""
    tensors = _all(result)
    if result.config.get("tie_word_embeddings") and inputs.embeddings in tensors:
        tensors[inputs.head] = tensors[inputs.embeddings]
    return tensors


def _without_same_head(
    tensors: Mapping[str, LazyTensor], result: Checkpoint, due: ExpectedModel, inputs: Inputs
) -> dict[str, LazyTensor]:
    """The tensors without an LM head that is the embeddings in the result and by its inputs."""
    head, name = inputs.head, inputs.embeddings
    same = head in tensors and tensors[head] is tensors.get(name)
    if not same or due.recipes.get(head) != due.recipes.get(name):
        return dict(tensors)
    own = {head: result.tensors[head]} if head in result.tensors else {}
    return {key: tensor for key, tensor in tensors.items() if key != head} | own


def _files(
    folder: Path, manifest: Manifest | None, on_bytes: Callable[[int], object]
) -> list[VerificationError]:
    if manifest is None:
        return []
    return list(check_files(folder, manifest, lambda path: read_digest(path, on_bytes)))


def _file_bytes(folder: Path, manifest: Manifest | None) -> int:
    """Bytes of the files that will be hashed."""
    files = [] if manifest is None else listed_files(folder, manifest)
    return sum(path.stat().st_size for path in files)


def _total(tensors: Mapping[str, LazyTensor], made: Mapping[str, ExpectedTensor]) -> int:
    """Bytes that will be read: of the result, and of what its rows are made of."""
    total = 0
    for name, tensor in tensors.items():
        total += tensor.nbytes
        recipe = made.get(name)
        if recipe is None or recipe.uncovered is not None:
            continue
        for segment in recipe.segments:
            streams = [segment.start] if segment.start is not None else []
            streams += [stream for step in segment.steps for stream in step.streams]
            total += sum((segment.last - segment.first) * s.row_bytes for s in streams)
    return total


class _Progress:
    """Bytes that several threads have read, told to one listener."""

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._tell, self._total, self._done = on_progress, total, 0
        self._lock = Lock()
        self._is_over = False

    def add(self, count: int) -> None:
        """Count bytes; a thread that reads on after the check has ended stops here."""
        with self._lock:
            if self._is_over:
                raise CancelledError
            self._done += count
            if self._tell is not None and self._total:
                self._tell(min(self._done, self._total), self._total)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End the threads that read when the block ends early: at Ctrl-C, say."""
        try:
            yield
        except BaseException:
            self._is_over = True
            raise


def _names(
    result: Checkpoint, entries: Mapping[str, TensorEntry], folder: Path
) -> Iterator[VerificationError]:
    for name in entries:
        if name not in _all(result):
            yield _lacking(folder, name)
    for name in _all(result):
        # Meta's layout spells out an LM head that the model shares with its embeddings.
        if name not in entries and name not in VOCABULARY_TENSORS:
            yield VerificationError(
                "the result holds a tensor that the merge did not write", file=folder, tensor=name
            )


def _shapes(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    due: ExpectedModel,
    inputs: Inputs,
    entries: Mapping[str, TensorEntry],
) -> Iterator[VerificationError]:
    """Inputs and options say which tensors there are, and how many rows each has."""
    yield from (_lacking(folder, name) for name in due.missing if name not in entries)
    for name in due.unknown:
        yield VerificationError(
            "the result holds a tensor that none of its inputs has",
            file=folder,
            tensor=name,
            expected="the tensors of the base, changed by the adapters",
            found=f"{name}, shape {tensors[name].shape}",
            remedy=_MERGE_AGAIN,
        )
    for name, shape in due.shapes.items():
        found = tensors[name].shape
        if found != shape:
            rows = inputs.is_vocabulary(name) and found[1:] == shape[1:]
            yield VerificationError(
                "a tensor has another shape than its inputs give",
                tensor=tensors[name].origin,
                expected=f"{shape[0]} rows" if rows else shape,
                found=f"{found[0]} rows" if rows else found,
                remedy=_ROWS if rows else _MERGE_AGAIN,
            )


def _lacking(folder: Path, name: str) -> VerificationError:
    return VerificationError(
        "the result lacks a tensor", file=folder, tensor=name, remedy=_MERGE_AGAIN
    )


def _digests(
    checked: TensorResult, tensor: LazyTensor, entries: Mapping[str, TensorEntry], folder: Path
) -> Iterator[VerificationError]:
    """A tensor's dtype, shape and content must be those that the merge wrote."""
    entry = entries.get(checked.name)
    if entry is None:
        return
    said = entry.dtype, entry.shape
    tensor = blocks_of(tensor) or tensor
    if said != (dtype_name(tensor.dtype), tensor.shape):
        yield VerificationError(
            "a tensor has another dtype or shape than the merge gave it",
            tensor=tensor.origin,
            expected=f"{said[0]} {said[1]}",
            found=f"{dtype_name(tensor.dtype)} {tensor.shape}",
            remedy=_MERGE_AGAIN,
        )
    elif entry.digest not in (None, checked.digest):
        twin = [n for n, e in entries.items() if e.digest == checked.digest]
        yield VerificationError(
            "a tensor has other content than the merge wrote",
            tensor=tensor.origin,
            expected=f"XXH3 {entry.digest}",
            found=f"XXH3 {checked.digest}" + (f", which is that of {twin[0]}" if twin else ""),
            remedy="copy the folder again from where it was right, or merge again",
        )


def _has_other_base(checked: TensorResult, manifest: Manifest | None) -> bool:
    merged = _merged_base(manifest).get(checked.name)
    digest = merged.digest if merged is not None else None
    return digest is not None and checked.base_digest not in (None, digest)


def _merged_base(manifest: Manifest | None) -> Mapping[str, TensorEntry]:
    """What the manifest says of the base's tensors."""
    base = manifest.base if manifest is not None else None
    return base.tensors if base is not None else {}


def _other_inputs(
    others: list[TensorResult], manifest: Manifest | None, inputs: Inputs | None
) -> Iterator[VerificationError]:
    """Inputs that are read now must be those that were merged."""
    if others:
        yield VerificationError(
            "the base is not the one that was merged: its tensors have other content",
            tensor=others[0].name,
            expected=f"XXH3 {_merged_base(manifest)[others[0].name].digest}",
            found=f"XXH3 {others[0].base_digest}; {len(others)} tensors differ",
            remedy="give the base that was merged with --base_model",
        )
    merged = manifest.adapters if manifest is not None else ()
    for adapter, entry in zip(inputs.adapters if inputs else (), merged, strict=False):
        digests = entry.digests
        if digests and (digest := file_digest(adapter.weights)) not in digests:
            yield VerificationError(
                "an adapter is not the one that was merged",
                file=adapter.weights,
                expected=f"SHA-256 {digests[-1]}",
                found=f"SHA-256 {digest}",
                remedy="give the adapters that were merged, in their order, with --lora_model",
            )


def _numbers(checked: TensorResult, tensor: LazyTensor) -> Iterator[VerificationError]:
    if checked.is_right:
        return
    where, found = "", f"{checked.wrong_rows} rows whose random sums are off"
    if checked.first is not None:
        index, wanted, tolerance, actual = checked.first
        where = f"{wanted:.9g} at {list(index)}, give or take {tolerance:.2g}"
        found = (
            f"{actual:.9g}; {checked.wrong:,} of {checked.elements:,} elements are off, and the "
            f"random sums of {checked.wrong_rows:,} rows"
        )
    yield VerificationError(
        "a tensor is not what its inputs make of it",
        tensor=tensor.origin,
        expected=where or "sums within rounding",
        found=found + _scaling(checked),
        remedy=_likely(checked),
    )


def _scaling(checked: TensorResult) -> str:
    share = checked.share_added
    return "" if share is None else f"; what was added is {share:.3g} times what the adapters add"


def _likely(checked: TensorResult) -> str:
    share = checked.share_added
    if share is not None and abs(share) < 0.02:
        return "it looks as if the adapter had not been merged: check --lora_model, merge again"
    if checked.name.endswith(("q_proj.weight", "k_proj.weight")) and checked.wrong_rows > 1:
        return "rows of q and k in another layout's rotary order would look so; merge again"
    return (
        "check that base, adapters and --lora_weights are those of the merge (lora_alpha and r are "
        "in adapter_config.json); then merge again"
    )


def _told(
    result: Checkpoint,
    manifest: Manifest | None,
    inputs: Inputs | None,
    found: Findings,
) -> Iterator[str]:
    count = len(_all(result))
    if manifest is not None:
        yield f"files      {len(manifest.files)} by size and SHA-256"
        if digests := len(_all(result).keys() & _digested(manifest)):
            yield f"content    {digests} tensors by their digests"
    if inputs is not None:
        partly = len({line.partition(":")[0] for line in found.unchecked} & _all(result).keys())
        yield (
            f"arithmetic {count - partly} tensors, each element and 4 random sums of each row"
            + (f"; {partly} not or in part" if partly else "")
        )
    exactness = found.exactness
    if exactness.elements:
        yield f"float64    at most {ulp_text(exactness.max_ulp)} away" + (
            f" (most in {found.furthest})" if found.furthest else ""
        )
        yield (
            f"identical  {exactness.share:.5%} of {exactness.elements:,} elements, "
            "when float64 is rounded once"
        )
