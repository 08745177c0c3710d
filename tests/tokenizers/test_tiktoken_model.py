"""Llama 3's tiktoken file: read, written back, and told from others."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge.errors import FormatError, VocabularyError
from merge.tokenizers.sentencepiece_tokenizer import read_tokenizer
from merge.tokenizers.tiktoken_model import (
    dump_ranks,
    is_tiktoken_file,
    list_special_token_names,
    parse_ranks,
    read_ranks,
    require_llama3,
)

BYTES = [bytes([byte]) for byte in range(256)]
FILE = Path("tokenizer.model")


def lines(tokens: list[bytes]) -> bytes:
    numbered = enumerate(map(base64.b64encode, tokens))
    return b"".join(b"%s %d\n" % (token, rank) for rank, token in numbered)


def test_reads_and_writes_metas_file_byte_for_byte(real_data: Path) -> None:
    path = real_data / "tokenizers" / "llama3_tiktoken.model"
    ranks = read_ranks(path)
    require_llama3(ranks, path)
    assert list(ranks.values()) == list(range(128_000))
    assert dump_ranks(ranks) == path.read_bytes()


def test_ranks_are_those_that_the_package_tiktoken_loads(real_data: Path) -> None:
    from tiktoken.load import load_tiktoken_bpe

    path = real_data / "tokenizers" / "llama3_tiktoken.model"
    assert read_ranks(path) == load_tiktoken_bpe(str(path))


def test_tells_a_tiktoken_file_from_a_sentencepiece_model(real_data: Path) -> None:
    folder = real_data / "tokenizers"
    told = {path.name: is_tiktoken_file(path) for path in folder.iterdir()}
    assert [name for name, is_tiktoken in told.items() if is_tiktoken] == ["llama3_tiktoken.model"]


@pytest.mark.parametrize(("release", "changed"), [("3", 0), ("3.1", 3)])
def test_names_256_special_tokens(release: str, changed: int) -> None:
    names = list_special_token_names(release)  # type: ignore[arg-type]
    assert len(set(names)) == len(names) == 256
    assert (names[0], names[1], names[9]) == ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    assert names[-1] == f"<|reserved_special_token_{250 - changed}|>"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"IQ== 0\nIg==\n", "in line 2"),
        (b"IQ== 0\nIQ== 1\n", "again"),
        (b"IQ== 0\nIg== 0\n", "twice"),
        (b"IQ= 0\n", "in line 1"),
        (b"IQ== -1\n", "in line 1"),
        (b"IQ== 0\n", "none for 0"),
        (b"\x0a\x0e\x0a\x05<unk>", "in line"),
        (base64.b64encode(b"x" * 600) + b" 0\n", "600 bytes"),
    ],
)
def test_refuses_what_is_no_tiktoken_file(content: bytes, found: str) -> None:
    with pytest.raises(FormatError, match="no tiktoken vocabulary") as error:
        parse_ranks(content, FILE)
    assert found in error.value.facts["found"]


@given(
    st.lists(
        st.sampled_from([b"IQ==", b"IQ", b" ", b"0", b"1", b"99999999", b"\n", b"\r", b"\0", b"="]),
        max_size=30,
    )
)
def test_damaged_text_is_refused_and_nothing_worse(parts: list[bytes]) -> None:
    content = lines(BYTES) + b"".join(parts)
    try:
        ranks = parse_ranks(content, FILE)
    except FormatError:
        return
    assert parse_ranks(dump_ranks(ranks), FILE) == ranks


def test_commands_for_sentencepiece_name_what_it_is(real_data: Path) -> None:
    with pytest.raises(FormatError, match="tiktoken file, as Llama 3 has"):
        read_tokenizer(real_data / "tokenizers" / "llama3_tiktoken.model")


def test_accepts_windows_line_ends_and_no_last_one() -> None:
    plain = lines(BYTES)
    crlf = plain.replace(b"\n", b"\r\n").removesuffix(b"\r\n")
    assert parse_ranks(crlf, FILE) == parse_ranks(plain, FILE)


def test_refuses_another_models_vocabulary_and_names_it() -> None:
    tokens = [*BYTES, *(b"%d" % n for n in range(1000, 101_000))]
    with pytest.raises(VocabularyError, match="not Llama 3's") as error:
        require_llama3(parse_ranks(lines(tokens), FILE), FILE)
    assert "GPT-4" in error.value.facts["found"]


def test_refuses_a_changed_token(real_data: Path) -> None:
    ranks = read_ranks(real_data / "tokenizers" / "llama3_tiktoken.model")
    swapped = list(ranks)
    swapped[300], swapped[301] = swapped[301], swapped[300]
    with pytest.raises(VocabularyError, match="not Llama 3's"):
        require_llama3({token: rank for rank, token in enumerate(swapped)}, FILE)


def test_new_ranks_follow_the_special_tokens(real_data: Path) -> None:
    ranks = read_ranks(real_data / "tokenizers" / "llama3_tiktoken.model")
    require_llama3(ranks | {"中文词表".encode(): 128_256}, FILE)
    with pytest.raises(VocabularyError, match="ids of its special tokens"):
        require_llama3(ranks | {"中文词表".encode(): 128_000}, FILE)
