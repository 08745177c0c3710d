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
_MODELS = ("base_model", "delta_model", "target_model", "model")
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
    for fault in _form(manifest):
        raise FormatError(
            "the manifest is not one of this program, or of another release",
            file=path,
            found=fault,
            remedy="merge again with this release",
        )
    return manifest


def _form(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Say where a manifest is not as it is written here."""
    for key in ("files", "tensors", "inputs"):
        entries = manifest.get(key)
        if not isinstance(entries, dict):
            yield f'no "{key}": {{...}}'
            return
    for name, entry in manifest["files"].items():
        if Path(name).name != name or "\\" in name:
            yield f"a file outside the folder: {name!r}"
        elif not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int):
            yield f"no size of {name!r}"
        elif not isinstance(entry.get("sha256"), str):
            yield f"no SHA-256 of {name!r}"
    inputs = manifest["inputs"]
    models = [inputs[role] for role in _MODELS if role in inputs]
    adapters = inputs.get("adapters", [])
    for entry in (*models, *(adapters if isinstance(adapters, list) else [None])):
        if not isinstance(entry, dict) or not isinstance(entry.get("source"), str):
            yield "an input without its source"
    tensors = [manifest["tensors"], *(e["tensors"] for e in models if "tensors" in e)]
    for mapping in tensors:
        if not isinstance(mapping, dict) or not all(isinstance(e, dict) for e in mapping.values()):
            yield "tensors that are no {name: {...}}"
            return


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
        size, wanted = path.stat().st_size, entry["bytes"]
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
