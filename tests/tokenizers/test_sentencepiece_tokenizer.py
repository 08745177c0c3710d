"""Reading a tokenizer folder, and the files that a merged model gets from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from merge.errors import FormatError, VocabularyError
from merge.tokenizers.sentencepiece_tokenizer import build_documents, read_tokenizer
from merge.tokenizers.special_tokens import SpecialToken
from tests.kit.transformers_446 import run_in_transformers_446

FolderWith = Callable[..., Path]


def added_token(content: str, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, **plain, **flags}


def json_of(files: dict[str, bytes], name: str) -> dict[str, Any]:
    value = json.loads(files[name])
    assert isinstance(value, dict)
    return value


def test_model_alone_says_everything(folder_with: FolderWith, n_pieces: int) -> None:
    folder = read_tokenizer(folder_with())
    assert folder.n_pieces == folder.n_tokens == n_pieces
    assert folder.added_tokens == {}
    assert folder.bos_token == SpecialToken("<s>", 1)
    assert folder.eos_token == SpecialToken("</s>", 2)
    assert folder.unk_token == SpecialToken("<unk>", 0)
    assert folder.pad_token == SpecialToken("[PAD]", n_pieces - 1)


def test_model_file_is_read_without_what_lies_beside_it(folder_with: FolderWith) -> None:
    path = folder_with(added_tokens={"<gap>": 99999})
    assert read_tokenizer(path / "tokenizer.model").added_tokens == {}


def test_model_without_a_padding_piece_has_no_pad_token(
    write_folder: Callable[..., Path], tmp_path: Path, unpadded_model: bytes
) -> None:
    assert read_tokenizer(write_folder(tmp_path, unpadded_model)).pad_token is None


def test_published_folders_are_read(real_data: Path) -> None:
    folder = read_tokenizer(real_data / "stories260K_zh_base_hf")
    assert folder.n_tokens == 512
    assert folder.bos_token == SpecialToken("<s>", 1)
    config = json_of(build_documents(folder), "tokenizer_config.json")
    assert config["model_max_length"] == 512


@pytest.mark.parametrize("empty", ["", None, {"content": ""}])
def test_empty_special_tokens_are_filled_from_the_model(
    folder_with: FolderWith, empty: object, n_pieces: int
) -> None:
    special = {f"{name}_token": empty for name in ("bos", "eos", "unk", "pad")}
    path = folder_with(
        tokenizer_config={"tokenizer_class": "LLaMATokenizer", "model_max_length": 9, **special},
        special_tokens_map=special,
    )
    files = build_documents(read_tokenizer(path))
    expected = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "[PAD]",
    }
    assert json_of(files, "special_tokens_map.json") == expected
    assert json_of(files, "tokenizer_config.json") == expected | {
        "tokenizer_class": "LlamaTokenizer",
        "model_max_length": 9,
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,
        "auto_map": {"AutoTokenizer": ["sentencepiece_llama.LlamaTokenizer", None]},
    }


def test_settings_of_the_folder_are_kept(folder_with: FolderWith) -> None:
    own = {
        "add_bos_token": False,
        "add_eos_token": True,
        "legacy": False,
        "padding_side": "left",
        "chat_template": "{{ messages }}",
        "tokenizer_class": "CodeLlamaTokenizer",
    }
    config = json_of(
        build_documents(read_tokenizer(folder_with(tokenizer_config=own))), "tokenizer_config.json"
    )
    assert config.items() >= own.items()


def test_special_tokens_map_wins_unless_it_is_empty(folder_with: FolderWith) -> None:
    path = folder_with(
        tokenizer_config={"pad_token": "<unk>", "eos_token": "<unk>", "bos_token": "<s>"},
        special_tokens_map={"pad_token": added_token("</s>"), "eos_token": ""},
    )
    folder = read_tokenizer(path)
    assert folder.pad_token == SpecialToken("</s>", 2)
    assert folder.eos_token == SpecialToken("<unk>", 0)
    files = build_documents(folder)
    assert json_of(files, "special_tokens_map.json")["pad_token"] == added_token("</s>")
    marked = {"__type": "AddedToken", **added_token("</s>")}
    assert json_of(files, "tokenizer_config.json")["pad_token"] == marked


def test_added_tokens_follow_the_pieces(folder_with: FolderWith, n_pieces: int) -> None:
    path = folder_with(added_tokens={"<b>": n_pieces + 1, "<a>": n_pieces, "<s>": 1})
    folder = read_tokenizer(path)
    assert list(folder.added_tokens.items()) == [("<a>", n_pieces), ("<b>", n_pieces + 1)]
    assert folder.n_tokens == n_pieces + 2
    kept = json.loads((path / "added_tokens.json").read_bytes())
    assert json_of(build_documents(folder), "added_tokens.json") == kept


def test_both_lists_of_added_tokens_are_completed_from_each_other(
    folder_with: FolderWith, n_pieces: int
) -> None:
    path = folder_with(
        added_tokens={"<a>": n_pieces},
        tokenizer_config={
            "added_tokens_decoder": {
                "1": added_token("<s>", special=True),
                str(n_pieces + 1): added_token("<b>", special=True),
            }
        },
        special_tokens_map={"additional_special_tokens": ["<a>"]},
    )
    files = build_documents(read_tokenizer(path))
    expected = {"<a>": n_pieces, "<b>": n_pieces + 1}
    assert json_of(files, "added_tokens.json") == expected
    decoder = json_of(files, "tokenizer_config.json")["added_tokens_decoder"]
    assert {token["content"]: int(id_) for id_, token in decoder.items()} == expected | {"<s>": 1}
    assert all(token["special"] for token in decoder.values())


@pytest.mark.slow
def test_transformers_4_reads_the_same_special_and_added_tokens(
    folder_with: FolderWith, tmp_path: Path, n_pieces: int
) -> None:
    path = folder_with(
        added_tokens={"<a>": n_pieces, "<b>": n_pieces + 1},
        special_tokens_map={
            "pad_token": added_token("<a>"),
            "additional_special_tokens": ["<b>", added_token("</s>")],
        },
    )
    for name, content in build_documents(read_tokenizer(path)).items():
        (tmp_path / name).write_bytes(content)
    ask = """
import json, sys
from transformers import LlamaTokenizer
tokenizer = LlamaTokenizer.from_pretrained(sys.argv[1])
ids = [tokenizer.bos_token_id, tokenizer.pad_token_id, *tokenizer.additional_special_tokens_ids]
print(json.dumps([len(tokenizer), ids, tokenizer("a<a>b<b>c").input_ids.count(0)]))
"""
    expected = [n_pieces + 2, [1, n_pieces, n_pieces + 1, 2], 0]
    assert run_in_transformers_446(ask, tmp_path) == expected


def test_model_and_chat_template_are_kept_and_tokenizer_json_is_not(
    folder_with: FolderWith, small_model: bytes
) -> None:
    pieces = SentencePieceProcessor(model_proto=small_model)
    vocab = {pieces.id_to_piece(n): n for n in range(pieces.get_piece_size())}
    path = folder_with(tokenizer={"model": {"type": "BPE", "vocab": vocab}})
    (path / "chat_template.jinja").write_text("{{ 你好 }}\n", encoding="utf-8")
    files = build_documents(read_tokenizer(path))
    assert files["tokenizer.model"] == small_model
    assert files["chat_template.jinja"] == "{{ 你好 }}\n".encode()
    assert json_of(files, "tokenizer_config.json")["chat_template"] == "{{ 你好 }}\n"
    assert set(files) == {
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "sentencepiece_llama.py",
    }


def test_documents_of_documents_are_the_same(folder_with: FolderWith, tmp_path: Path) -> None:
    """A merged model can be the base of the next merge."""
    once = build_documents(read_tokenizer(folder_with(special_tokens_map={"pad_token": "<unk>"})))
    for name, content in once.items():
        (tmp_path / name).write_bytes(content)
    assert build_documents(read_tokenizer(tmp_path)) == once


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"PK\x03\x04 not a model", "no SentencePiece model"),
        (b'{"version": "1.0"}', "no SentencePiece model"),
        (b"\x00" * 64, "no SentencePiece model"),
    ],
)
def test_what_is_no_model_is_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(FormatError, match=words) as caught:
        read_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.model") in str(caught.value)


def test_truncated_model_is_refused(tmp_path: Path, small_model: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(small_model[: len(small_model) // 2])
    with pytest.raises(FormatError, match="damaged"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("tokenizer_json", [False, True])
def test_missing_model_is_named_with_a_remedy(tmp_path: Path, tokenizer_json: bool) -> None:
    if tokenizer_json:
        (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FormatError, match=r"no tokenizer\.model") as caught:
        read_tokenizer(tmp_path)
    assert "--tokenizer" in caught.value.facts["remedy"]
    assert ("found" in caught.value.facts) == tokenizer_json


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
@pytest.mark.parametrize("content", [b'{"bos_token": ', b"\xff\xfe{}", b"[]", b""])
def test_broken_json_is_refused_by_name(folder_with: FolderWith, name: str, content: bytes) -> None:
    path = folder_with()
    (path / name).write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_tokenizer(path)
    assert str(path / name) in str(caught.value)


@pytest.mark.parametrize("decoder", [["<a>"], {"3": None}, {"3": {"content": ""}}])
def test_added_tokens_without_text_are_refused(folder_with: FolderWith, decoder: object) -> None:
    with pytest.raises(FormatError, match="added tokens"):
        read_tokenizer(folder_with(tokenizer_config={"added_tokens_decoder": decoder}))


def test_template_that_is_not_utf8_is_refused(folder_with: FolderWith) -> None:
    path = folder_with()
    (path / "chat_template.jinja").write_bytes("{{ 你好 }}".encode("gb18030"))
    with pytest.raises(FormatError, match="not UTF-8"):
        read_tokenizer(path)


@pytest.mark.parametrize("id_", [-1, 1.5, "one", None, True, [3]])
def test_ids_that_are_no_numbers_are_refused(folder_with: FolderWith, id_: object) -> None:
    with pytest.raises(FormatError, match="whole number"):
        read_tokenizer(folder_with(added_tokens={"<a>": id_}))


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ({"<a>": 1}, "follow the"),
        ({"<a>": 0, "<b>": 2}, "follow the"),
        ({"<a>": 0, "<b>": 0}, "follow the"),
        ({"[PAD]": 0}, "contradicts"),
        ({"<a>": -5}, "contradicts"),
    ],
)
def test_added_tokens_that_leave_gaps_or_contradict_the_model_are_refused(
    folder_with: FolderWith, n_pieces: int, added: dict[str, int], words: str
) -> None:
    counted = {token: n_pieces + after for token, after in added.items()}
    with pytest.raises(VocabularyError, match=words):
        read_tokenizer(folder_with(added_tokens=counted))


def test_two_lists_with_different_ids_are_refused(folder_with: FolderWith, n_pieces: int) -> None:
    path = folder_with(
        added_tokens={"<a>": n_pieces},
        tokenizer_config={"added_tokens_decoder": {str(n_pieces + 1): added_token("<a>")}},
    )
    with pytest.raises(VocabularyError, match="contradicts"):
        read_tokenizer(path)


@pytest.mark.parametrize(
    "special",
    [
        {"pad_token": "[UNKNOWN]"},
        {"eos_token": added_token("<|im_end|>")},
        {"additional_special_tokens": ["<s>", "<tool>"]},
    ],
)
def test_special_tokens_that_are_no_tokens_are_refused(
    folder_with: FolderWith, n_pieces: int, special: dict[str, Any]
) -> None:
    """transformers would append them without a word, beyond the last row of the model."""
    with pytest.raises(VocabularyError, match="not a token of this tokenizer") as caught:
        read_tokenizer(folder_with(special_tokens_map=special))
    assert str(n_pieces) in str(caught.value)
