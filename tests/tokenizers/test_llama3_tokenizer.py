"""``tokenizer.json`` from Llama 3's tiktoken file: Meta's own files, and tiktoken's ids."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from merge.errors import FormatError, VocabularyError
from merge.tokenizers.llama3_tokenizer import (
    build_llama3_documents,
    build_tokenizer_json,
    dump_tokenizer_json,
    recover_ranks,
)
from merge.tokenizers.tiktoken_model import dump_ranks, map_special_tokens, read_ranks
from tests.kit.tiktoken_encodings import MetaTokenizer

FILE = Path("tokenizer.json")
# SHA-256 of tokenizer.json in Meta-Llama-3-8B-Instruct and in Llama-3.1-8B and Llama-3.2-1B.
PUBLISHED = {
    "3": "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
    "3.1": "79e3e522635f3171300913bb421464a87de6222182a0570b9b2ccba2a964b2b4",
}


@pytest.fixture(scope="module")
def file(real_data: Path) -> Path:
    return real_data / "tokenizers" / "llama3_tiktoken.model"


@pytest.fixture(scope="module")
def ranks(file: Path) -> dict[bytes, int]:
    return read_ranks(file)


@pytest.fixture(scope="module")
def made(ranks: dict[bytes, int]) -> dict[str, Any]:
    return build_tokenizer_json(ranks, map_special_tokens("3.1"))


@pytest.mark.parametrize("release", ["3", "3.1"])
def test_tokenizer_json_is_metas_own_byte_for_byte(ranks: dict[bytes, int], release: Any) -> None:
    document = build_tokenizer_json(ranks, map_special_tokens(release))
    assert hashlib.sha256(dump_tokenizer_json(document)).hexdigest() == PUBLISHED[release]


def test_ids_are_tiktokens(file: Path, made: dict[str, Any], lines: list[str]) -> None:
    meta = MetaTokenizer(file, map_special_tokens("3.1"))
    fast = Tokenizer.from_str(json.dumps(made))
    lines = [*lines, *(f"<|start_header_id|>user<|end_header_id|>\n\n{s}<|eot_id|>" for s in lines)]
    ids = [encoding.ids for encoding in fast.encode_batch(lines)]
    assert ids == [[128_000, *meta.encode(line)] for line in lines]


def test_transformers_loads_the_documents(
    ranks: dict[bytes, int], file: Path, tmp_path: Path, lines: list[str]
) -> None:
    from transformers import AutoTokenizer

    for name, content in build_llama3_documents(ranks, map_special_tokens("3.1"), 131_072).items():
        (tmp_path / name).write_bytes(content)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.bos_token_id, loaded.eos_token_id) == (128_000, 128_001)
    assert len(loaded) == 128_256
    meta = MetaTokenizer(file, map_special_tokens("3.1"))
    assert loaded(lines[:500])["input_ids"] == [[128_000, *meta.encode(s)] for s in lines[:500]]


@pytest.mark.parametrize("merges", ["text", "pairs"])
def test_recovers_the_tiktoken_file_from_tokenizer_json(
    file: Path, made: dict[str, Any], merges: str
) -> None:
    document = json.loads(json.dumps(made))
    if merges == "pairs":  # as tokenizers writes them since 0.20
        document = json.loads(Tokenizer.from_str(json.dumps(made)).to_str())
        assert isinstance(document["model"]["merges"][0], list)
    assert dump_ranks(recover_ranks(document, FILE)) == file.read_bytes()


def test_a_grown_vocabulary_keeps_the_ids_of_special_tokens(
    ranks: dict[bytes, int], tmp_path: Path
) -> None:
    grown = ranks | {"词表".encode(): 128_256, "大词表".encode(): 128_257}
    special = map_special_tokens("3")
    document = build_tokenizer_json(grown, special)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(dump_ranks(grown))
    fast = Tokenizer.from_str(json.dumps(document))
    meta = MetaTokenizer(path, special)
    for text in ("词表", "大词表", "汉语词表<|eot_id|>", "hello 大词表大词表 你好"):
        assert fast.encode(text).ids == [128_000, *meta.encode(text)]
    assert 128_257 in fast.encode("大词表").ids
    assert dump_ranks(recover_ranks(document, FILE)) == path.read_bytes()


def change(document: dict[str, Any], **model: Any) -> dict[str, Any]:
    return document | {"model": document["model"] | model}


def test_refuses_a_tokenizer_json_that_no_tiktoken_file_gives(made: dict[str, Any]) -> None:
    merges = made["model"]["merges"]
    vocab = dict(made["model"]["vocab"])
    vocab["的的的"] = vocab.pop("Ġthe")
    cases = {
        "no merges": change(made, merges=[]),
        "others": change(made, merges=[*merges[1:], merges[0]]),
        '"ignore_merges": true': change(made, ignore_merges=False),
        "vocabulary of bytes": change(made, vocab=vocab),
        "text cut by": made | {"pre_tokenizer": {"type": "ByteLevel", "use_regex": True}},
    }
    for words, document in cases.items():
        with pytest.raises(VocabularyError) as error:
            recover_ranks(document, FILE)
        assert words in str(error.value)
    for merges in (5, {}, [5], [["a"]], ["a"], [None]):
        with pytest.raises(VocabularyError):
            recover_ranks(change(made, merges=merges), FILE)
    for added in (5, [5], [{"content": 5}]):
        with pytest.raises(FormatError):
            recover_ranks(made | {"added_tokens": added}, FILE)
    with pytest.raises(FormatError, match="holds no vocabulary"):
        recover_ranks({"model": None}, FILE)
