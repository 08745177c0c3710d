"""The ``tokenizer.model`` files that mix-ups are made of, recognised by their SHA-256.

The digests name a file; they do not vouch for it. They are read from ``SHA256.md``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from .known import known_files


@dataclass(frozen=True)
class KnownTokenizer:
    """A published ``tokenizer.model``: its name and the number of its pieces."""

    name: str
    pieces: int


def _published(heading: str, model: str) -> str:
    """The digest in ``SHA256.md``; empty where that was not installed along."""
    rows = (k for k in known_files().values() if k.group.startswith(heading) and k.model == model)
    return next((known.sha256 for known in rows), "")


LLAMA = _published("Tokenizer of", "LLaMA")
CHINESE_LLAMA = _published("Tokenizers", "LLaMA (7B, 13B, 33B)")
CHINESE_ALPACA = _published("Tokenizers", "Alpaca (7B, 13B, 33B)")

_PUBLISHED = (
    (LLAMA, KnownTokenizer("LLaMA", 32000)),
    (CHINESE_LLAMA, KnownTokenizer("Chinese-LLaMA", 49953)),
    (CHINESE_ALPACA, KnownTokenizer("Chinese-Alpaca", 49954)),
)
TOKENIZERS: dict[str, KnownTokenizer] = {digest: known for digest, known in _PUBLISHED if digest}


def recognise(path: Path) -> KnownTokenizer | None:
    """Name the published tokenizer whose bytes ``path`` holds, or ``None``."""
    return recognise_bytes(path.read_bytes())


def recognise_bytes(content: bytes) -> KnownTokenizer | None:
    """Name the published tokenizer that these bytes are, or ``None``."""
    return TOKENIZERS.get(hashlib.sha256(content).hexdigest())


BY_ROWS = {known.pieces: known for _, known in _PUBLISHED} | {
    55296: KnownTokenizer("Chinese-LLaMA-2", 55296)  # known by its size alone
}


def explain_mismatch(tokenizer: KnownTokenizer | None, rows: int) -> str | None:
    """Explain embeddings of ``rows`` rows beside ``tokenizer``, if both sizes tell a family.

    >>> print(explain_mismatch(TOKENIZERS[CHINESE_LLAMA], 49954))
    This is the Chinese-LLaMA tokenizer (49953 pieces), but 49954 rows are those of Chinese-Alpaca;
    build its tokenizer with `merge_tokenizers.py --pad_token`, or pass it with --tokenizer
    """
    owner = BY_ROWS.get(rows)
    if tokenizer is None or owner is None or tokenizer.pieces == rows:
        return None
    build = {
        CHINESE_LLAMA: "`merge_tokenizers.py`",
        CHINESE_ALPACA: "`merge_tokenizers.py --pad_token`",
    }
    command = next(
        (build[d] for d, known in TOKENIZERS.items() if d in build and known == owner), ""
    )
    return (
        f"This is the {tokenizer.name} tokenizer ({tokenizer.pieces} pieces), "
        f"but {rows} rows are those of {owner.name};\n"
        + (f"build its tokenizer with {command}, or pass it" if command else "pass its tokenizer")
        + " with --tokenizer"
    )
