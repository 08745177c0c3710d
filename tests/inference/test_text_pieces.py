"""Text in pieces: whole characters, and nothing of a stop word."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from merge.inference.text_pieces import decode_pieces, stop_at

_TEXT = st.text(st.sampled_from("a 中😀é\n龘"), max_size=12)


@given(text=_TEXT, data=st.data())
def test_bytes_in_any_portions_give_whole_characters(text: str, data: st.DataObject) -> None:
    whole = text.encode()
    cuts = sorted({0, len(whole), *data.draw(st.lists(st.integers(0, len(whole))))})
    parts = [whole[a:b] for a, b in pairwise(cuts)]

    def decode(ids: Sequence[int]) -> str:
        return b"".join(parts[i] for i in ids).decode("utf-8", "replace")

    pieces = list(decode_pieces(range(len(parts)), decode))
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@given(text=_TEXT)
def test_pieces_of_a_tokenizer_are_together_what_it_makes_of_all(
    text: str, small_llama: ModelProto
) -> None:
    tokenizer = SentencePieceProcessor(model_proto=small_llama.SerializeToString())
    ids = tokenizer.encode(text)
    pieces = decode_pieces(ids, lambda some: str(tokenizer.decode(list(some))))
    assert "".join(pieces) == tokenizer.decode(ids)


@given(
    pieces=st.lists(st.text("ab#", min_size=1, max_size=4)),
    stops=st.lists(st.text("ab#", min_size=1, max_size=4), max_size=2),
)
def test_nothing_from_the_first_stop_word_on_is_passed_on(
    pieces: list[str], stops: list[str]
) -> None:
    told = "".join(stop_at(pieces, stops))
    # An answer ends with the piece that completes a stop word, at the first one in it.
    for text in accumulate(pieces):
        places = [text.find(stop) for stop in stops if stop in text]
        if places:
            assert told == text[: min(places)]
            return
    assert told == "".join(pieces)
