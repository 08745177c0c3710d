"""Extending a vocabulary: the published files, byte for byte, and what must not change."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from merge.checksums import known_tokenizers as known
from merge.checksums.known_files import find_tokenizer
from merge.tokenizers import sentencepiece_model as spm
from tokenizer_tools.extend import extend, select_text_pieces


@pytest.mark.parametrize(
    ("pad_token", "model", "count"),
    [(None, "Chinese-LLaMA-7B", 49953), ("[PAD]", "Chinese-Alpaca-7B", 49954)],
)
def test_published_tokenizers_come_out_byte_for_byte(
    real_data: Path, pad_token: str | None, model: str, count: int
) -> None:
    llama = spm.read_model(real_data / "tokenizers" / "llama.model")
    chinese = spm.read_model(real_data / "tokenizers" / "chinese_sp.model")
    extended = extend(llama, select_text_pieces(chinese), pad_token)
    digest = hashlib.sha256(spm.serialize_model(extended.model)).hexdigest()
    published = find_tokenizer(model)
    assert published is not None
    assert digest == published.sha256
    assert len(extended.model.pieces) == count
    assert known.recognize_digest(digest).pieces == count  # type: ignore[union-attr]


def test_pieces_are_appended_in_order_and_old_ids_stay(
    small_llama: ModelProto, small_chinese: ModelProto
) -> None:
    before = SentencePieceProcessor(model_proto=small_llama.SerializeToString())
    offered = select_text_pieces(small_chinese)
    extended = extend(small_llama, offered, "[PAD]")
    after = SentencePieceProcessor(model_proto=extended.model.SerializeToString())
    old = [before.id_to_piece(i) for i in range(len(before))]
    new = [after.id_to_piece(i) for i in range(len(after))]
    assert new[: len(old)] == old
    assert new[len(old) :] == [p for p in offered if p not in old] + ["[PAD]"]
    assert all(after.get_score(i) == 0.0 for i in range(len(old), len(after)))


def test_score_is_written_and_type_is_not(small_llama: ModelProto) -> None:
    piece = extend(small_llama, ["汉字"]).model.pieces[-1]
    assert piece.HasField("score")
    assert not piece.HasField("type")
    # field 1, six bytes of UTF-8; field 3, a 32-bit float zero: the published files' own bytes
    assert piece.SerializeToString() == b"\x0a\x06\xe6\xb1\x89\xe5\xad\x97\x15\x00\x00\x00\x00"


def test_pieces_already_there_are_counted_and_keep_their_ids(small_llama: ModelProto) -> None:
    extended = extend(small_llama, ["▁the", "汉字", "汉字"], "<s>")
    assert extended.appended == ("汉字",)
    assert extended.already_there == ("▁the", "汉字", "<s>")


def test_the_model_given_is_not_touched(small_llama: ModelProto) -> None:
    before = small_llama.SerializeToString()
    extend(small_llama, ["汉字"], "[PAD]")
    assert small_llama.SerializeToString() == before


def test_an_empty_piece_is_refused(small_llama: ModelProto) -> None:
    with pytest.raises(ValueError, match="empty"):
        extend(small_llama, [""])


def test_control_and_byte_pieces_are_not_text(small_llama: ModelProto) -> None:
    pieces = select_text_pieces(small_llama)
    assert not {"<s>", "</s>", "<unk>", "<0x41>"} & set(pieces)
    assert "▁the" in pieces
