"""Byte-level BPE by its parts: the package ``tokenizers`` is asked the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from merge.errors import MergeError, VocabularyError
from merge.storage.folder import Folder
from merge.tokenizers.byte_level_bpe import ByteLevelBpeTokenizer, read_byte_level_bpe
from merge.tokenizers.opaque_tokenizer import read_opaque_tokenizer
from tests.kit.bpe_tokenizers import EOS, write_bpe_tokenizer

TOKENS = 420


def _read(folder: Path) -> ByteLevelBpeTokenizer:
    return read_byte_level_bpe(read_opaque_tokenizer(Folder(folder)))


def _add(fast: dict[str, Any], **entry: Any) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    fast["added_tokens"].append({**flags, **entry})


def test_tokens_are_those_of_the_package(tmp_path: Path) -> None:
    folder = write_bpe_tokenizer(tmp_path, TOKENS)
    found, wanted = _read(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert found.n_tokens == wanted.get_vocab_size() == TOKENS
    assert list(found.tokens) == [wanted.id_to_token(id_) for id_ in range(TOKENS)]
    assert found.token_ids["eos_token_id"] == wanted.token_to_id(EOS)
    assert {id_: entry["special"] for id_, entry in found.added.items()} == {418: True, 419: True}


def test_ids_without_a_token_are_left_open(tmp_path: Path) -> None:
    folder = write_bpe_tokenizer(
        tmp_path, TOKENS, lambda fast: _add(fast, id=TOKENS + 2, content="<later>")
    )
    assert _read(folder).tokens[TOKENS:] == (None, None, "<later>")


def test_merges_may_be_text_or_pairs(tmp_path: Path) -> None:
    def respell(fast: dict[str, Any]) -> None:
        spelled = [m if isinstance(m, str) else " ".join(m) for m in fast["model"]["merges"]]
        fast["model"]["merges"] = spelled

    one, other = (
        write_bpe_tokenizer(tmp_path / name, TOKENS, change)
        for name, change in (("pairs", lambda _: None), ("text", respell))
    )
    assert _read(one).tokens == _read(other).tokens


def _set(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(fast: dict[str, Any]) -> None:
        place = fast["model"] if key in fast["model"] else fast
        place[key] = value

    return change


def _step(number: int, **changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda fast: fast["pre_tokenizer"]["pretokenizers"][number].update(changes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(_set("merges", []), "no merges", id="no merges"),
        pytest.param(_set("merges", ["a b c"]), "pairs of tokens", id="merges of three"),
        pytest.param(_set("type", "Unigram"), "Unigram", id="unigram"),
        pytest.param(_set("byte_fallback", True), "byte_fallback", id="a LLaMA 2's"),
        pytest.param(_set("end_of_word_suffix", "</w>"), "end_of_word_suffix", id="CLIP's"),
        pytest.param(_set("vocab", {}), "an id of its own", id="no vocabulary"),
        pytest.param(_set("vocab", {"a": 0, "b": 0}), "an id of its own", id="an id twice"),
        pytest.param(_set("vocab", {"a": 1 << 40}), "ids from 0", id="a huge id"),
        pytest.param(_set("normalizer", {"type": "NFC"}), "NFC", id="normalized"),
        pytest.param(_set("pre_tokenizer", None), "none", id="nothing cuts"),
        pytest.param(
            _set("pre_tokenizer", {"type": "ByteLevel", "use_regex": True}), "ByteLevel", id="GPT-2"
        ),
        pytest.param(_step(0, behavior="Removed"), "one pattern", id="text is dropped"),
        pytest.param(_step(0, invert=True), "one pattern", id="inverted"),
        pytest.param(_step(0, pattern={"String": " "}), "one pattern", id="a string"),
        pytest.param(_step(1, use_regex=True), "one pattern", id="cut twice"),
        pytest.param(_step(1, add_prefix_space=True), "one pattern", id="a space before"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(
    change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path
) -> None:
    folder = write_bpe_tokenizer(tmp_path, TOKENS, change)
    with pytest.raises(MergeError, match=re.escape(told)) as refused:
        _read(folder)
    assert refused.value.facts["file"].endswith("tokenizer.json")


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_that_only_another_file_adds_are_refused(name: str, tmp_path: Path) -> None:
    folder = write_bpe_tokenizer(tmp_path, TOKENS)
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if name == "added_tokens.json":
        content["<more>"] = TOKENS
    else:
        content["added_tokens_decoder"] = {str(TOKENS): {"content": "<more>"}}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(VocabularyError, match=rf"'<more>' as token {TOKENS}(.|\n)*none"):
        _read(folder)
