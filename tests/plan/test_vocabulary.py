"""Sizes of vocabularies that do not belong together: the commonest mistakes of all."""

from __future__ import annotations

import shutil

import pytest
import torch

from merge.errors import AdapterError, FormatError, UsageError, VocabularyError
from tests.kit.files import tree
from tests.kit.inputs import Inputs
from tests.kit.models import (
    ALPACA_ROWS,
    BASE_ROWS,
    HIDDEN,
    LLAMA_ROWS,
    PREFIX,
    adapter_tensors,
    base_tensors,
    save_adapter,
    save_base,
)
from tests.kit.tokenizer_models import tokenizer_model

EMBED, HEAD = f"{PREFIX}model.embed_tokens.weight", f"{PREFIX}lm_head.weight"


def test_adapters_in_reversed_order_would_shrink_the_vocabulary(inputs: Inputs) -> None:
    error = inputs.refused(VocabularyError, inputs.alpaca, inputs.llama)
    assert "shrink" in error.sentence
    assert "adapter 2 (chinese-llama)" in error.sentence
    assert error.facts["expected"] == f"at least {ALPACA_ROWS} rows"
    assert error.facts["found"] == f"{LLAMA_ROWS} rows"
    assert "order" in error.facts["remedy"]


def test_refusal_shows_every_size_in_one_table(inputs: Inputs) -> None:
    error = inputs.refused(VocabularyError, inputs.alpaca, inputs.llama)
    rows = [line.split()[:2] for line in error.facts["sizes"].splitlines()]
    assert rows == [
        [str(BASE_ROWS), "rows"],
        [str(ALPACA_ROWS), "rows"],
        [str(LLAMA_ROWS), "rows"],
        [str(LLAMA_ROWS), "tokens"],
    ]


def test_llama_tokenizer_in_an_alpaca_adapter(inputs: Inputs) -> None:
    shutil.copy(inputs.llama / "tokenizer.model", inputs.alpaca)
    error = inputs.refused(VocabularyError)
    assert error.facts["expected"] == f"{ALPACA_ROWS} tokens, one for each row"
    assert error.facts["found"] == f"{LLAMA_ROWS} tokens"
    assert "[PAD]" in error.facts["remedy"]
    assert "--tokenizer" in error.facts["remedy"]
    assert str(inputs.alpaca) in error.facts["sizes"]


def test_alpaca_tokenizer_in_a_llama_adapter(inputs: Inputs) -> None:
    shutil.copy(inputs.alpaca / "tokenizer.model", inputs.llama)
    error = inputs.refused(VocabularyError, inputs.llama)
    assert error.facts["expected"] == f"{LLAMA_ROWS} tokens, one for each row"
    assert error.facts["found"] == f"{ALPACA_ROWS} tokens"
    assert "[PAD]" in error.facts["remedy"]


def test_the_remedy_of_both_mix_ups_works(inputs: Inputs) -> None:
    right = inputs.folder / "right"
    shutil.copytree(inputs.alpaca, right)
    shutil.copy(inputs.llama / "tokenizer.model", inputs.alpaca)
    inputs.merge(tokenizer=right)
    assert (inputs.out / "tokenizer.model").read_bytes() == tokenizer_model(ALPACA_ROWS)


def test_base_that_holds_the_adapter_already(inputs: Inputs) -> None:
    merged = inputs.folder / "chinese-llama-7b"
    inputs.merge(inputs.llama, output_dir=merged, output_type="huggingface")
    error = inputs.refused(AdapterError, inputs.llama, base_model=merged)
    assert "already" in error.sentence
    assert error.facts["file"] == str(inputs.llama / "adapter_model.bin")
    assert str(LLAMA_ROWS) in error.facts["found"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_base_that_holds_the_adapter_already_in_another_dtype(inputs: Inputs, dtype: str) -> None:
    merged = inputs.folder / "chinese-llama-7b"
    inputs.merge(inputs.llama, output_dir=merged, output_type="huggingface", dtype=dtype)
    error = inputs.refused(AdapterError, inputs.llama, base_model=merged)
    assert "already" in error.sentence
    assert error.facts["file"] == str(inputs.llama / "adapter_model.bin")
    assert error.facts["tensor"] == "model.embed_tokens.weight"
    assert str(LLAMA_ROWS) in error.facts["found"]


def test_second_adapter_alone_onto_the_model_that_holds_both(inputs: Inputs) -> None:
    merged = inputs.folder / "chinese-alpaca-7b"
    inputs.merge(output_dir=merged, output_type="huggingface")
    assert "already" in inputs.refused(AdapterError, inputs.alpaca, base_model=merged).sentence
    error = inputs.refused(VocabularyError, base_model=merged)
    assert "original base" in error.facts["remedy"]


def test_continuing_from_a_merged_model_is_allowed(inputs: Inputs) -> None:
    """Chinese-Alpaca onto a merged Chinese-LLaMA is what the two adapters together are."""
    between, two_steps = inputs.folder / "between", inputs.folder / "two-steps"
    inputs.merge(
        inputs.llama, output_dir=between, output_type="huggingface", safe_serialization=True
    )
    inputs.merge(inputs.alpaca, base_model=between, output_dir=two_steps)
    inputs.merge(rounding="per_adapter")
    state = torch.load(inputs.out / "consolidated.00.pth", weights_only=True)
    same = torch.load(two_steps / "consolidated.00.pth", weights_only=True)
    assert all(torch.equal(state[name], same[name]) for name in state)


def test_same_adapter_twice(inputs: Inputs) -> None:
    error = inputs.refused(UsageError, inputs.llama, inputs.alpaca, inputs.llama)
    assert "twice" in error.sentence
    assert error.facts["file"] == str(inputs.llama)


def test_same_adapter_twice_by_another_path(inputs: Inputs) -> None:
    roundabout = inputs.llama / ".." / inputs.llama.name
    assert "twice" in inputs.refused(UsageError, inputs.llama, roundabout).sentence


@pytest.mark.parametrize(("kept", "lacking"), [(EMBED, "lm_head"), (HEAD, "embed_tokens")])
def test_new_tokens_on_one_side_only(inputs: Inputs, kept: str, lacking: str) -> None:
    whole = adapter_tensors(LLAMA_ROWS)
    tensors = {name: t for name, t in whole.items() if name == kept or "lora" in name}
    save_adapter(inputs.llama, tensors)
    error = inputs.refused(VocabularyError, inputs.llama)
    assert f"no {lacking} rows" in error.sentence
    assert error.facts["expected"] == f"{lacking} with {LLAMA_ROWS} rows"
    assert f"{BASE_ROWS} rows" in error.facts["found"]


def test_different_rows_on_the_two_sides(inputs: Inputs) -> None:
    tensors = adapter_tensors(LLAMA_ROWS) | {HEAD: torch.ones(50, HIDDEN)}
    save_adapter(inputs.llama, tensors)
    error = inputs.refused(VocabularyError, inputs.llama)
    assert "different numbers of rows" in error.sentence
    assert error.facts["found"] == f"{LLAMA_ROWS} and 50"


def test_base_padded_beyond_its_tokenizer(inputs: Inputs) -> None:
    save_base(inputs.base, base_tensors(rows=64))
    error = inputs.refused(VocabularyError, inputs.llama)
    assert "padded to 64 rows" in error.facts["remedy"]
    assert f"for {BASE_ROWS} tokens" in error.facts["remedy"]


def test_no_tokenizer_in_the_adapters_falls_back_to_the_bases_which_is_too_small(
    inputs: Inputs,
) -> None:
    for folder in (inputs.llama, inputs.alpaca):
        (folder / "tokenizer.model").unlink()
    error = inputs.refused(VocabularyError)
    assert error.facts["found"] == f"{BASE_ROWS} tokens"
    assert str(inputs.base) in error.facts["sizes"]
    assert "--tokenizer" in error.facts["remedy"]


def test_no_tokenizer_anywhere(inputs: Inputs) -> None:
    for folder in (inputs.base, inputs.llama, inputs.alpaca):
        (folder / "tokenizer.model").unlink()
    error = inputs.refused(FormatError)
    assert error.facts["file"] == str(inputs.base / "tokenizer.model")
    assert "--tokenizer" in error.facts["remedy"]


def test_fast_tokenizer_alone_is_named_as_what_cannot_replace_it(inputs: Inputs) -> None:
    for folder in (inputs.base, inputs.llama, inputs.alpaca):
        (folder / "tokenizer.model").unlink()
    (inputs.base / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert "tokenizer.json" in inputs.refused(UsageError).facts["found"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"not a model", "SentencePiece"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
        (tokenizer_model(ALPACA_ROWS)[:-9], "SentencePiece"),
    ],
    ids=["empty", "text", "lfs", "cut off"],
)
def test_file_that_is_no_sentencepiece_model(inputs: Inputs, content: bytes, word: str) -> None:
    (inputs.alpaca / "tokenizer.model").write_bytes(content)
    error = inputs.refused(FormatError)
    assert word in error.sentence
    assert error.facts["file"] == str(inputs.alpaca / "tokenizer.model")


def test_tokenizer_that_is_not_there(inputs: Inputs) -> None:
    error = inputs.refused(UsageError, tokenizer=inputs.folder / "tokeniser")
    assert "the tokenizer does not exist" in error.sentence


def test_dry_run_refuses_the_same_and_writes_nothing(inputs: Inputs) -> None:
    error = inputs.refused(VocabularyError, inputs.alpaca, inputs.llama, dry_run=True)
    assert str(error) == str(inputs.refused(VocabularyError, inputs.alpaca, inputs.llama))
    before = tree(inputs.folder)
    inputs.merge(dry_run=True)
    assert tree(inputs.folder) == before
