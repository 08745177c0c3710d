"""Append pieces to LLaMA's vocabulary, the way the published Chinese tokenizers were made.

The rule, checked against the SHA-256 of Chinese-LLaMA and Chinese-Alpaca: in the order given,
what is not there yet, with the score 0 written out and the type left at its default. Old ids
never move, and the trainer's record of the vocabulary size stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.messages import tr
from merge.tokenizers.sentencepiece_model import NORMAL, USER_DEFINED

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto


@dataclass(frozen=True)
class ExtendedModel:
    """A grown model, and what became of each piece that was offered."""

    model: ModelProto
    appended: tuple[str, ...]
    already_there: tuple[str, ...]


def extend(llama: ModelProto, pieces: Iterable[str], pad_token: str | None = None) -> ExtendedModel:
    """Return a copy of ``llama`` with ``pieces``, then ``pad_token``, appended.

    A piece that is there already, also one offered twice, keeps its old id and is counted in
    ``already_there``. Raises ``ValueError`` for an empty piece, which SentencePiece cannot
    hold.
    """
    model = type(llama)()
    model.CopyFrom(llama)
    known = {piece.piece for piece in model.pieces}
    appended: list[str] = []
    already_there: list[str] = []
    for text in [*pieces, *([] if pad_token is None else [pad_token])]:
        if not text:
            raise ValueError(tr("a SentencePiece piece cannot be empty"))
        if text in known:
            already_there.append(text)
            continue
        model.pieces.add(piece=text, score=0.0)
        known.add(text)
        appended.append(text)
    return ExtendedModel(model, tuple(appended), tuple(already_there))


def select_text_pieces(model: ModelProto) -> list[str]:
    """Return the pieces that stand for text, in id order.

    Control, unknown, byte and unused pieces are left out: appended as ordinary pieces they would
    match their own spelling in a text.
    """
    return [piece.piece for piece in model.pieces if piece.type in (NORMAL, USER_DEFINED)]
