"""What holds for any text after a vocabulary has grown; SentencePiece is the judge."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from tests.kit.tokenizer_models import TEXT
from tokenizer_tools.extend import extend, select_text_pieces

# "▁" is how SentencePiece writes a space inside a piece: it decodes to one, in any model.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"))
FAMILIAR_TEXT = st.lists(st.sampled_from(TEXT.read_text(encoding="utf-8")), max_size=40).map(
    lambda characters: "".join(characters).replace("▁", "")
)
ASCII_TEXT = st.text(st.characters(max_codepoint=127))
HAN_TEXT = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=1)


def _processor(model: ModelProto) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=model.SerializeToString())


@pytest.fixture(scope="module")
def new_pieces(small_chinese: ModelProto) -> list[str]:
    return select_text_pieces(small_chinese)


@pytest.fixture(scope="module")
def before(small_llama: ModelProto) -> SentencePieceProcessor:
    return _processor(small_llama)


@pytest.fixture(scope="module")
def after(small_llama: ModelProto, new_pieces: list[str]) -> SentencePieceProcessor:
    return _processor(extend(small_llama, new_pieces, "[PAD]").model)


@given(text=ANY_TEXT | FAMILIAR_TEXT)
def test_decoding_gives_back_any_text(after: SentencePieceProcessor, text: str) -> None:
    assert after.decode(after.encode(text)) == text


@given(text=ANY_TEXT | FAMILIAR_TEXT | ASCII_TEXT)
def test_text_in_which_no_new_piece_occurs_keeps_its_ids(
    before: SentencePieceProcessor, after: SentencePieceProcessor, text: str
) -> None:
    added = {after.id_to_piece(i) for i in range(len(before), len(after))}
    ids = after.encode(text)
    written = "▁" + text.replace(" ", "▁")
    if not any(piece in written for piece in added):
        assert ids == before.encode(text)


@given(text=ASCII_TEXT)
def test_ascii_keeps_its_ids_when_the_new_pieces_are_not_ascii(
    small_llama: ModelProto, before: SentencePieceProcessor, new_pieces: list[str], text: str
) -> None:
    chinese = [piece for piece in new_pieces if not piece.replace("▁", "").isascii()]
    grown = _processor(extend(small_llama, chinese).model)
    assert grown.encode(text) == before.encode(text)


@given(text=ANY_TEXT | FAMILIAR_TEXT | HAN_TEXT)
def test_new_pieces_never_make_a_text_longer_than_its_bytes_did(
    after: SentencePieceProcessor, text: str
) -> None:
    assert len(after.encode(text)) <= len(text.encode("utf-8")) + 1


@given(pieces=st.lists(HAN_TEXT))
def test_any_pieces_in_any_order_make_a_model_that_sentencepiece_loads(
    small_llama: ModelProto, pieces: list[str]
) -> None:
    extended = extend(small_llama, pieces)
    grown = _processor(extended.model)
    assert len(grown) == len(small_llama.pieces) + len(set(pieces))
    assert len(extended.appended) + len(extended.already_there) == len(pieces)
    for offset, piece in enumerate(dict.fromkeys(pieces)):
        assert grown.piece_to_id(piece) == len(small_llama.pieces) + offset


def test_the_spelling_of_a_space_decodes_to_a_space_in_any_model(
    before: SentencePieceProcessor, after: SentencePieceProcessor
) -> None:
    assert before.decode(before.encode("a▁b")) == after.decode(after.encode("a▁b")) == "a b"
