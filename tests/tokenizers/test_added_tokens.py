"""Tokens beyond the pieces of ``tokenizer.model``, in Meta's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from merge import apply_delta, convert_checkpoint, merge_lora, verify_merge
from tests.kit import llama_cpp
from tests.kit.files import Tensors, load_weights, write_json
from tests.kit.llama_cpp import LEGACY, gguf_contents
from tests.kit.models import (
    BASE_ROWS,
    HIDDEN,
    adapter_tensors,
    base_tensors,
    save_adapter,
    save_base,
)
from tests.kit.run import run_merge

ADDED = {"<|im_start|>": BASE_ROWS, "<|im_end|>": BASE_ROWS + 1, "<pad>": BASE_ROWS + 2}
ROWS = BASE_ROWS + len(ADDED)
LISTS: dict[str, tuple[str, Any]] = {
    "added_tokens.json": ("added_tokens.json", ADDED),
    "added_tokens_decoder": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {str(id_): {"content": text} for text, id_ in ADDED.items()}},
    ),
}


@pytest.fixture(params=LISTS.values(), ids=LISTS)
def lora(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An adapter of more rows than its ``tokenizer.model`` has pieces."""
    folder = save_adapter(tmp_path / "lora", adapter_tensors(ROWS), pieces=BASE_ROWS)
    name, content = request.param
    write_json(folder / name, content)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


def grown_tensors() -> Tensors:
    tensors = base_tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        more = torch.randn(len(ADDED), HIDDEN).half()
        tensors[name] = torch.cat([tensors[name], more])
    return tensors


def require_tokens(out: Path) -> None:
    """All of them are found by the verification, and by the next command that reads the folder."""
    assert not verify_merge(out).faults
    back = out.with_name("back")
    convert_checkpoint(out, back, context_length=2048)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(back, trust_remote_code=True)
    assert [tokenizer.convert_tokens_to_ids(text) for text in ADDED] == list(ADDED.values())
    assert load_weights(back)["lm_head.weight"].shape == (ROWS, HIDDEN)


def test_merge_writes_them_beside_the_weights(base: Path, lora: Path, tmp_path: Path) -> None:
    merge_lora(base, lora, tmp_path / "out")
    require_tokens(tmp_path / "out")


def test_command_verifies_its_own_result(base: Path, lora: Path, tmp_path: Path) -> None:
    words = ("--base_model", base, "--lora_model", lora, "--output_dir", tmp_path / "out")
    ended = run_merge(*words, "--verify")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_conversion_and_delta_write_them(tmp_path: Path) -> None:
    grown = save_base(tmp_path / "grown", grown_tensors(), vocab_size=ROWS)
    write_json(grown / "added_tokens.json", ADDED)
    convert_checkpoint(grown, tmp_path / "a" / "out", output_type="pth")
    require_tokens(tmp_path / "a" / "out")
    delta = {name: tensor * 0.01 for name, tensor in grown_tensors().items()}
    folder = save_base(tmp_path / "delta", delta, vocab_size=ROWS)
    write_json(folder / "added_tokens.json", ADDED)
    apply_delta(save_base(tmp_path / "base"), folder, tmp_path / "b" / "out", output_type="pth")
    require_tokens(tmp_path / "b" / "out")


@pytest.mark.slow
def test_legacy_converter_reads_them(base: Path, lora: Path, tmp_path: Path) -> None:
    llama_cpp.converters()
    out, file = tmp_path / "out", tmp_path / "model.gguf"
    merge_lora(base, lora, out)
    # With more threads, zipfile of Python 3.12.0 to 3.13.1 mixes up its entries (CPython #127847).
    options = ("--outtype", "f16", "--concurrency", 1)
    converted = llama_cpp.convert([(LEGACY, out, "--outfile", file, *options)])
    assert converted[0].error is None
    tokens = gguf_contents(file)["tokenizer.ggml.tokens"]
    assert list(tokens)[BASE_ROWS:] == list(ADDED)


def test_verification_misses_them_where_the_list_is_lost(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    merge_lora(base, lora, out)
    (out / "added_tokens.json").unlink()
    assert verify_merge(out).faults
