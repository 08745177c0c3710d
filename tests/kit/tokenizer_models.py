"""Tiny SentencePiece models: of so many pieces, or trained by SentencePiece on text."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

TEXT = Path(__file__).with_name("text") / "mixed.txt"
# The id of [PAD], which Chinese-Alpaca's tokenizer has after all pieces of Chinese-LLaMA's.
PAD = 56


def tokenizer_model(pieces: int, pad: int | None = PAD) -> bytes:
    """A SentencePiece model of so many pieces; a shorter one is a prefix of a longer one.

    The piece of the id ``pad`` is ``[PAD]``, as in Chinese-Alpaca's tokenizer.
    """
    kinds = ModelProto.SentencePiece
    model = ModelProto()
    model.trainer_spec.model_type = 2  # BPE
    model.normalizer_spec.name = "identity"
    model.pieces.add(piece="<unk>", score=0.0, type=kinds.UNKNOWN)
    for control in ("<s>", "</s>"):
        model.pieces.add(piece=control, score=0.0, type=kinds.CONTROL)
    for number in range(pieces - len(model.pieces)):
        text = "[PAD]" if number + 3 == pad else f"piece{number}"
        model.pieces.add(piece=text, score=-float(number))
    return bytes(model.SerializeToString())


def write_tokenizer(folder: Path, pieces: int) -> None:
    """Write a ``tokenizer.model`` of exactly ``pieces`` pieces, without ``[PAD]``."""
    (folder / "tokenizer.model").write_bytes(tokenizer_model(pieces, pad=None))


def read_lines() -> list[str]:
    """The text: Chinese, English, code, mixed."""
    return TEXT.read_text(encoding="utf-8").split("\n")


def english_lines() -> list[str]:
    """The lines in ASCII."""
    return [line for line in read_lines() if line.strip() and line.isascii()]


def chinese_lines() -> list[str]:
    """The lines that hold Chinese."""
    return [line for line in read_lines() if any("\u4e00" <= c <= "\u9fff" for c in line)]


def train(lines: Iterable[str], **settings: Any) -> ModelProto:
    """Train a model in memory and return its message."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=stream, minloglevel=2, **settings
    )
    return ModelProto.FromString(stream.getvalue())


def train_llama(pieces: int = 600) -> ModelProto:
    """A BPE model of English with LLaMA's settings: byte fallback, digits apart, as spelt."""
    return train(
        english_lines(),
        model_type="bpe",
        vocab_size=pieces,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.9995,
    )


def train_chinese(pieces: int = 1600) -> ModelProto:
    """A unigram model of the lines that hold Chinese."""
    return train(
        chinese_lines(), model_type="unigram", vocab_size=pieces, character_coverage=0.9995
    )
