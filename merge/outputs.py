"""What may stand in the output folder before a run, and what ``--overwrite`` replaces."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .errors import OutputError
from .json_text import read_json

MANIFEST_NAME = "merge_manifest.json"
# Files by which some reader takes a folder for a model, so that two models would be mixed up.
_MODEL_FILES = (
    "*.pth",
    "*.bin",
    "*.safetensors",
    "*.gguf",
    "*.index.json",
    "config.json",
    "generation_config.json",
    "params.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    MANIFEST_NAME,
)


def require_free(folder: Path, inputs: Iterable[Path], overwrite: bool) -> list[Path]:
    """Check that a model may be written to ``folder``; return the files it will replace.

    Those are the files of an earlier result, as its manifest lists them. Raises ``OutputError`` for
    a folder that is read from, for model files without ``overwrite``, and with it for model files
    that no manifest claims.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError("the output folder is a file", file=folder, remedy="choose another name")
    if not folder.exists():
        return []
    for source in inputs:
        if source.is_dir() and folder.samefile(source):
            raise OutputError(
                "the output folder is one of the inputs, which would be overwritten",
                file=folder,
                remedy="choose another --output_dir",
            )
    present = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)})
    if present and not overwrite:
        raise OutputError(
            "the output folder holds a model already",
            file=folder,
            expected="a folder without model files",
            found=_listed(present),
            remedy="choose another --output_dir, or replace an earlier result with --overwrite",
        )
    ours = _files_of_earlier_run(folder)
    if foreign := [path for path in present if path.name not in ours]:
        raise OutputError(
            "the output folder holds model files that no earlier merge wrote",
            file=folder,
            found=_listed(foreign),
            remedy="choose another --output_dir, or move these files away",
        )
    return present


def _files_of_earlier_run(folder: Path) -> set[str]:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return set()
    files = read_json(path).get("files")
    return {MANIFEST_NAME, *files} if isinstance(files, dict) else {MANIFEST_NAME}


def _listed(paths: list[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
