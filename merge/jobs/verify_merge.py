"""Check a result on disk against its manifest and against the inputs that it was made of."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checksums.file_digests import hash_file
from ..errors import MergeError, UsageError, VerificationError
from ..job_settings import MergeSettings
from ..layouts.config import is_llama
from ..layouts.model_folder import ModelFolder
from ..messages import compose, join, tr
from ..plan.inputs import find_tokenizer, find_tokenizer_home, split_list
from ..plan.places import find_result, resolve
from ..settings import OnProgress
from ..sizes import peak_memory, size_text
from ..storage.offload import Offload
from ..tokenizers.file_names import MODEL_NAME
from ..tokenizers.opaque_tokenizer import has_tokenizer
from ..tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from ..version import MANIFEST_NAME

if TYPE_CHECKING:
    from ..tensors.lazy import Checkpoint
    from ..verification.adapters import AdapterContents
    from ..verification.exactness import Exactness
    from ..verification.expected import MergeInputs
    from ..verification.manifest import Manifest
    from ..verification.verify import ResultFindings


@dataclass(frozen=True)
class Verification:
    """What a check found: ``faults`` is empty where everything is right.

    ``checked`` and ``unchecked`` are lines for people. ``exactness`` says how near the elements
    are to float64: their number, how many are identical, and the largest distance in ulp.
    """

    output_dir: Path
    faults: tuple[MergeError, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    seconds: float
    exactness: Exactness

    def summary(self) -> str:
        """The report in a few lines, without the faults."""
        peak = peak_memory()
        memory = tr(", peak memory {peak}", peak=size_text(peak)) if peak else ""
        lines = [tr("result     {output_dir}", output_dir=self.output_dir), *self.checked]
        lines += [tr("not checked: {line}", line=line) for line in self.unchecked]
        lines += [tr("took       {seconds:.1f} s{memory}", seconds=self.seconds, memory=memory)]
        head = tr("FAILED: {n_faults} faults", n_faults=len(self.faults)) if self.faults else "OK:"
        return join("\n", [head, *(compose("  {line}", line=line) for line in lines)])


def verify_merge(
    output_dir: str | Path,
    *,
    base_model: str | Path | None = None,
    lora_model: str | Path | Sequence[str | Path] | None = None,
    lora_weights: str | Sequence[float] | None = None,
    delta_model: str | Path | None = None,
    rounding: str | None = None,
    vocab_mismatch: str | None = None,
    new_token_init: str | None = None,
    delta_embeddings: str | None = None,
    files_only: bool = False,
    context_length: int | None = None,
    num_workers: int | None = None,
    offload_dir: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Verification:
    """Read a result and say whether files, tensors, arithmetic and vocabulary are right.

    Inputs that are not named are those of the manifest; a result of another program, without one,
    is checked against the inputs that are named. ``files_only`` reads no inputs: files and
    tensors are then compared with the manifest, and the tokenizer with the rows.

    Raises ``MergeError`` for inputs that are missing or broken; what is wrong with the result
    itself is in the ``faults`` of what is returned.
    """
    started = time.monotonic()
    folder = find_result(output_dir)
    given: dict[str, Any] = {
        "rounding": rounding,
        "vocab_mismatch": vocab_mismatch,
        "new_token_init": new_token_init,
        "delta_embeddings": delta_embeddings,
        "num_workers": num_workers,
        "offload_dir": offload_dir,
    }
    chosen = MergeSettings(**{name: value for name, value in given.items() if value is not None})
    manifest = _read_manifest(folder, is_needed=files_only or base_model is None)
    named = _NamedInputs(
        base_model,
        lora_model,
        lora_weights,
        delta_model,
        rounding,
        vocab_mismatch,
        new_token_init,
        delta_embeddings,
        context_length,
    )
    with Offload(chosen.offload_parent, folder, "buffered") as offload:
        inputs = None if files_only else _load_inputs(named, manifest, offload)
        found = _check_result(folder, manifest, inputs, chosen.workers, offload, on_progress)
    for fault in found.faults:
        fault.rename_paths(offload.copies)
    if inputs is not None and manifest is None:
        found.checked.append(named.describe_assumptions())
    seconds = time.monotonic() - started
    lines = tuple(found.checked), tuple(found.unchecked)
    return Verification(folder, tuple(found.faults), *lines, seconds, found.exactness)


@dataclass(frozen=True)
class _NamedInputs:
    """The inputs as the user names them."""

    base: str | Path | None
    loras: str | Path | Sequence[str | Path] | None
    weights: str | Sequence[float] | None
    delta: str | Path | None
    rounding: str | None
    vocab_mismatch: str | None
    new_token_init: str | None
    delta_embeddings: str | None
    context_length: int | None

    def describe_assumptions(self) -> str:
        """What a check takes for granted that has no manifest to ask."""
        options = {
            "rounding": self.rounding or "once",
            "vocab_mismatch": self.vocab_mismatch or "error",
            "new_token_init": self.new_token_init,
        }
        words = [
            f"--{name} {value}" if value else tr("no --{name}", name=name)
            for name, value in options.items()
        ]
        return tr("assumed    {words}: there is no manifest to say it", words=join(", ", words))


def _read_manifest(folder: Path, is_needed: bool) -> Manifest | None:
    from ..verification.manifest import read_manifest

    if "\0" in str(folder) or not folder.is_dir():
        raise UsageError(
            tr("the result does not exist"),
            file=folder,
            remedy=tr("give the --output_dir of a merge"),
        )
    return read_manifest(folder) if is_needed or (folder / MANIFEST_NAME).is_file() else None


def _check_result(
    folder: Path,
    manifest: Manifest | None,
    inputs: _LoadedInputs | None,
    workers: int,
    offload: Offload,
    on_progress: OnProgress | None,
) -> ResultFindings:
    """Open the result and check it; one that cannot be opened is a fault, and its files say why."""
    from ..layouts.decoder import count_embedding_rows
    from ..layouts.opening import open_checkpoint
    from ..verification.manifest import check_files
    from ..verification.norms import check_norms
    from ..verification.tokenizer_files import check_copied_end, check_tokenizer_files
    from ..verification.verify import ResultFindings, check_result
    from ..verification.vocabulary import check_special_ids, check_tokenizer, check_vocabulary

    try:
        result = open_checkpoint(
            folder, offload, with_extra=True, any_decoder=True, any_quantized=True
        )
        merge_inputs = _add_growth(folder, inputs, manifest) if inputs is not None else None
    except MergeError as error:
        files = check_files(folder, manifest, hash_file) if manifest is not None else ()
        return ResultFindings(faults=[*files, error])
    found = check_result(folder, result, manifest, merge_inputs, workers, on_progress)
    found.faults += _check_unmerged_files(merge_inputs, manifest)
    if merge_inputs is not None and not (manifest is not None and manifest.allow_unknown):
        found.faults += check_norms(merge_inputs)
    rows = count_embedding_rows(result.tensors)
    kept = inputs is not None and inputs.mismatch == "keep_base_rows"
    padded = kept or (manifest is not None and manifest.is_resized)
    if merge_inputs is not None:
        padded = padded or rows == count_embedding_rows(
            (merge_inputs.dense or merge_inputs.base).tensors
        )
    is_gguf = ModelFolder(folder).is_gguf
    if not is_gguf and not (folder / MODEL_NAME).is_file():
        found.unchecked.append(
            tr(
                "vocabulary: {rows} rows, but no {model_name} beside them",
                rows=rows,
                model_name=MODEL_NAME,
            )
        )
        if inputs is not None and any(map(has_tokenizer, inputs.adapters)):
            found.faults += check_copied_end(folder)
        return found
    named = manifest is not None and manifest.tokenizer_named
    bpe = _find_bpe(inputs) if is_gguf and not named else None
    parents = (inputs.parents if inputs is not None else []) or list(filter(None, [bpe]))
    merged = manifest.tokenizer if manifest is not None else None
    other_tokenizer = list(check_tokenizer(folder, merged))
    if merge_inputs is not None and merge_inputs.growth is not None:
        found.faults += other_tokenizer
    may_be_shorter = kept or (merged is not None and not other_tokenizer)
    # llama.cpp needs a token for each row, padding or not.
    padded = padded and not is_gguf
    found.faults += check_vocabulary(folder, result, parents, padded, may_be_shorter)
    found.checked.append(tr("vocabulary {rows} rows and the tokenizer", rows=rows))
    own = inputs.tokenizer() if inputs is not None and not named else None
    if own is not None and not is_gguf:
        found.faults += check_tokenizer_files(folder, own)
    elif manifest is None and (known := own or bpe) is not None:
        found.faults += check_special_ids(folder, result, known)
    return found


def _find_bpe(inputs: _LoadedInputs | None) -> Path | None:
    """The folder whose byte-level BPE a merge with the defaults takes."""
    from ..verification.vocabulary import has_byte_level_bpe

    folders = [*inputs.adapters, *inputs.models] if inputs is not None else []
    paths = [folder.path for folder in folders if has_tokenizer(folder)]
    return paths[0] if paths and has_byte_level_bpe(paths[0]) else None


def _check_unmerged_files(
    merge_inputs: MergeInputs | None, manifest: Manifest | None
) -> Iterator[MergeError]:
    """Weights beside an adapter that are no part of the result, and were not ignored on purpose."""
    ignored = {name for entry in (manifest.adapters if manifest else ()) for name in entry.ignored}
    for adapter in merge_inputs.adapters if merge_inputs is not None else ():
        for name in adapter.unread:
            if name not in ignored:
                yield VerificationError(
                    tr("weights that lie beside the adapter are no part of the result"),
                    file=adapter.folder / name,
                    remedy=tr(
                        "merge with the program that wrote them; or, if they are no part of "
                        "the adapter, merge again and let the merge ignore them"
                    ),
                )


@dataclass(frozen=True)
class _LoadedInputs:
    """The inputs, and the tokenizers whose ids the rows follow (``parents``).

    ``models`` are the folders of the delta, where there is one, and of the base. The last two say
    what became of rows of the vocabulary that an adapter lacked, and that only the tokenizer asked
    for.
    """

    merge_inputs: MergeInputs
    parents: list[Path]
    models: list[ModelFolder]
    mismatch: str
    new_token_init: str | None

    @property
    def adapters(self) -> list[ModelFolder]:
        """The adapters' folders, the last one first; not those that are a file."""
        folders = [adapter.folder for adapter in self.merge_inputs.adapters[::-1]]
        return [ModelFolder(folder) for folder in folders if folder.is_dir()]

    def tokenizer(self) -> SentencePieceTokenizer | None:
        """LLaMA's tokenizer of a merge with the defaults, if it has one."""
        if not is_llama(self.merge_inputs.base.config):
            return None
        return find_tokenizer([*self.adapters, *self.models])


def _add_growth(folder: Path, given: _LoadedInputs, manifest: Manifest | None) -> MergeInputs:
    """The inputs with the rows that the tokenizer of ``folder`` asks for, where it was asked."""
    from ..layouts.decoder import count_embedding_rows
    from ..verification.expected import VocabularyGrowth
    from ..verification.vocabulary import read_vocabulary

    if given.new_token_init is None:
        return given.merge_inputs
    tokens = len(read_vocabulary(folder).tokens)
    if manifest is None or not manifest.is_resized:
        return replace(given.merge_inputs, growth=VocabularyGrowth(tokens))
    own = [len(read_vocabulary(parent).tokens) for parent in given.parents]
    known = min([count_embedding_rows(given.merge_inputs.base.tensors), *(own or [tokens])])
    return replace(given.merge_inputs, growth=VocabularyGrowth(tokens, manifest.multiple, known))


def _load_inputs(named: _NamedInputs, manifest: Manifest | None, offload: Offload) -> _LoadedInputs:
    """The inputs, named or the manifest's."""
    from ..layouts.opening import open_checkpoint
    from ..tensors.lazy import parse_dtype
    from ..verification.adapters import adopt_names
    from ..verification.by_peft import load_again
    from ..verification.expected import MergeInputs
    from ..verification.repeated_layers import find_repeated_layers

    base_source = named.base or (manifest.base.source if manifest and manifest.base else None)
    if base_source is None:
        raise UsageError(
            tr("the manifest does not say what the result was made of"),
            remedy=tr("name the base with --base_model, or check --files_only"),
        )
    base_folder = _resolve_input(base_source, tr("base model"), offload)
    base = open_checkpoint(base_folder, offload, named.context_length, True, any_decoder=True)
    target = None if named.delta or named.base else _find_source(manifest, "target_model")
    dense_source = named.delta or target or _find_source(manifest, "delta_model")
    dense, models = None, [base_folder]
    if dense_source is not None:
        dense_folder = _resolve_input(dense_source, tr("delta"), offload)
        dense = open_checkpoint(dense_folder, offload, with_extra=True, any_decoder=True)
        models = [dense_folder, base_folder]
    read = [
        _read_adapter(_resolve_input(source, tr("adapter"), offload).path, weight, offload, base)
        for source, weight in _list_adapters(named, manifest)
    ]
    repeated = find_repeated_layers(read, base)
    base = repeated.repeat(base)
    dense = repeated.repeat(dense) if dense is not None else None
    adapters = tuple(adopt_names(adapter, base.tensors) for adapter in read)
    load_again(adapters, dense or base, manifest.merged_by if manifest else None)
    rounding = named.rounding or (manifest.rounding if manifest else "once")
    mismatch = named.vocab_mismatch or (manifest.vocab_mismatch if manifest else "error")
    # Without adapters, new rows are the delta's.
    init = named.new_token_init or (manifest.new_token_init if manifest else None)
    mean = manifest is not None and manifest.delta_token_init == "mean"
    if dense is not None and not adapters:
        mean, init = init == "mean" or mean, None
    inputs = MergeInputs(
        base,
        dense,
        -1 if target else 1,
        adapters,
        rounding == "per_adapter",
        parse_dtype(manifest.dtype if manifest else "auto"),
        mismatch == "truncate",
        delta_embeddings=named.delta_embeddings
        or (manifest.delta_embeddings if manifest else "auto"),
        delta_mean=mean,
        repeated=repeated,
    )
    giving = [adapter.folder for adapter in adapters if inputs.embeddings in adapter.whole]
    home = find_tokenizer_home(base_folder)
    last = giving[-1] if giving else home
    parents = [last] if last is not None and (last / MODEL_NAME).is_file() else []
    parents = [base_folder.path] if not giving and base_folder.is_gguf else parents
    return _LoadedInputs(inputs, parents, models, mismatch, init)


def _read_adapter(path: Path, weight: float, offload: Offload, base: Checkpoint) -> AdapterContents:
    """An adapter of either kind: a folder of PEFT's, or a LoRA in GGUF form."""
    from ..verification.adapters import read_adapter
    from ..verification.gguf_adapter import find_gguf_adapter, read_gguf_adapter

    if (file := find_gguf_adapter(path)) is not None:
        return read_gguf_adapter(path, file, weight, base.config)
    return read_adapter(path, weight, offload)


def _find_source(manifest: Manifest | None, role: str) -> str | None:
    entry = manifest.models.get(role) if manifest is not None else None
    return entry.source if entry is not None else None


def _list_adapters(named: _NamedInputs, manifest: Manifest | None) -> list[tuple[str, float]]:
    """Each adapter's source and weight: as named, else as in the manifest."""
    asked = manifest is not None and (named.base is None or named.loras is None)
    merged = [(e.source, e.weight) for e in manifest.adapters] if manifest and asked else []
    if named.loras is None:
        names = [] if named.base is not None and not merged else [source for source, _ in merged]
    else:
        given = [named.loras] if isinstance(named.loras, (str, Path)) else named.loras
        names = split_list([str(name) for name in given])
    if named.weights is None and len(merged) == len(names):
        return [(name, weight) for name, (_, weight) in zip(names, merged, strict=True)]
    weights = MergeSettings(lora_weights=named.weights).weights(len(names))
    return list(zip(names, weights, strict=True))


def _resolve_input(source: str | Path, role: str, offload: Offload) -> ModelFolder:
    """The folder of an input. Raises ``UsageError`` that says how to name it, or to do without."""
    try:
        return ModelFolder(resolve(str(source), role, offload))
    except UsageError as error:
        option = {"base model": "--base_model", "adapter": "--lora_model"}.get(
            role, "--delta_model"
        )
        raise UsageError(
            tr("{sentence}, so the arithmetic cannot be checked", sentence=error.sentence),
            file=source,
            remedy=tr(
                "say where it is now with {option}, or check only what needs no "
                "inputs with --files_only",
                option=option,
            ),
        ) from None
