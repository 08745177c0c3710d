"""Tiny SentencePiece models, trained by SentencePiece itself on the project's own text."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tests.kit.tokenizers import TEXT


def train(lines: Iterable[str], **settings: Any) -> ModelProto:
    """Train a model in memory and return its message."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=stream, minloglevel=2, **settings
    )
    return ModelProto.FromString(stream.getvalue())


@pytest.fixture(scope="session")
def mixed_lines() -> list[str]:
    return TEXT.read_text(encoding="utf-8").split("\n")


@pytest.fixture(scope="session")
def small_llama(mixed_lines: list[str]) -> ModelProto:
    """A BPE model with LLaMA's settings (byte fallback, no normalisation, split digits)."""
    ascii_lines = [line for line in mixed_lines if line.strip() and line.isascii()]
    return train(
        ascii_lines,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.9995,
    )


@pytest.fixture(scope="session")
def small_chinese(mixed_lines: list[str]) -> ModelProto:
    """A unigram model of the lines that hold Chinese."""
    chinese = [line for line in mixed_lines if any("\u4e00" <= c <= "\u9fff" for c in line)]
    return train(chinese, model_type="unigram", vocab_size=1600, character_coverage=0.9995)


@pytest.fixture(scope="session")
def models(
    tmp_path_factory: pytest.TempPathFactory, small_llama: ModelProto, small_chinese: ModelProto
) -> Path:
    """A folder with the small models as ``llama.model`` and ``chinese.model``."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "llama.model").write_bytes(small_llama.SerializeToString())
    (folder / "chinese.model").write_bytes(small_chinese.SerializeToString())
    return folder
