"""What a backend offers: a loaded model that renders a talk, and continues its tokens."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ..errors import UsageError
from ..messages import tr
from .settings import ChatSettings

Message = Mapping[str, str]
"""``role`` ("system", "user" or "assistant") and ``content``."""


class ChatModel(Protocol):
    """A model in memory, with its tokenizer."""

    @property
    def path(self) -> Path:
        """The folder or file that it was read from."""

    @property
    def template(self) -> str | None:
        """The tokenizer's own chat template, None for none."""

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary."""

    @property
    def context_length(self) -> int:
        """How many tokens prompt and answer may have together."""

    def has_token(self, token: str) -> bool:
        """Whether the vocabulary has it."""

    def render(self, template: str, messages: Sequence[Message]) -> str:
        """The talk as text, up to where the answer begins.

        Raises ``UsageError`` for a template that cannot be filled with these messages.
        """

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt; special tokens in it are understood, and bos is put before it once."""

    def generate(
        self, ids: Sequence[int], settings: ChatSettings, stops: Sequence[str]
    ) -> Generator[str, None, None]:
        """Yield what follows ``ids`` in whole characters; closing the iterator ends the work.

        It ends with a token that ends a text, one of ``stops`` that is a token, or when there are
        ``max_tokens``.
        """

    def close(self) -> None:
        """Free the model's memory."""


def template_error(path: Path, error: Exception) -> UsageError:
    """The error of a template that cannot be filled."""
    return UsageError(
        tr("the chat template cannot be filled"),
        file=path,
        found=f"{type(error).__name__}: {error}",
        remedy=tr("name another with --template, or leave --system out"),
    )
