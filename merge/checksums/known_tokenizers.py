"""The published ``tokenizer.model`` files, recognized by their SHA-256.

The digests name a file; they do not vouch for it. They are read from ``SHA256.md``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..messages import tr
from .known_files import load_known_files


@dataclass(frozen=True)
class KnownTokenizer:
    """A published ``tokenizer.model``: its name, the number of its pieces, and how to build it."""

    name: str
    pieces: int
    command: str | None = None


LLAMA = KnownTokenizer("LLaMA", 32000)
CHINESE_LLAMA = KnownTokenizer("Chinese-LLaMA", 49953, "merge_tokenizers.py")
CHINESE_ALPACA = KnownTokenizer("Chinese-Alpaca", 49954, "merge_tokenizers.py --pad_token")
# By the beginning of the heading in ``SHA256.md``, and the name of the model there.
_ROWS = {
    ("Tokenizer of", "LLaMA"): LLAMA,
    ("Tokenizers", "LLaMA (7B, 13B, 33B)"): CHINESE_LLAMA,
    ("Tokenizers", "Alpaca (7B, 13B, 33B)"): CHINESE_ALPACA,
}
_BY_PIECES = {known.pieces: known for known in _ROWS.values()} | {
    55296: KnownTokenizer("Chinese-LLaMA-2", 55296)  # known by its size alone
}


@cache
def _load_by_digest() -> dict[str, KnownTokenizer]:
    """The tokenizers by SHA-256; none where ``SHA256.md`` was not installed along."""
    return {
        file.sha256: known
        for file in load_known_files().values()
        for (heading, model), known in _ROWS.items()
        if file.group.startswith(heading) and file.model == model
    }


def recognize_digest(sha256: str) -> KnownTokenizer | None:
    """Name the published tokenizer with this SHA-256, or ``None``."""
    return _load_by_digest().get(sha256)


def recognize_bytes(content: bytes) -> KnownTokenizer | None:
    """Name the published tokenizer that these bytes are, or ``None``."""
    return recognize_digest(hashlib.sha256(content).hexdigest())


def recognize_file(path: Path) -> KnownTokenizer | None:
    """Name the published tokenizer whose bytes ``path`` holds, or ``None``."""
    return recognize_bytes(path.read_bytes())


def explain_mismatch(tokenizer: KnownTokenizer | None, rows: int) -> str | None:
    """Explain embeddings of ``rows`` rows beside ``tokenizer``, if published models have both.

    >>> print(explain_mismatch(CHINESE_LLAMA, 49954))
    This is the Chinese-LLaMA tokenizer (49953 pieces), but 49954 rows are those of Chinese-Alpaca;
    build its tokenizer with `merge_tokenizers.py --pad_token`, or pass it with --tokenizer
    """
    owner = _BY_PIECES.get(rows)
    if tokenizer is None or owner is None or tokenizer.pieces == rows:
        return None
    build = (
        tr("build its tokenizer with `{command}`, or pass it", command=owner.command)
        if owner.command
        else ""
    )
    return tr(
        "This is the {name} tokenizer ({pieces} pieces), but {rows} rows are "
        "those of {name_2};\n"
        "{build} with --tokenizer",
        name=tokenizer.name,
        pieces=tokenizer.pieces,
        rows=rows,
        name_2=owner.name,
        build=build or tr("pass its tokenizer"),
    )
