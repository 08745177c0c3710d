"""The tokenizer inside a GGUF file: its metadata ``tokenizer.*``, copied into another one.

No file of a tokenizer can be made of it that gives the same ids in other programs: pieces, scores
and types are there, but not what a ``tokenizer.model`` says of normalization and training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

TOKENS = "tokenizer.ggml.tokens"
TEMPLATE = "tokenizer.chat_template"
# What makes ids of text; the others are special ids, templates and flags.
_VOCABULARY = (
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    TOKENS,
    "tokenizer.ggml.scores",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
)


@dataclass(frozen=True)
class EmbeddedTokenizer:
    """The keys ``tokenizer.*`` of the GGUF file ``path``: values, and GGUF's numbers of types."""

    path: Path
    metadata: Mapping[str, Any] = field(repr=False)
    types: Mapping[str, tuple[int, int | None]] = field(default_factory=dict, repr=False)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token by id, as the file spells it."""
        return tuple(self.metadata[TOKENS])

    @property
    def n_tokens(self) -> int:
        """How many embedding rows the tokenizer needs."""
        return len(self.metadata[TOKENS])

    @property
    def is_sentencepiece(self) -> bool:
        """Whether it is of LLaMA's kind."""
        return bool(self.metadata.get("tokenizer.ggml.model") == "llama")

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        return TEMPLATE in self.metadata

    @property
    def vocabulary(self) -> bytes:
        """What makes ids of text, as bytes by which the tokenizer is known."""
        known = {key: self.metadata[key] for key in _VOCABULARY if key in self.metadata}
        return json.dumps(known).encode("utf-8")

    def with_template(self, template: str) -> EmbeddedTokenizer:
        """The tokenizer with another chat template."""
        return replace(self, metadata={**self.metadata, TEMPLATE: template})
