"""Everything that can be said of a result on disk: files, tensors, arithmetic, vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..checksums.file_digests import get_file_digest, hash_file
from ..errors import MergeError, VerificationError
from ..layouts.decoder import VOCABULARY_TENSORS, count_embedding_rows
from ..layouts.model_folder import ModelFolder
from ..messages import compose, tr
from ..settings import OnProgress
from ..tensors.digests import DIGEST_VERSION
from ..tensors.lazy import Checkpoint, LazyTensor, get_dtype_name
from ..tensors.threads import ComputePool, use_one_torch_thread
from .block_rows import describe_block_checks
from .configuration import check_configuration
from .elementwise import PROBE_VECTORS, TensorResult, check_tensor, get_blocks
from .exactness import Exactness
from .expected import ExpectedModel, MergeInputs, build_expected_model
from .expected_tensor import ExpectedTensor
from .findings import Findings
from .manifest import Manifest, TensorEntry, check_files
from .numbers_off import check_numbers
from .progress import Progress, count_bytes, count_file_bytes
from .ulps import format_ulps

_ROWS = tr(
    "merge again; rows that --vocab_mismatch or --new_token_init gave "
    "are right only where the manifest says so, or the options of the "
    "check"
)
_MERGE_AGAIN = tr("merge again; if it comes back, report it with the manifest")


@dataclass
class ResultFindings(Findings):
    """What was found of a result, and how near its elements are to float64.

    ``exactness`` covers all elements that were compared with float64, ``furthest`` names the tensor
    in which they are least exact. ``unchecked_tensors`` are those with rows that were not compared.
    """

    exactness: Exactness = field(default_factory=Exactness)
    furthest: str | None = None
    unchecked_tensors: set[str] = field(default_factory=set)


def check_result(
    folder: Path,
    result: Checkpoint,
    manifest: Manifest | None,
    inputs: MergeInputs | None,
    workers: int,
    on_progress: OnProgress | None = None,
) -> ResultFindings:
    """Read a result once, with its inputs beside it, and hold it against both.

    Files are hashed beside the tensors, in the same order, so the disk is asked once as long as
    the page cache holds what lies between the two. Without ``inputs`` only digests are checked.
    """
    found = ResultFindings()
    entries = manifest.tensors if manifest is not None else {}
    version = manifest.digest_version if manifest is not None else DIGEST_VERSION
    found.faults += _check_names(result, entries, folder) if manifest is not None else []
    tensors = _merge_extra(result)
    made: dict[str, ExpectedTensor] = {}
    if inputs is not None:
        tensors, made = _check_outline(found, folder, result, manifest, inputs)
    others: list[TensorResult] = []
    in_blocks: list[TensorResult] = []
    worst = Exactness()
    unchecked: dict[str, list[str]] = {}
    total = count_bytes(tensors, made) + count_file_bytes(folder, manifest)
    progress = Progress(on_progress, total)
    with (
        ThreadPoolExecutor(1) as hashing,
        ComputePool(workers) as pool,
        progress.stop_on_error(),
        use_one_torch_thread(),
    ):
        files = hashing.submit(_check_files, folder, manifest, progress.add)
        for name, tensor in tensors.items():
            base = inputs.base.tensors.get(name) if inputs is not None else None
            try:
                checked = check_tensor(
                    name, tensor, made.get(name), base, pool, progress.add, version
                )
            except MergeError as error:
                if not _is_about(folder, error):
                    raise
                found.faults.append(error)
                continue
            found.faults += _check_digests(checked, tensor, entries, folder)
            if _has_other_base(checked, manifest, inputs):
                others.append(checked)
            else:
                found.faults += check_numbers(checked, tensor)
                worst = _count_exactness(found, checked, worst)
            if checked.kind is not None and not checked.unchecked:
                in_blocks.append(checked)
            if inputs is not None:
                for why in checked.unchecked:
                    unchecked.setdefault(why, []).append(name)
                    found.unchecked_tensors.add(name)
        found.unchecked += _describe_unchecked(unchecked)
        found.faults[:0] = [*files.result(), *_check_inputs(others, manifest, inputs)]
    if manifest is not None and (bare := manifest.tensors.keys() - _list_digested(manifest)):
        found.unchecked.append(
            tr("content of {n_bare} tensors: the manifest has no digest of it", n_bare=len(bare))
        )
    checked_lines, unchecked_lines = describe_block_checks(in_blocks)
    found.checked += _describe_checks(result, manifest, inputs, found, len(in_blocks))
    found.checked += checked_lines
    found.unchecked += unchecked_lines
    return found


def _check_outline(
    found: ResultFindings,
    folder: Path,
    result: Checkpoint,
    manifest: Manifest | None,
    inputs: MergeInputs,
) -> tuple[dict[str, LazyTensor], dict[str, ExpectedTensor]]:
    """Check names, shapes and configuration; return the tensors to read, and how each is made."""
    tensors = _list_as_read(result, inputs)
    model = build_expected_model(inputs, tensors, ModelFolder(folder).is_gguf)
    entries = manifest.tensors if manifest is not None else {}
    found.faults += _check_shapes(folder, tensors, model, inputs, entries)
    found.add(_check_configuration(folder, result, manifest is not None, inputs))
    return _drop_same_head(tensors, result, model, inputs), model.tensors


def _describe_unchecked(unchecked: Mapping[str, list[str]]) -> Iterator[str]:
    """Tensors by the reason why they are not checked, all of one reason in one line."""
    for why, names in unchecked.items():
        more = tr(" and {n_names} more", n_names=len(names) - 1) if names[1:] else ""
        yield compose("{name}{more}: {why}", name=names[0], more=more, why=why)


def _count_exactness(found: ResultFindings, checked: TensorResult, worst: Exactness) -> Exactness:
    """Add a tensor's exactness to the findings; return that of the least exact one so far."""
    own = checked.exactness
    found.exactness.add(own)
    if (own.max_ulp, -own.share) <= (worst.max_ulp, -worst.share):
        return worst
    found.furthest = checked.name
    return own


def _list_digested(manifest: Manifest) -> set[str]:
    """The tensors whose content the manifest tells."""
    return {name for name, entry in manifest.tensors.items() if entry.digest is not None}


def _is_about(folder: Path, error: MergeError) -> bool:
    """Whether what could not be read is the result itself, and no input."""
    return Path(error.facts.get("file", "")).parent == folder


def _merge_extra(result: Checkpoint) -> dict[str, LazyTensor]:
    return {**result.tensors, **result.extra}


def _check_configuration(
    folder: Path, result: Checkpoint, is_ours: bool, inputs: MergeInputs
) -> Findings:
    """What the numbers beside the weights are; a manifest's digests hold for those of GGUF."""
    if is_ours and ModelFolder(folder).is_gguf:
        return Findings()
    rows = count_embedding_rows(result.tensors)
    return check_configuration(folder, result, inputs, is_ours, rows)


def _list_as_read(result: Checkpoint, inputs: MergeInputs) -> dict[str, LazyTensor]:
    """The tensors as readers take them: the embeddings are the LM head where the result ties it."""
    tensors = _merge_extra(result)
    if result.config.get("tie_word_embeddings") and inputs.embeddings in tensors:
        tensors[inputs.head] = tensors[inputs.embeddings]
    return tensors


def _drop_same_head(
    tensors: Mapping[str, LazyTensor], result: Checkpoint, model: ExpectedModel, inputs: MergeInputs
) -> dict[str, LazyTensor]:
    """The tensors without an LM head that is the embeddings in the result and by its inputs."""
    head, name = inputs.head, inputs.embeddings
    same = head in tensors and tensors[head] is tensors.get(name)
    if not same or model.tensors.get(head) != model.tensors.get(name):
        return dict(tensors)
    own = {head: result.tensors[head]} if head in result.tensors else {}
    return {key: tensor for key, tensor in tensors.items() if key != head} | own


def _check_files(
    folder: Path, manifest: Manifest | None, on_bytes: Callable[[int], object]
) -> list[VerificationError]:
    if manifest is None:
        return []
    return list(check_files(folder, manifest, lambda path: hash_file(path, on_bytes)))


def _check_names(
    result: Checkpoint, entries: Mapping[str, TensorEntry], folder: Path
) -> Iterator[VerificationError]:
    for name in entries:
        if name not in _merge_extra(result):
            yield _make_missing_fault(folder, name)
    for name in _merge_extra(result):
        # Meta's layout spells out an LM head that the model shares with its embeddings.
        if name not in entries and name not in VOCABULARY_TENSORS:
            yield VerificationError(
                tr("the result holds a tensor that the merge did not write"),
                file=folder,
                tensor=name,
                expected=tr("the tensors that the manifest lists"),
                remedy=_MERGE_AGAIN,
            )


def _check_shapes(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    model: ExpectedModel,
    inputs: MergeInputs,
    entries: Mapping[str, TensorEntry],
) -> Iterator[VerificationError]:
    """Inputs and options say which tensors there are, and how many rows each has."""
    yield from (_make_missing_fault(folder, name) for name in model.missing if name not in entries)
    for name in model.unknown:
        yield VerificationError(
            tr("the result holds a tensor that none of its inputs has"),
            file=folder,
            tensor=name,
            expected=tr("the tensors of the base, changed by the adapters"),
            found=tr("{name}, shape {shape}", name=name, shape=tensors[name].shape),
            remedy=_MERGE_AGAIN,
        )
    for name, shape in model.shapes.items():
        found = tensors[name].shape
        if found != shape:
            rows = inputs.is_vocabulary(name) and found[1:] == shape[1:]
            yield VerificationError(
                tr("a tensor has another shape than its inputs give"),
                tensor=tensors[name].origin,
                expected=tr("{shape} rows", shape=shape[0]) if rows else shape,
                found=tr("{found} rows", found=found[0]) if rows else found,
                remedy=_ROWS if rows else _MERGE_AGAIN,
            )


def _make_missing_fault(folder: Path, name: str) -> VerificationError:
    return VerificationError(
        tr("the result lacks a tensor"), file=folder, tensor=name, remedy=_MERGE_AGAIN
    )


def _check_digests(
    checked: TensorResult, tensor: LazyTensor, entries: Mapping[str, TensorEntry], folder: Path
) -> Iterator[VerificationError]:
    """A tensor's dtype, shape and content must be those that the merge wrote."""
    entry = entries.get(checked.name)
    if entry is None:
        return
    recorded = entry.dtype, entry.shape
    tensor = get_blocks(tensor) or tensor
    if recorded != (get_dtype_name(tensor.dtype), tensor.shape):
        yield VerificationError(
            tr("a tensor has another dtype or shape than the merge gave it"),
            tensor=tensor.origin,
            expected=f"{recorded[0]} {recorded[1]}",
            found=f"{get_dtype_name(tensor.dtype)} {tensor.shape}",
            remedy=_MERGE_AGAIN,
        )
    elif entry.digest not in (None, checked.digest):
        twin = [n for n, e in entries.items() if e.digest == checked.digest]
        yield VerificationError(
            tr("a tensor has other content than the merge wrote"),
            tensor=tensor.origin,
            expected=tr("XXH3 {digest}", digest=entry.digest),
            found=tr("XXH3 {digest}", digest=checked.digest)
            + (tr(", which is that of {twin}", twin=twin[0]) if twin else ""),
            remedy=tr("copy the folder again from where it was right, or merge again"),
        )


def _has_other_base(
    checked: TensorResult, manifest: Manifest | None, inputs: MergeInputs | None
) -> bool:
    name = inputs.repeated.find_own_name(checked.name) if inputs is not None else checked.name
    merged = _get_merged_base(manifest).get(name)
    digest = merged.digest if merged is not None else None
    return digest is not None and checked.base_digest not in (None, digest)


def _get_merged_base(manifest: Manifest | None) -> Mapping[str, TensorEntry]:
    """What the manifest says of the base's tensors."""
    base = manifest.base if manifest is not None else None
    return base.tensors if base is not None else {}


def _check_inputs(
    others: list[TensorResult], manifest: Manifest | None, inputs: MergeInputs | None
) -> Iterator[VerificationError]:
    """Inputs that are read now must be those that were merged."""
    if others and inputs is not None:
        own_name = inputs.repeated.find_own_name(others[0].name)
        yield VerificationError(
            tr("the base is not the one that was merged: its tensors have other content"),
            tensor=others[0].name,
            expected=tr("XXH3 {digest}", digest=_get_merged_base(manifest)[own_name].digest),
            found=tr(
                "XXH3 {base_digest}; {n_others} tensors differ",
                base_digest=others[0].base_digest,
                n_others=len(others),
            ),
            remedy=tr("give the base that was merged with --base_model"),
        )
    merged = manifest.adapters if manifest is not None else ()
    for adapter, entry in zip(inputs.adapters if inputs else (), merged, strict=False):
        digests = entry.digests
        if digests and (digest := get_file_digest(adapter.weights)) not in digests:
            yield VerificationError(
                tr("an adapter is not the one that was merged"),
                file=adapter.weights,
                expected=tr("SHA-256 {digests}", digests=digests[-1]),
                found=tr("SHA-256 {digest}", digest=digest),
                remedy=tr("give the adapters that were merged, in their order, with --lora_model"),
            )


def _describe_checks(
    result: Checkpoint,
    manifest: Manifest | None,
    inputs: MergeInputs | None,
    found: ResultFindings,
    in_blocks: int,
) -> Iterator[str]:
    count = len(_merge_extra(result)) - in_blocks
    if manifest is not None:
        yield tr("files      {n_files} by size and SHA-256", n_files=len(manifest.files))
        if digests := len(_merge_extra(result).keys() & _list_digested(manifest)):
            yield tr("content    {digests} tensors by their digests", digests=digests)
    if inputs is not None:
        partly = len(found.unchecked_tensors & _merge_extra(result).keys())
        yield (
            tr(
                "arithmetic {count} tensors, each element and {probe_vectors} random "
                "sums of each row",
                count=count - partly,
                probe_vectors=PROBE_VECTORS,
            )
            + (tr("; {partly} not or in part", partly=partly) if partly else "")
        )
    exactness = found.exactness
    if exactness.elements:
        yield tr("float64    at most {ulps} away", ulps=format_ulps(exactness.max_ulp)) + (
            tr(" (most in {furthest})", furthest=found.furthest) if found.furthest else ""
        )
        yield (
            tr(
                "identical  {share:.5%} of {elements:,} elements, when float64 is rounded once",
                share=exactness.share,
                elements=exactness.elements,
            )
        )
