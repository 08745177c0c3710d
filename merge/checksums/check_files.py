"""Files by their published SHA-256: what each is, what is missing, what is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError, VerificationError
from ..messages import join, tr
from ..settings import OnProgress
from ..sizes import OnBytes
from ..storage.folder import Folder
from ..untrusted.placeholders import HEAD_BYTES, is_lfs_pointer
from ..version import MANIFEST_NAME
from .file_digests import hash_file
from .known_files import KnownFile, find_tokenizer, group_known_files, load_known_files
from .part_names import find_part, get_part_name, has_part_name

_PUBLISHED = (".pth", ".bin")
# Nobody published checksums of the others, but a program may take such a file for the model.
_WEIGHTS = (*_PUBLISHED, ".safetensors", ".gguf", ".ggml", ".pt", ".ckpt", ".h5", ".msgpack")
_TOKENIZER = ".model"


@dataclass(frozen=True)
class CheckedFile:
    """A file with its digest, and what it is known as.

    ``is_pointer``: Git LFS left a few lines of text in place of the file. ``alone``: the file
    itself was given, not a folder that holds it, so its contents count and not its name.
    """

    path: Path
    sha256: str
    known: KnownFile | None
    is_pointer: bool = False
    alone: bool = False

    @property
    def is_tokenizer(self) -> bool:
        """Whether this is in a tokenizer's place."""
        if self.alone and self.known is not None:
            return self.known.is_tokenizer
        return self.path.suffix == _TOKENIZER

    @property
    def is_misnamed(self) -> bool:
        """Whether a program would look for these contents under another name."""
        if self.known is None or self.path.name == get_part_name(self.path, self.known):
            return False
        return not self.alone or has_part_name(self.path)

    def describe(self) -> str:
        """Describe the file in a line or two."""
        if self.is_pointer:
            return tr("not the file, only its Git LFS pointer: run `git lfs pull` there")
        if self.known is None:
            return tr("unknown")
        if self.is_misnamed:
            name = get_part_name(self.path, self.known)
            return tr(
                "{describe}\n    misnamed: these are the contents of {name}",
                describe=self.known.describe(),
                name=name,
            )
        return self.known.describe()


def find_files(path: Path) -> list[Path]:
    """A file itself, or the weights and tokenizers of a folder and of those in it.

    Raises ``UsageError`` for what does not exist or holds none.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise UsageError(tr("the path does not exist"), file=path, remedy=tr("check the spelling"))
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and _is_checked(p)]
    if not files and not (path / MANIFEST_NAME).is_file():
        raise UsageError(
            tr("the folder holds no file that has a published checksum"),
            file=path,
            expected=tr(
                "*{published} or *{tokenizer}",
                published=", *".join(_PUBLISHED),
                tokenizer=_TOKENIZER,
            ),
            remedy=tr("give the folder of a model or an adapter"),
        )
    return files


def _is_checked(path: Path) -> bool:
    return path.suffix.lower() in (*_WEIGHTS, _TOKENIZER)


def check_file(path: Path, on_bytes: OnBytes | None = None, alone: bool = False) -> CheckedFile:
    """Read a file and look it up."""
    digest = hash_file(path, on_bytes)
    with path.open("rb") as stream:
        is_pointer = is_lfs_pointer(stream.read(HEAD_BYTES))
    return CheckedFile(path, digest, load_known_files().get(digest), is_pointer, alone)


def group_by_folder(files: Iterable[CheckedFile]) -> dict[Path | None, list[CheckedFile]]:
    """The files by the folder in which they were found; under None those that were given alone.

    A program looks for the parts of a model in one folder.
    """
    groups: dict[Path | None, list[CheckedFile]] = {}
    for file in files:
        groups.setdefault(None if file.alone else file.path.parent, []).append(file)
    return groups


def find_missing_parts(files: Iterable[CheckedFile]) -> Iterator[tuple[KnownFile, list[KnownFile]]]:
    """Yield each set of which a part is there but not all: one that is there, and the missing."""
    present = {file.sha256 for file in files}
    for parts in group_known_files().values():
        here = [part for part in parts if part.sha256 in present]
        lacking = [part for part in parts if part.sha256 not in present]
        if here and lacking:
            yield here[0], lacking


def require_known_model(name: str) -> None:
    """Raise ``UsageError`` unless ``SHA256.md`` has files of a model of that name."""
    names = sorted({known.model for known in load_known_files().values() if not known.is_tokenizer})
    if name not in names:
        near = difflib.get_close_matches(name, names, 4, 0.5)
        raise UsageError(
            tr("no checksums are published for a model of that name"),
            expected=", ".join(near or names),
            found=tr("--expect {name!r}", name=name),
            remedy=tr("write the name as in SHA256.md"),
        )


def find_mismatches(files: Sequence[CheckedFile], model: str) -> Iterator[VerificationError]:
    """Yield every reason why ``files`` are not a whole published set of ``model``.

    Each file of a folder must be the part that its name says, and each folder that holds a part
    must hold all. A tokenizer must be the one published for the model, where one is.
    """
    for file in files:
        if not _belongs_to(file, model):
            yield _other_file_error(file, model)
        elif file.is_misnamed and not file.alone:
            yield _misnamed_error(file, model)
    for folder, group in group_by_folder(files).items():
        yield from _list_missing_errors(folder, group, model)
    if all(file.is_tokenizer for file in files):
        kinds = {kind.partition(" · ")[0] for kind, name in group_known_files() if name == model}
        yield VerificationError(
            tr("no weights of {model} are among the files", model=model),
            expected=join(tr(" or "), sorted(kinds)),
            found=tr("{n_files} tokenizers", n_files=len(files)) if files else tr("no files"),
            remedy=tr("give the folder that holds them"),
        )


def _belongs_to(file: CheckedFile, model: str) -> bool:
    """Whether the contents are a part of the model, whatever the file is called."""
    if file.is_pointer:
        return False
    if file.is_tokenizer:  # an unknown one may be right where none was published
        return file.known == find_tokenizer(model)
    return file.known is not None and file.known.model == model


def _list_missing_errors(
    folder: Path | None, files: Iterable[CheckedFile], model: str
) -> Iterator[VerificationError]:
    for here, lacking in find_missing_parts(files):
        if here.model != model:
            continue
        parts = len(group_known_files()[here.group, model])
        for part in lacking:
            yield VerificationError(
                tr("a part of {model} is missing", model=model),
                file=folder / part.file_name if folder else part.file_name,
                expected=tr("SHA-256 {sha256}", sha256=part.sha256),
                found=tr("{parts} of {parts_2} parts", parts=parts - len(lacking), parts_2=parts)
                + (tr(" in this folder") if folder else ""),
                remedy=tr("put all parts into one folder, or download the missing one")
                if folder
                else tr("give all parts, or download the missing one"),
            )


def _misnamed_error(file: CheckedFile, model: str) -> VerificationError:
    assert file.known is not None
    wanted, name = find_part(file.path, model), get_part_name(file.path, file.known)
    return VerificationError(
        tr("the file has the contents of another part than its name says")
        if wanted
        else tr("{model} has no file of that name", model=model),
        file=file.path,
        expected=tr(
            "SHA-256 {sha256} ({file_name})", sha256=wanted.sha256, file_name=wanted.file_name
        )
        if wanted
        else name,
        found=tr("SHA-256 {sha256}, the contents of {name}", sha256=file.sha256, name=name),
        remedy=tr(
            "rename it to {name}; if a file with these contents is there under "
            "that name, remove this one",
            name=name,
        ),
    )


def _other_file_error(file: CheckedFile, model: str) -> VerificationError:
    if file.is_pointer:
        return VerificationError(
            tr("this is a Git LFS pointer, not the file itself"),
            file=file.path,
            expected=f"{model}",
            remedy=tr("run `git lfs pull` in that folder, or download the file itself"),
        )
    wanted = find_tokenizer(model) if file.is_tokenizer else find_part(file.path, model)
    expected = (
        tr("SHA-256 {sha256} ({file_name})", sha256=wanted.sha256, file_name=wanted.file_name)
        if wanted
        else tr("a file of {model}", model=model)
    )
    known = (
        tr("known as {describe}", describe=file.known.describe())
        if file.known
        else tr("which is not a published file")
    )
    return VerificationError(
        tr("the file is not the one published for {model}", model=model)
        if wanted
        else tr("{model} has no such file", model=model),
        file=file.path,
        expected=expected,
        found=tr("SHA-256 {sha256}, {known}", sha256=file.sha256, known=known),
        remedy=_choose_remedy(file, wanted),
    )


def _choose_remedy(file: CheckedFile, wanted: KnownFile | None) -> str:
    if file.known is not None:
        return tr("another model's file: give the right one, or another --expect")
    if file.path.suffix == ".safetensors":
        return tr(
            "safetensors have no published checksums; compare_checkpoints.py compares numbers"
        )
    first = (
        tr("fetch the file again") if wanted else tr("if it is not part of the model, move it away")
    )
    return tr(
        "{first}; if it was merged or saved again, its bytes may differ "
        "although its numbers do not: compare_checkpoints.py compares those",
        first=first,
    )


def require_published(folder: Folder, on_progress: OnProgress | None = None) -> str:
    """Read a base's files and return a line that says what they are known as.

    A base without any published file is reported as such. Raises ``VerificationError`` where some
    are published and others are not, are another model's, or have the name of another part: then
    some are damaged or mixed up.
    """
    paths = [path for path in sorted(folder.files.values()) if path.suffix.lower() in _WEIGHTS]
    total, done = sum(path.stat().st_size for path in paths), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, total)

    files = [check_file(path, on_bytes) for path in paths]
    known = [file.known for file in files if file.known and not file.known.is_tokenizer]
    first = known[0] if known else None
    if first is None:
        return tr(
            "base       none of its {n_files} weight files has a published checksum",
            n_files=len(files),
        )
    if fault := next(find_mismatches(files, first.model), None):
        raise fault
    return tr(
        "base       {model} · {kind}: all {n_files} files as published",
        model=first.model,
        kind=first.kind,
        n_files=len(files),
    )
