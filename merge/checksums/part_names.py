"""The names under which programs look for the parts of a published model."""

from __future__ import annotations

import re
from pathlib import Path

from .known_files import KnownFile, find_tokenizer, group_known_files

_A_PART = re.compile(
    r"consolidated\.\d+\.pth|pytorch_model-\d+-of-\d+\.bin|adapter_model\.bin|tokenizer\.model"
)
_SHARD = re.compile(r"pytorch_model-\d+-(?P<count>of-\d+)\.bin")


def has_part_name(path: Path) -> bool:
    """Whether the name is one that parts of models have.

    >>> has_part_name(Path("consolidated.07.pth")), has_part_name(Path("download.pth"))
    (True, False)
    """
    return _A_PART.fullmatch(path.name) is not None


def get_part_name(path: Path, part: KnownFile) -> str:
    """What a file with the contents of ``part`` is called in the folder of ``path``.

    >>> hidden = KnownFile("Weights (consolidated.*.pth) · x", "13B", "01", "")
    >>> get_part_name(Path("a.pth"), hidden)
    'consolidated.01.pth'
    """
    if part.pattern != "pytorch_model-*.bin":
        return part.file_name
    number = int(part.part) + _find_first_number(path)
    return f"pytorch_model-{number:05}-of-{len(group_known_files()[part.group, part.model]):05}.bin"


def _find_first_number(path: Path) -> int:
    """The number of the first shard: 1, or 0 where the folder has a shard of that number."""
    shard = _SHARD.fullmatch(path.name)
    if shard is None:
        return 1
    return 0 if path.with_name(f"pytorch_model-00000-{shard['count']}.bin").exists() else 1


def find_part(path: Path, model: str) -> KnownFile | None:
    """Which published part or tokenizer of ``model`` a file would be by its name."""
    tokenizer = find_tokenizer(model)
    if tokenizer is not None and path.name == tokenizer.file_name:
        return tokenizer
    parts = (
        part for (_, name), parts in group_known_files().items() if name == model for part in parts
    )
    return next((part for part in parts if path.name == get_part_name(path, part)), None)
