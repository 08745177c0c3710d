"""Reading SentencePiece models: what is refused, and that nothing is changed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from merge.errors import FormatError, UsageError
from merge.tokenizers import sentencepiece_model as spm


def test_reading_and_serialising_changes_no_byte(tmp_path: Path, small_llama: ModelProto) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(small_llama.SerializeToString())
    assert spm.serialize_model(spm.read_model(file)) == file.read_bytes()
    assert spm.serialize_model(spm.read_model(tmp_path)) == file.read_bytes()


@pytest.mark.parametrize("name", ["llama.model", "chinese_sp.model"])
def test_published_models_survive_reading(real_data: Path, name: str) -> None:
    file = real_data / "tokenizers" / name
    assert spm.serialize_model(spm.read_model(file)) == file.read_bytes()


def test_pieces_are_those_of_sentencepiece(small_llama: ModelProto) -> None:
    processor = SentencePieceProcessor(model_proto=small_llama.SerializeToString())
    expected = [processor.id_to_piece(i) for i in range(len(processor))]
    assert [piece.piece for piece in small_llama.pieces] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "Git LFS"),
        (b'{"model": {"type": "BPE"}}', "not a SentencePiece model"),
        ("一行中文\n".encode(), "not a SentencePiece model"),
        (gzip.compress(b"some text"), "not a SentencePiece model"),
        (b"\x0a\x00", "not a SentencePiece model"),
        (b"\x0a\x06\x0a\x04abcd", "not a SentencePiece model"),
    ],
    ids=["empty", "lfs", "json", "text", "gzip", "message", "no-trainer"],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        spm.read_model(file)
    assert str(file) in str(caught.value)


def test_a_truncated_model_is_refused(tmp_path: Path, small_llama: ModelProto) -> None:
    content = small_llama.SerializeToString()
    file = tmp_path / "tokenizer.model"
    for size in range(1, len(content), len(content) // 40):
        file.write_bytes(content[:size])
        with pytest.raises(FormatError) as caught:
            spm.read_model(file)
        assert caught.value.facts["file"] == str(file)


def test_duplicate_pieces_are_refused_by_name(tmp_path: Path, small_llama: ModelProto) -> None:
    model = ModelProto()
    model.CopyFrom(small_llama)
    model.pieces.add(piece="▁the", score=0.0)
    file = tmp_path / "tokenizer.model"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(FormatError, match="more than once") as caught:
        spm.read_model(file)
    assert "'▁the'" in str(caught.value)


def test_what_only_sentencepiece_can_tell_is_refused(
    tmp_path: Path, small_llama: ModelProto
) -> None:
    model = ModelProto()
    model.CopyFrom(small_llama)
    model.pieces.add(piece="", score=0.0)
    file = tmp_path / "tokenizer.model"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(FormatError, match="SentencePiece cannot read"):
        spm.read_model(file)


def test_a_folder_without_a_model_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no tokenizer\.model"):
        spm.read_model(tmp_path)
    with pytest.raises(UsageError, match="no such tokenizer"):
        spm.read_model(tmp_path / "missing.model")


def test_byte_pieces_are_noticed(small_llama: ModelProto, small_chinese: ModelProto) -> None:
    assert spm.has_byte_pieces(small_llama)
    assert not spm.has_byte_pieces(small_chinese)
