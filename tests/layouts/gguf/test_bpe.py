"""Byte-level BPE in GGUF: what llama.cpp will do is told, and what it cannot do is refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from merge import merge_lora, verify_merge
from merge.errors import MergeError
from merge.formats import InputFile
from merge.formats import gguf as container
from tests.kit.adapters import make_adapter
from tests.kit.bpe_tokenizers import BOS, EOS, write_bpe_tokenizer
from tests.kit.llama_cpp_runs import run_llama_cpp
from tests.kit.llamas import make_base
from tests.kit.tokenizer_models import TEXT

pytest.importorskip("gguf", reason="needs the package gguf")
TOKENS = 420


def _make(
    folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None, rows: int = TOKENS
) -> tuple[Path, Path]:
    """A base with a small byte-level BPE, and an adapter."""
    base = make_base(folder / "base", vocab_size=rows, num_key_value_heads=2)
    (base / "tokenizer.model").unlink()
    lora = make_adapter(folder / "lora", base, modules_to_save=None)
    write_bpe_tokenizer(base, TOKENS, change)
    return base, lora


def _read_metadata(folder: Path) -> dict[str, Any]:
    return container.read(InputFile(next(folder.glob("*.gguf")))).metadata


def _edit(path: Path, without: tuple[str, ...] = (), **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in content.items() if key not in without}
    path.write_text(json.dumps(kept), encoding="utf-8")


def _drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda fast: fast["model"].pop(key)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama.cpp")
def test_llama_cpp_gives_the_ids_of_a_vocabulary_that_its_converter_does_not_know(
    tmp_path: Path,
) -> None:
    """The converter knows a tokenizer by the ids of a text, which differ in every vocabulary."""
    base, lora = _make(tmp_path)
    merge_lora(base, lora, tmp_path / "out", output_type="gguf", outtype="f32")
    lines = TEXT.read_text(encoding="utf-8").splitlines()
    file = tmp_path / "out" / "ggml-model-f32.gguf"
    found = run_llama_cpp(file, tmp_path, [[1, 2]], 1, lines)["ids"]
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    assert found == [tokenizer.encode(line, add_special_tokens=False).ids for line in lines]


def test_padding_gets_tokens_that_are_never_used(tmp_path: Path) -> None:
    base, lora = _make(tmp_path, rows=TOKENS + 4)  # up to a multiple of eight
    merge_lora(base, lora, tmp_path / "out", output_type="gguf")
    found = _read_metadata(tmp_path / "out")
    assert found["tokenizer.ggml.tokens"][TOKENS:] == [f"[PAD{TOKENS + n}]" for n in range(4)]
    assert found["tokenizer.ggml.token_type"][TOKENS:] == [5] * 4
    assert not verify_merge(tmp_path / "out").faults


def test_a_tokenizer_without_begin_gets_none_from_llama_cpp(tmp_path: Path) -> None:
    """llama.cpp puts one before every text of such a model unless it is told."""
    base, lora = _make(tmp_path, lambda fast: fast.update(post_processor=None))
    merge_lora(base, lora, tmp_path / "out", output_type="gguf")
    found = _read_metadata(tmp_path / "out")
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.ggml.add_eos_token"] is False


def test_the_end_is_the_first_that_a_configuration_lists(tmp_path: Path) -> None:
    base, lora = _make(tmp_path)
    (base / "tokenizer_config.json").unlink()
    _edit(base / "config.json", bos_token_id=418, eos_token_id=[419, 7])
    merge_lora(base, lora, tmp_path / "out", output_type="gguf")
    found = _read_metadata(tmp_path / "out")
    assert found["tokenizer.ggml.bos_token_id"] == 418
    assert found["tokenizer.ggml.eos_token_id"] == 419


@pytest.mark.parametrize("kind", ["bos", "eos"])
def test_a_model_of_which_nothing_says_where_a_text_ends_is_refused(
    kind: str, tmp_path: Path
) -> None:
    base, lora = _make(tmp_path)
    _edit(base / "tokenizer_config.json", (f"{kind}_token",))
    _edit(base / "config.json", **{f"{kind}_token_id": None})
    with pytest.raises(MergeError, match=f"{kind}_token"):
        merge_lora(base, lora, tmp_path / "out", output_type="gguf")
    assert not (tmp_path / "out").exists()


def test_the_template_is_the_one_that_transformers_takes(tmp_path: Path) -> None:
    base, lora = _make(tmp_path)
    _edit(base / "tokenizer_config.json", chat_template="old")
    (base / "chat_template.jinja").write_text("new", encoding="utf-8")
    merge_lora(base, lora, tmp_path / "out", output_type="gguf")
    assert _read_metadata(tmp_path / "out")["tokenizer.chat_template"] == "new"


def test_words_that_merges_would_not_make_are_told(tmp_path: Path) -> None:
    base, lora = _make(tmp_path, _drop("ignore_merges"))
    report = merge_lora(base, lora, tmp_path / "out", output_type="gguf")
    assert "no ignore_merges" in report.summary()


def test_flags_that_llama_cpp_does_not_know_are_told(tmp_path: Path) -> None:
    base, lora = _make(tmp_path, lambda fast: fast["added_tokens"][1].update(lstrip=True))
    report = merge_lora(base, lora, tmp_path / "out", output_type="gguf")
    assert f"added tokens ({EOS})" in report.summary()
    assert BOS not in report.summary()


QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def test_another_pre_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    def cut_as_qwen(fast: dict[str, Any]) -> None:
        fast["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": QWEN_2}

    base, lora = _make(tmp_path, cut_as_qwen)
    with pytest.raises(MergeError, match=r"another pattern than Llama 3's") as refused:
        merge_lora(base, lora, tmp_path / "out", output_type="gguf")
    assert refused.value.facts["found"] == QWEN_2
    assert not (tmp_path / "out").exists()


def test_tokens_in_another_order_are_found(tmp_path: Path) -> None:
    """The vocabulary of a result is held against that of its base."""
    base, lora = _make(tmp_path)
    merge_lora(base, lora, tmp_path / "out", output_type="gguf")
    path = base / "tokenizer.json"
    fast = json.loads(path.read_text(encoding="utf-8"))
    vocab = fast["model"]["vocab"]
    one, other = list(vocab)[300:302]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    path.write_text(json.dumps(fast), encoding="utf-8")
    faults = [str(fault) for fault in verify_merge(tmp_path / "out").faults]
    assert len(faults) == 1
    assert "gives an id another token" in faults[0]
