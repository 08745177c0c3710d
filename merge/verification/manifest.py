"""The files of a merged model against its ``merge_manifest.json``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError, VerificationError
from ..json_text import read_json
from ..outputs import MANIFEST_NAME

# Files that some reader would take for a part of the model.
_WEIGHTS = ("*.pth", "*.bin", "*.safetensors", "*.gguf", "*.index.json")
_AGAIN = "copy the folder again from where it was right, or merge again"

Hash = Callable[[Path], str]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a merged model. Raises ``FormatError`` when there is none, or another."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise FormatError(
            "the folder holds no manifest: nothing says what its files were",
            file=path,
            expected=MANIFEST_NAME,
            remedy="give the output folder of a merge made here; two models without a manifest "
            "are compared with compare_checkpoints.py",
        )
    manifest = read_json(path)
    for key in ("files", "tensors"):
        if not isinstance(manifest.get(key), dict):
            raise FormatError(
                "the manifest is not one of this program, or of an older release",
                file=path,
                expected=f'"{key}": {{...}}',
                found=f"{type(manifest.get(key)).__name__}",
                remedy="merge again with this release",
            )
    return manifest


def listed_files(folder: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """The files of a manifest that are there."""
    return [folder / name for name in manifest["files"] if (folder / name).is_file()]


def check_files(
    folder: Path, manifest: Mapping[str, Any], sha256: Hash
) -> Iterator[VerificationError]:
    """Yield what is wrong with the files: missing, of another size or content, or not listed.

    ``sha256`` gives the digest of a file; one of another size is not read.
    """
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            yield VerificationError("a file of the model is missing", file=path, remedy=_AGAIN)
            continue
        size, wanted = path.stat().st_size, int(entry.get("bytes", -1))
        if size != wanted:
            yield VerificationError(
                "a file is cut off" if size < wanted else "a file is longer than it was written",
                file=path,
                expected=f"{wanted:,} bytes",
                found=f"{size:,} bytes",
                remedy=_AGAIN,
            )
        elif (found := sha256(path)) != entry.get("sha256"):
            yield VerificationError(
                "a file has other bytes than the merge wrote",
                file=path,
                expected=f"SHA-256 {entry.get('sha256')}",
                found=f"SHA-256 {found}",
                remedy=_AGAIN,
            )
    listed = {*manifest["files"], MANIFEST_NAME}
    present = {path.name for pattern in _WEIGHTS for path in folder.glob(pattern)}
    for name in sorted(present - listed):
        yield VerificationError(
            "the folder holds weights that the merge did not write; a reader may take them",
            file=folder / name,
            expected="only files of the manifest",
            remedy="move the file away",
        )
