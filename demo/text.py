"""The two tokenizers of the demo: a LLaMA-style English one, and it grown by Chinese pieces."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.settings import CHINESE_PIECES, ENGLISH_PIECES

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

TEXTS = Path(__file__).resolve().parent


def read_lines(language: str) -> list[str]:
    """Return the lines of the demo's text in ``language`` ("english" or "chinese")."""
    return (TEXTS / f"{language}.txt").read_text(encoding="utf-8").splitlines()


def train_base_tokenizer(lines: Sequence[str]) -> bytes:
    """Train the base's tokenizer: BPE with byte fallback; <unk> 0, <s> 1, </s> 2, as LLaMA's."""
    return _train(lines, model_type="bpe", vocab_size=ENGLISH_PIECES, byte_fallback=True)


def train_chinese_pieces(lines: Sequence[str]) -> bytes:
    """Train the Chinese SentencePiece model whose pieces the base's tokenizer lacks."""
    return _train(lines, model_type="bpe", vocab_size=CHINESE_PIECES, character_coverage=1.0)


def _train(lines: Sequence[str], **options: Any) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def extend_tokenizer(base: Path, chinese: Path, extended: Path) -> None:
    """Write ``extended``: the model ``base`` and, after it, the text pieces of ``chinese``."""
    from merge.tokenizers.sentencepiece_model import read_model, write_model
    from tokenizer_tools.extend import extend, select_text_pieces

    grown = extend(read_model(base), select_text_pieces(read_model(chinese)))
    write_model(grown.model, extended)


def open_tokenizer(folder: Path) -> SentencePieceProcessor:
    """Open ``folder/tokenizer.model`` with SentencePiece itself.

    Never through transformers: it re-tokenizes an extended Chinese vocabulary differently.
    """
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def encode(tokenizer: SentencePieceProcessor, text: str) -> list[int]:
    """Return the ids of ``text`` with <s> before them."""
    return [tokenizer.bos_id(), *tokenizer.encode(text)]
