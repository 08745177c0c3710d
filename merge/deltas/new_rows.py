"""Rows for tokens that a model has none for: how they begin, and the tensor that grows by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch

from ..layouts.llama import EMBED_TOKENS, LM_HEAD
from ..messages import tr
from ..tensors.lazy import LazyTensor, RowReader, block_rows
from ..tokenizers.file_names import MODEL_NAME
from ..tokenizers.llama3_tokenizer import split_into_old_tokens
from ..tokenizers.opaque_tokenizer import OpaqueTokenizer, Tokenizer, require_sentencepiece
from ..tokenizers.sentencepiece_model import load_processor, parse_model, serialize_model
from ..tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# Standard deviation where config.json names none: transformers' own default.
_INITIALIZER_RANGE = 0.02

# Gives one row (float32) of a token, from the tensor as it was.
RowMaker = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class NewRows:
    """How new rows begin.

    ``subtokens``: the mean of the rows into which the old vocabulary splits the token; ``mean``:
    the mean of all old rows; ``zeros``; ``normal``: as transformers initialises, with standard
    deviation ``std``, seeded. ``pieces`` holds, for each token from the first new one on, the old
    tokens that make it up. Rows beyond the tokenizer (padding) begin as the mean.
    """

    init: str
    pieces: tuple[tuple[int, ...], ...]
    std: float
    seed: int


@dataclass(frozen=True)
class Grown(LazyTensor):
    """``base``'s first ``known`` rows, then rows for new tokens, then padding up to ``shape``."""

    base: LazyTensor
    known: int
    new: NewRows

    def reader(self) -> RowReader:
        base_rows = self.base.reader()
        make = self._row_maker()
        normal = self.new.init == "normal"
        tokens = self.known + len(self.new.pieces)

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            old = min(stop, self.known)
            if start < old:
                base_rows(start, old, out[: old - start])
            for row in range(max(start, self.known), stop):
                place = out[row - start]
                if normal and row < tokens:
                    self._fill_normal(row, place)
                else:
                    place.copy_(make(row))

        return fill

    def _fill_normal(self, row: int, place: torch.Tensor) -> None:
        """Fill one row with its own stream of random numbers, whichever block it is in."""
        text = f"{self.new.seed}/{self.origin}/{row}"
        seed = int.from_bytes(sha256(text.encode()).digest()[:7], "little")
        generator = torch.Generator().manual_seed(seed)
        place.copy_(torch.randn(place.shape, generator=generator) * self.new.std)

    def _row_maker(self) -> RowMaker:
        """What fills the rows that are not random: subtokens, zeros, or the mean."""
        pieces, init = self.new.pieces, self.new.init
        padded = self.rows > self.known + len(pieces)
        needs_mean = init == "mean" or padded or (init == "subtokens" and () in pieces)
        mean = self._mean() if needs_mean else None

        def make(row: int) -> torch.Tensor:
            token = row - self.known
            if token < len(pieces) and init == "zeros":
                return torch.zeros(self.shape[1:])
            if token < len(pieces) and init == "subtokens" and pieces[token]:
                parts = [self.base.read(part, part + 1).float() for part in pieces[token]]
                return torch.cat(parts).mean(dim=0)
            assert mean is not None, "every other row is the mean"
            return mean

        return make

    def _mean(self) -> torch.Tensor:
        """Mean of the known rows, summed in float64."""
        step = block_rows(self.base.shape)
        total = torch.zeros(self.shape[1:], dtype=torch.float64)
        for start in range(0, self.known, step):
            total += self.base.read(start, min(start + step, self.known)).double().sum(dim=0)
        return (total / self.known).float()


def grow_to_tokenizer(
    tensors: Mapping[str, LazyTensor],
    tokenizer: Tokenizer,
    rows: int,
    known: int,
    init: str,
    config: Mapping[str, Any],
    seed: int = 0,
) -> dict[str, LazyTensor]:
    """Grow embeddings and LM head to ``rows``, of which the first ``known`` have a meaning.

    ``normal`` takes its standard deviation from ``config``, as transformers does.
    """
    std = float(config.get("initializer_range") or _INITIALIZER_RANGE)
    new = NewRows(init, split_new_tokens(tokenizer, known), std, seed)
    grown = dict(tensors)
    for name in (EMBED_TOKENS, LM_HEAD):
        if name in tensors:
            old = tensors[name]
            origin = f"{old.origin}, new rows from {init}"
            grown[name] = Grown((rows, *old.shape[1:]), old.dtype, origin, old, known, new)
    return grown


def split_new_tokens(tokenizer: Tokenizer, known: int) -> tuple[tuple[int, ...], ...]:
    """For each token from ``known`` on, the first ``known`` tokens that spell it.

    Raises ``VocabularyError`` for a tokenizer that is neither SentencePiece's nor Llama 3's.
    """
    if isinstance(tokenizer, OpaqueTokenizer):
        return split_into_old_tokens(tokenizer, known)
    return _split_into_old_pieces(require_sentencepiece(tokenizer, tr("a new token")), known)


def _split_into_old_pieces(
    tokenizer: SentencePieceTokenizer, known: int
) -> tuple[tuple[int, ...], ...]:
    """The same of SentencePiece's.

    The old vocabulary is the new one without its later pieces, so ids mean the same in both.
    """
    model = parse_model(tokenizer.contents[MODEL_NAME])
    texts = [piece.piece for piece in model.pieces][known:]
    texts += [token for token, id_ in tokenizer.added_tokens.items() if id_ >= known]
    del model.pieces[known:]
    # A piece inside a word is no beginning of a text: no space may be put before it.
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.trainer_spec.vocab_size = known
    processor = load_processor(serialize_model(model))
    return tuple(_tokenize(processor, text) for text in texts)


def _tokenize(processor: SentencePieceProcessor, text: str) -> tuple[int, ...]:
    ids: Sequence[int] = processor.encode(text.replace("\u2581", " "))
    return tuple(ids)
