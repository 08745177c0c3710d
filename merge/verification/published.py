"""Files by their published SHA-256: what each is, what is missing, what is unknown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checksums import read_digest
from ..errors import UsageError, VerificationError
from ..known import KnownFile, known_files, known_sets, tokenizer_of
from ..outputs import MANIFEST_NAME

_WEIGHTS = (".pth", ".bin", ".safetensors")
_TOKENIZER = ".model"
_LFS_POINTER = b"version https://git-lfs"

OnBytes = Callable[[int], object]
OnProgress = Callable[[int, int], object]


@dataclass(frozen=True)
class Checked:
    """A file with its digest, and what it is known as.

    ``is_pointer``: Git LFS left a few lines of text in place of the file.
    """

    path: Path
    sha256: str
    known: KnownFile | None
    is_pointer: bool = False

    def told(self) -> str:
        """What the file is, in words."""
        if self.is_pointer:
            return "not the file, only its Git LFS pointer: run `git lfs pull` there"
        if self.known is None:
            return "unknown"
        return f"{self.known.model}, {self.known.file_name} · {self.known.kind}"


def files_of(path: Path) -> list[Path]:
    """A file itself, or the weights and tokenizers of a folder and of those in it.

    Raises ``UsageError`` for what does not exist or holds none.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise UsageError("the path does not exist", file=path, remedy="check the spelling")
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and _is_checked(p)]
    if not files and not (path / MANIFEST_NAME).is_file():
        raise UsageError(
            "the folder holds no file that has a published checksum",
            file=path,
            expected=f"*{', *'.join(_WEIGHTS)} or *{_TOKENIZER}",
            remedy="give the folder of a model or an adapter",
        )
    return files


def _is_checked(path: Path) -> bool:
    return path.suffix in (*_WEIGHTS, _TOKENIZER)


def check(path: Path, on_bytes: OnBytes | None = None) -> Checked:
    """Read a file and look it up."""
    digest = read_digest(path, on_bytes)
    return Checked(path, digest, known_files().get(digest), _is_pointer(path))


def _is_pointer(path: Path) -> bool:
    if path.stat().st_size > 1024:
        return False
    return path.read_bytes().startswith(_LFS_POINTER)


def missing_parts(files: Sequence[Checked]) -> Iterator[tuple[KnownFile, list[KnownFile]]]:
    """Yield each set of which a part is there but not all: one that is there, and the missing."""
    present = {file.sha256 for file in files}
    for parts in known_sets().values():
        here = [part for part in parts if part.sha256 in present]
        lacking = [part for part in parts if part.sha256 not in present]
        if here and lacking:
            yield here[0], lacking


def require_known_model(name: str) -> None:
    """Raise ``UsageError`` unless ``SHA256.md`` has files of a model of that name."""
    names = sorted({known.model for known in known_files().values() if not known.is_tokenizer})
    if name not in names:
        near = difflib.get_close_matches(name, names, 4, 0.5)
        raise UsageError(
            "no checksums are published for a model of that name",
            expected=", ".join(near or names),
            found=f"--expect {name!r}",
            remedy="write the name as in SHA256.md",
        )


def mismatches(files: Sequence[Checked], model: str) -> Iterator[VerificationError]:
    """Yield every reason why ``files`` are not a whole published set of ``model``.

    A tokenizer must be the one published for it, where one is.
    """
    weights = [file for file in files if file.path.suffix != _TOKENIZER]
    for file in weights:
        if file.known is None or file.known.model != model:
            yield _other(file, model, _wanted(file.path, model))
    tokenizer = tokenizer_of(model)
    for file in files:
        other = file not in weights and tokenizer and file.sha256 != tokenizer.sha256
        if other or (file.is_pointer and file not in weights):
            yield _other(file, model, tokenizer)
    present = {file.sha256 for file in weights}
    sets = [parts for (_, name), parts in known_sets().items() if name == model]
    begun = [parts for parts in sets if any(part.sha256 in present for part in parts)]
    for parts in begun:
        for part in parts:
            if part.sha256 not in present:
                yield VerificationError(
                    f"a part of {model} is missing",
                    file=part.file_name,
                    expected=f"SHA-256 {part.sha256}",
                    found=f"{len(present & {p.sha256 for p in parts})} of {len(parts)} parts",
                    remedy="give all parts, or download the missing one",
                )
    if not begun and not weights:
        yield VerificationError(
            f"no weights of {model} are among the files",
            expected=" or ".join(sorted({part.kind for parts in sets for part in parts})),
            remedy="give the folder that holds them",
        )


def _wanted(path: Path, model: str) -> KnownFile | None:
    """Which published part a file would be by its name."""
    shard = re.fullmatch(r"consolidated\.(\d+)\.pth", path.name)
    numbered = re.fullmatch(r"pytorch_model-(\d+)-of-\d+\.bin", path.name)
    for (group, name), parts in known_sets().items():
        if name != model:
            continue
        number = None
        if shard and "(consolidated." in group:
            number = int(shard[1])
        elif numbered and "(pytorch_model-" in group:
            first = (
                "-00000-of-" in path.name
                or path.with_name(path.name.replace(f"-{numbered[1]}-", "-00000-")).exists()
            )
            number = int(numbered[1]) - (0 if first else 1)
        elif path.name == "adapter_model.bin" and "(adapter_model.bin)" in group:
            number = 0
        if number is not None:
            return next((part for part in parts if int(part.part) == number), None)
    return None


def _other(file: Checked, model: str, wanted: KnownFile | None) -> VerificationError:
    if file.is_pointer:
        return VerificationError(
            "this is a Git LFS pointer, a few lines of text in place of the file",
            file=file.path,
            expected=f"{model}",
            remedy="run `git lfs pull` in that folder, or download the file itself",
        )
    expected = f"SHA-256 {wanted.sha256} ({wanted.file_name})" if wanted else f"a file of {model}"
    known = f", known as {file.told()}" if file.known else ", which is not a published file"
    return VerificationError(
        f"the file is not the one published for {model}",
        file=file.path,
        expected=expected,
        found=f"SHA-256 {file.sha256}{known}",
        remedy=_remedy(file),
    )


def _remedy(file: Checked) -> str:
    if file.known is not None:
        return "another model's file: give the right one, or another --expect"
    if file.path.suffix == ".safetensors":
        return "safetensors have no published checksums; compare_checkpoints.py compares numbers"
    return (
        "fetch the file again; if it was merged or saved anew, its bytes may differ although its "
        "numbers do not: compare_checkpoints.py compares those"
    )


def require_published(folder: Path, on_progress: OnProgress | None = None) -> str:
    """Read a base's files and say, in a line, what they are known as.

    Files that nobody published are said to be unknown. Raises ``VerificationError`` where some are
    published ones and others are not, or are another model's: then some are damaged or mixed up.
    """
    paths = [path for path in sorted(folder.iterdir()) if path.suffix in _WEIGHTS]
    total, done = sum(path.stat().st_size for path in paths), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, total)

    files = [check(path, on_bytes) for path in paths]
    first = next((file.known for file in files if file.known is not None), None)
    if first is None:
        return f"base       none of its {len(files)} weight files has a published checksum"
    if fault := next(mismatches(files, first.model), None):
        raise fault
    return f"base       {first.model} · {first.kind}: all {len(files)} files as published"
