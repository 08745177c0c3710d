"""``tokenizer.model`` files with exactly as many pieces as a model has rows."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.shapes import CHINESE_ALPACA_ROWS, CHINESE_LLAMA_ROWS, LLAMA_ROWS

REAL_DATA = "CHINESE_LLAMA_MERGE_TEST_DATA"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FIRST_HAN, HAN_COUNT = 0x4E00, 20_000


def write_tokenizer(folder: Path, pieces: int) -> None:
    """Write ``folder/tokenizer.model`` with ``pieces`` pieces.

    The real LLaMA, Chinese-LLaMA and Chinese-Alpaca tokenizers when the folder named by
    ``CHINESE_LLAMA_MERGE_TEST_DATA`` has their parts; a synthetic one otherwise, of which a
    shorter one is always a prefix.
    """
    data = os.environ.get(REAL_DATA)
    known = pieces in (LLAMA_ROWS, CHINESE_LLAMA_ROWS, CHINESE_ALPACA_ROWS)
    content = real(Path(data) / "tokenizers", pieces) if data and known else synthetic(pieces)
    (folder / "tokenizer.model").write_bytes(content)


def real(tokenizers: Path, pieces: int) -> bytes:
    """The LLaMA tokenizer, extended by the Chinese pieces that are new, then by ``[PAD]``."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    llama = tokenizers.joinpath("llama.model").read_bytes()
    if pieces == LLAMA_ROWS:
        return llama
    model = pb.ModelProto.FromString(llama)
    chinese = pb.ModelProto.FromString(tokenizers.joinpath("chinese_sp.model").read_bytes())
    known = {piece.piece for piece in model.pieces}
    new = [piece.piece for piece in chinese.pieces if piece.piece not in known]
    new += ["[PAD]"] if pieces == CHINESE_ALPACA_ROWS else []
    for text in new:
        model.pieces.add(piece=text, score=0.0)
    if len(model.pieces) != pieces:
        raise ValueError(f"{tokenizers} gives {len(model.pieces)} pieces, not {pieces}")
    return bytes(model.SerializeToString())


def synthetic(pieces: int) -> bytes:
    """A BPE model with byte fallback: controls, bytes, a space, words up to 32000, then Han."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    model = pb.ModelProto()
    model.trainer_spec.model_type = pb.TrainerSpec.BPE
    model.trainer_spec.vocab_size = min(pieces, LLAMA_ROWS)
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    kinds = pb.ModelProto.SentencePiece
    model.pieces.add(piece="<unk>", score=0.0, type=kinds.UNKNOWN)
    for control in ("<s>", "</s>"):
        model.pieces.add(piece=control, score=0.0, type=kinds.CONTROL)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=kinds.BYTE)
    if pieces < len(model.pieces):
        raise ValueError(f"a tokenizer with byte fallback has at least {len(model.pieces)} pieces")
    for index in range(pieces - len(model.pieces)):
        score = -float(index) if len(model.pieces) < LLAMA_ROWS else 0.0
        model.pieces.add(piece=_text(index, len(model.pieces)), score=score)
    return bytes(model.SerializeToString())


def _text(index: int, position: int) -> str:
    """A string of its own for every piece: ``▁``, letters, words, Han characters."""
    if position >= LLAMA_ROWS:
        offset = position - LLAMA_ROWS
        return chr(FIRST_HAN + offset % HAN_COUNT) * (1 + offset // HAN_COUNT)
    if index == 0:
        return "▁"
    text, number = "", index
    while number:
        number, letter = divmod(number - 1, len(LETTERS))
        text = LETTERS[letter] + text
    return text
