"""The files of a merged model against its ``merge_manifest.json``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError, VerificationError
from ..job_settings import (
    DELTA_EMBEDDINGS,
    DELTA_TOKEN_INITS,
    NEW_TOKEN_INITS,
    ROUNDINGS,
    VOCAB_MISMATCHES,
)
from ..messages import compose, join, tr
from ..settings import DTYPES
from ..tensors.digests import DIGEST_KEYS, DIGEST_VERSION
from ..untrusted.strict_json import read_json
from ..version import MANIFEST_NAME

# Files that some reader would take for a part of the model.
_WEIGHTS = ("*.pth", "*.bin", "*.safetensors", "*.gguf", "*.index.json")
_MODELS = ("base_model", "delta_model", "target_model", "model")
# What file systems take, in bytes, and what float64 holds.
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
_LARGEST_WEIGHT = sys.float_info.max
_COPY_AGAIN = tr("copy the folder again from where it was right, or merge again")

Hash = Callable[[Path], str]


@dataclass(frozen=True)
class FileEntry:
    """A file of the model: its size and SHA-256."""

    nbytes: int
    sha256: str


@dataclass(frozen=True)
class TensorEntry:
    """A tensor: dtype, shape, and the XXH3 of its content, None where it was not read whole."""

    dtype: str
    shape: tuple[int, ...]
    digest: str | None


@dataclass(frozen=True)
class ModelEntry:
    """A model that went in."""

    source: str
    tensors: Mapping[str, TensorEntry]


@dataclass(frozen=True)
class AdapterEntry:
    """An adapter that went in, with the SHA-256 of its files."""

    source: str
    weight: float
    digests: tuple[str, ...]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What a manifest says, every value of the type that it must have.

    ``models`` are the inputs by role. ``tokenizer`` is the SHA-256 of its vocabulary. What a job
    does not record has the value that leaves things as they are. ``new_token_init`` is how rows
    begin that only the tokenizer asks for; ``is_resized`` where the model's own rows end with its
    tokens, and ``multiple`` is then the number of rows that theirs is rounded up to.
    ``delta_embeddings`` and ``delta_token_init`` say how a delta stores the vocabulary, and what
    was taken for rows that the base lacks. ``merged_by`` are the releases of the libraries that
    merged adapters, where some did. ``digest_version`` is that of all its tensors' digests.
    """

    files: Mapping[str, FileEntry]
    tensors: Mapping[str, TensorEntry]
    models: Mapping[str, ModelEntry]
    adapters: tuple[AdapterEntry, ...]
    tokenizer: str | None
    dtype: str
    rounding: str
    vocab_mismatch: str
    new_token_init: str | None
    is_resized: bool
    multiple: int
    delta_embeddings: str = "auto"
    delta_token_init: str = "zeros"
    allow_unknown: bool = False
    tokenizer_named: bool = False
    merged_by: str | None = None
    digest_version: int = DIGEST_VERSION

    @property
    def base(self) -> ModelEntry | None:
        """The model that everything was added to, or that was converted."""
        return self.models.get("base_model") or self.models.get("model")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a merged model. Raises ``FormatError`` when there is none, or another."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise FormatError(
            tr("the folder holds no manifest: nothing says what its files were"),
            file=path,
            expected=MANIFEST_NAME,
            remedy=tr(
                "give the output folder of a merge made here; two models without a "
                "manifest are compared with compare_checkpoints.py"
            ),
        )
    try:
        return _parse_manifest(read_json(path))
    except _OtherFormError as fault:
        raise FormatError(
            tr("the manifest is not one of this program, or of another release"),
            file=path,
            expected=fault.expected,
            found=fault.found,
            remedy=tr("merge again with this release"),
        ) from None


class _OtherFormError(Exception):
    """Where a manifest is not as it is written here."""

    def __init__(self, place: str, expected: str, found: object) -> None:
        super().__init__(place)
        self.expected = compose("{place}: {expected}", place=place, expected=expected)
        self.found = repr(found)


def _parse_manifest(content: Mapping[str, Any]) -> Manifest:
    inputs = _require_object(content.get("inputs"), "inputs")
    resized = "init" in content
    key = "init" if resized else "new_token_init"
    init = content.get(key)
    multiple = content.get("pad_to_multiple_of")
    delta = _require_object(content.get("delta", {}), "delta")
    tokenizer = _require_object(inputs.get("tokenizer", {}), "inputs.tokenizer").get("sha256")
    version = _find_digest_version(content.get("tensors"))
    return Manifest(
        {
            _parse_file_name(name): _parse_file(entry, f"files.{name}")
            for name, entry in _require_object(content.get("files"), "files").items()
        },
        _parse_tensors(content.get("tensors"), "tensors", version),
        {
            role: _parse_model(inputs[role], f"inputs.{role}", version)
            for role in _MODELS
            if role in inputs
        },
        tuple(
            _parse_adapter(entry)
            for entry in _require_list(inputs.get("adapters", []), "inputs.adapters")
        ),
        None if tokenizer is None else _require_digest(tokenizer, "inputs.tokenizer.sha256", 64),
        _require_choice(content.get("dtype", "auto"), "dtype", DTYPES),
        _require_choice(content.get("rounding", "once"), "rounding", ROUNDINGS),
        _require_choice(content.get("vocab_mismatch", "error"), "vocab_mismatch", VOCAB_MISMATCHES),
        None if init is None and not resized else _require_choice(init, key, NEW_TOKEN_INITS),
        resized,
        1 if multiple is None else _require_number(multiple, "pad_to_multiple_of", 1),
        _require_choice(delta.get("embeddings", "auto"), "delta.embeddings", DELTA_EMBEDDINGS),
        _require_choice(
            delta.get("new_token_init", "zeros"), "delta.new_token_init", DELTA_TOKEN_INITS
        ),
        content.get("allow_unknown_combination") is True,
        content.get("tokenizer_named") is True,
        str(content["merged_by"]) if "merged_by" in content else None,
        version,
    )


def _find_digest_version(tensors: Any) -> int:
    """Version of the digests: the newest of which a tensor has one."""
    entries = tensors.values() if isinstance(tensors, dict) else ()
    keys = {key for entry in entries if isinstance(entry, dict) for key in entry}
    return max((n for n, key in DIGEST_KEYS.items() if key in keys), default=DIGEST_VERSION)


def _parse_file(content: Any, place: str) -> FileEntry:
    entry = _require_object(content, place)
    size = _require_number(entry.get("bytes"), f"{place}.bytes")
    return FileEntry(size, _require_digest(entry.get("sha256"), f"{place}.sha256", 64))


def _parse_tensors(content: Any, place: str, version: int) -> dict[str, TensorEntry]:
    return {
        name: _parse_tensor(e, f"{place}.{name}", DIGEST_KEYS[version])
        for name, e in _require_object(content, place).items()
    }


def _parse_tensor(content: Any, place: str, key: str) -> TensorEntry:
    entry = _require_object(content, place)
    shape = tuple(
        _require_number(n, f"{place}.shape")
        for n in _require_list(entry.get("shape"), f"{place}.shape")
    )
    digest = entry.get(key)
    return TensorEntry(
        _require_text(entry.get("dtype"), f"{place}.dtype"),
        shape,
        None if digest is None else _require_digest(digest, f"{place}.{key}", 32),
    )


def _parse_model(content: Any, place: str, version: int) -> ModelEntry:
    entry = _require_object(content, place)
    tensors = _parse_tensors(entry.get("tensors", {}), f"{place}.tensors", version)
    return ModelEntry(_parse_source(entry, place), tensors)


def _parse_adapter(content: Any) -> AdapterEntry:
    place = "inputs.adapters"
    entry = _require_object(content, place)
    weight = entry.get("weight", 1.0)
    if not isinstance(weight, (int, float)) or isinstance(weight, bool):
        raise _OtherFormError(tr("{place}.weight", place=place), tr("a number"), weight)
    if abs(weight) > _LARGEST_WEIGHT:
        raise _OtherFormError(
            tr("{place}.weight", place=place), tr("a number that float64 holds"), weight
        )
    files = [
        _require_object(file, f"{place}.files")
        for file in _require_list(entry.get("files", []), place)
    ]
    digests = tuple(
        _require_digest(file.get("sha256"), f"{place}.files.sha256", 64) for file in files
    )
    ignored = tuple(
        _require_text(n, f"{place}.ignored") for n in _require_list(entry.get("ignored", []), place)
    )
    return AdapterEntry(_parse_source(entry, place), float(weight), digests, ignored)


def _parse_source(entry: Mapping[str, Any], place: str) -> str:
    source = _require_text(entry.get("source"), f"{place}.source")
    if not source or "\0" in source or len(os.fsencode(source)) > _LONGEST_PATH:
        raise _OtherFormError(tr("{place}.source", place=place), tr("a folder or a Hub id"), source)
    return source


def _parse_file_name(name: str) -> str:
    plain = Path(name).name == name and name not in ("", "..") and not set(name) & set("\\\0")
    if not plain or len(os.fsencode(name)) > _LONGEST_NAME:
        raise _OtherFormError(tr("files"), tr("names of files in the folder"), name)
    return name


def _require_object(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _OtherFormError(place, "{...}", value)
    return value


def _require_list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise _OtherFormError(place, "[...]", value)
    return value


def _require_text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise _OtherFormError(place, tr("text"), value)
    return value


def _require_number(value: Any, place: str, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _OtherFormError(place, tr("whole numbers from {least} on", least=least), value)
    return value


def _require_digest(value: Any, place: str, digits: int) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
        raise _OtherFormError(place, tr("{digits} hexadecimal digits", digits=digits), value)
    return value


def _require_choice(value: Any, place: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise _OtherFormError(place, join(tr(" or "), choices), value)
    return str(value)


def list_files(folder: Path, manifest: Manifest) -> list[Path]:
    """The files of a manifest that are there."""
    return [folder / name for name in manifest.files if (folder / name).is_file()]


def check_files(folder: Path, manifest: Manifest, sha256: Hash) -> Iterator[VerificationError]:
    """Yield what is wrong with the files: missing, of another size or content, or not listed.

    ``sha256`` gives the digest of a file; one of another size is not read.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            yield VerificationError(
                tr("a file of the model is missing"), file=path, remedy=_COPY_AGAIN
            )
            continue
        size, expected = path.stat().st_size, entry.nbytes
        if size != expected:
            yield VerificationError(
                tr("a file is cut off")
                if size < expected
                else tr("a file is longer than it was written"),
                file=path,
                expected=tr("{expected:,} bytes", expected=expected),
                found=tr("{size:,} bytes", size=size),
                remedy=_COPY_AGAIN,
            )
        elif (found := sha256(path)) != entry.sha256:
            yield VerificationError(
                tr("a file has other bytes than the merge wrote"),
                file=path,
                expected=tr("SHA-256 {sha256}", sha256=entry.sha256),
                found=tr("SHA-256 {found}", found=found),
                remedy=_COPY_AGAIN,
            )
    listed = {*manifest.files, MANIFEST_NAME}
    present = {path.name for pattern in _WEIGHTS for path in folder.glob(pattern)}
    for name in sorted(present - listed):
        yield VerificationError(
            tr("the folder holds weights that the merge did not write; a reader may take them"),
            file=folder / name,
            expected=tr("only files of the manifest"),
            remedy=tr("move the file away"),
        )
