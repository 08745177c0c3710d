"""Llama 3's tokenizer as Meta's code makes it, with the package ``tiktoken``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

# The pattern of ``Tokenizer.pat_str`` in Meta's ``llama3`` repository.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class MetaTokenizer:
    """Ids of text by a tiktoken file; ``special`` are special tokens with their ids."""

    def __init__(self, path: Path, special: Mapping[str, int]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tiktoken
            from tiktoken.load import load_tiktoken_bpe

        self._encoding = tiktoken.Encoding(
            name=path.name,
            pat_str=_PATTERN,
            mergeable_ranks=load_tiktoken_bpe(str(path)),
            special_tokens=dict(special),
        )

    def encode(self, text: str) -> list[int]:
        """Ids without anything in front; special tokens in the text are read as such."""
        return self._encoding.encode(text, allowed_special="all")
