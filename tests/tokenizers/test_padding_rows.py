"""Rows that trainers add to round a vocabulary up, told from rows that are a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFReader, TokenType
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge import convert_checkpoint, merge_lora, verify_merge
from merge.errors import VocabularyError
from tests.kit.files import load_weights, tree, write_json
from tests.kit.llama_cpp import HUGGINGFACE, convert, gguf_contents
from tests.kit.models import adapter_tensors, base_tensors, save_adapter, save_base

PIECES = 40
ADDED = {"<|im_start|>": 40, "<|im_end|>": 41, "<pad>": 42}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


def padded_adapter(folder: Path, rows: int) -> Path:
    """Whole embeddings of ``rows``, a tokenizer of 40 pieces and 3 added tokens."""
    save_adapter(folder, adapter_tensors(rows), pieces=PIECES)
    write_json(folder / "added_tokens.json", ADDED)
    return folder


@pytest.mark.parametrize("rows", [48, 64, 128])
def test_rows_that_were_rounded_up_are_padding(tmp_path: Path, base: Path, rows: int) -> None:
    adapter = padded_adapter(tmp_path / "lora", rows)
    report = merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    assert f"{rows} rows for 43 tokens: the last {rows - 43} are padding" in report.summary()
    assert load_weights(tmp_path / "out")["lm_head.weight"].shape[0] == rows
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)) == 43
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == rows
    assert not verify_merge(tmp_path / "out").faults
    merge_lora(base, adapter, tmp_path / "pth")
    assert not verify_merge(tmp_path / "pth").faults


@pytest.mark.parametrize("rows", [44, 46, 50, 52, 56, 80])
def test_other_surplus_is_a_mistake_unless_it_is_chosen(
    tmp_path: Path, base: Path, rows: int
) -> None:
    adapter = padded_adapter(tmp_path / "lora", rows)
    before = tree(tmp_path)
    with pytest.raises(VocabularyError, match="do not belong together") as caught:
        merge_lora(base, adapter, tmp_path / "out")
    assert "keep_base_rows" in caught.value.facts["remedy"]
    assert tree(tmp_path) == before
    merge_lora(base, adapter, tmp_path / "out", vocab_mismatch="keep_base_rows")


def test_published_padded_base_is_written_as_gguf_as_llama_cpp_converts_it(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", base_tensors(64), vocab_size=64)
    adapter = save_adapter(tmp_path / "lora")
    merge_lora(base, adapter, tmp_path / "gguf", output_type="gguf", outtype="f16")
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    fields = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    assert fields["tokenizer.ggml.tokens"][PIECES:] == [f"[PAD{n}]" for n in range(PIECES, 64)]
    kinds = fields["tokenizer.ggml.token_type"]
    assert set(kinds[PIECES:]) == {TokenType.UNUSED}
    assert set(fields["tokenizer.ggml.scores"][PIECES:]) == {-10000.0}
    assert not verify_merge(tmp_path / "gguf").faults
    convert_checkpoint(base, tmp_path / "converted", output_type="gguf")


def test_llama_cpps_converter_writes_the_same(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", base_tensors(64), vocab_size=64)
    adapter = save_adapter(tmp_path / "lora")
    merge_lora(base, adapter, tmp_path / "hf", output_type="huggingface")
    merge_lora(base, adapter, tmp_path / "gguf", output_type="gguf", outtype="f16")
    (ours,) = (tmp_path / "gguf").glob("*.gguf")
    words = ("--outfile", tmp_path / "theirs.gguf", "--outtype", "f16")
    (theirs,) = convert([(HUGGINGFACE, tmp_path / "hf", *words)])
    assert theirs.error is None
    unknown = {"tokenizer.ggml.unknown_token_id": 0}  # which the converter leaves out
    assert gguf_contents(ours) == gguf_contents(theirs.outfile) | unknown
    for name in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        files = (GGUFReader(path).fields[name].contents() for path in (ours, theirs.outfile))
        assert next(files) == next(files)
