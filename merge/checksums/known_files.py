"""The published files, known by SHA-256.

The checksums stand in ``SHA256.md`` at the root of the project and nowhere else. A digest names a
file; it does not vouch for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..messages import tr

_NAME = "SHA256.md"


def _find_checksums() -> Path:
    """The table beside the code of a checkout, else where it was installed: for ``pip --target``
    beside the code, too, otherwise by the installation's own list of files.
    """
    root = Path(__file__).resolve().parents[2]
    for beside_code in (root / _NAME, root / "share" / "chinese-llama-merge" / _NAME):
        if beside_code.is_file():
            return beside_code
    from importlib.metadata import PackageNotFoundError, files

    try:
        installed = files("chinese-llama-merge") or []
    except PackageNotFoundError:
        installed = []
    found = (Path(str(file.locate())) for file in installed if file.name == _NAME)
    return next(found, root / _NAME)


CHECKSUMS = _find_checksums()
_HEADING = re.compile(r"## (?P<title>.+)")
_ROW = re.compile(r"\| (?P<model>.+?) \| (?P<part>\d+) \| `(?P<sha256>[0-9a-f]{64})` \|")
_ADAPTERS = tr("LoRA adapters")
_ORIGINALS = tr("Original weights")


@dataclass(frozen=True)
class KnownFile:
    """A row of ``SHA256.md``."""

    group: str
    model: str
    part: str
    sha256: str

    @property
    def kind(self) -> str:
        """What the heading says in English, such as ``LoRA adapters (adapter_model.bin)``."""
        return self.group.partition(" · ")[0]

    @property
    def is_tokenizer(self) -> bool:
        """Whether this is a ``tokenizer.model``."""
        return "(tokenizer.model)" in self.kind

    @property
    def pattern(self) -> str:
        """How files of this kind are called, with ``*`` for what differs between parts."""
        return self.kind.rpartition("(")[2].rstrip(")")

    @property
    def file_name(self) -> str:
        """The name of the file, as far as its part determines it."""
        names = {"consolidated.*.pth": f"consolidated.{self.part}.pth"}
        pattern = self.pattern
        return names.get(
            pattern,
            tr("part {part} of {pattern}", part=self.part, pattern=pattern)
            if "*" in pattern
            else pattern,
        )

    def describe(self) -> str:
        """Describe the file in a line."""
        return f"{self.model}, {self.file_name} · {self.kind}"


@cache
def load_known_files() -> dict[str, KnownFile]:
    """The published files by digest; none where ``SHA256.md`` was not installed along."""
    if not CHECKSUMS.is_file():
        return {}
    files, group = {}, ""
    for line in CHECKSUMS.read_text(encoding="utf-8").splitlines():
        if heading := _HEADING.fullmatch(line):
            group = heading["title"]
        if row := _ROW.fullmatch(line):
            files[row["sha256"]] = KnownFile(group, row["model"], row["part"], row["sha256"])
    return files


def group_known_files() -> dict[tuple[str, str], tuple[KnownFile, ...]]:
    """The files that belong together, by heading and model, in the order of their parts."""
    sets: dict[tuple[str, str], tuple[KnownFile, ...]] = {}
    for known in load_known_files().values():
        key = known.group, known.model
        sets[key] = (*sets.get(key, ()), known)
    return sets


def find_tokenizer(model: str) -> KnownFile | None:
    """The published tokenizer of a model, by the name of the model.

    >>> find_tokenizer("Chinese-Alpaca-Pro-7B").model
    'Alpaca (7B, 13B, 33B)'
    >>> find_tokenizer("13B").model
    'LLaMA'
    """
    if any(name == model and group.startswith(_ORIGINALS) for group, name in group_known_files()):
        group, family = tr("Tokenizer of the original models"), ""
    elif model.startswith("Chinese-"):
        group, family = "Tokenizers", model.split("-")[1]
    else:
        return None
    tokenizers = (k for k in load_known_files().values() if k.group.startswith(group))
    return next((k for k in tokenizers if k.model.startswith(family)), None)


def identify_adapter(digest: str) -> str | None:
    """The name of a published adapter by the SHA-256 of its ``adapter_model.bin``.

    >>> names = [identify_adapter(digest) for digest in load_known_files()]
    >>> [name for name in names if name is not None and name.endswith("Pro-7B")]
    ['Chinese-Alpaca-Pro-7B']
    """
    found = load_known_files().get(digest)
    return found.model if found is not None and found.group.startswith(_ADAPTERS) else None
