"""Conversion between layouts: there and back bit for bit, and the commands as people type them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from demo import meta_llama
from merge.errors import LayoutError, MergeError, OutputError, UsageError, VocabularyError
from merge.jobs.convert_checkpoint import convert_checkpoint
from tests.kit.files import Tensors, load_weights, tree
from tests.kit.llamas import make_base
from tests.kit.meta_models import (
    ROWS,
    hf_tensors,
    make_meta,
    meta_tensors,
    params,
    save_meta,
    split,
)
from tests.kit.run import ROOT, run_merge
from tests.kit.tokenizer_models import write_tokenizer

CONVERT = ROOT / "scripts" / "convert_checkpoint.py"
CONVERT_LLAMA = ROOT / "scripts" / "convert_llama_weights_to_hf.py"
SHARDS = pytest.mark.parametrize("count", [1, 2, 4, 8])
KV_HEADS = pytest.mark.parametrize("kv_heads", [8, 4], ids=["multi-head", "grouped-query"])
IDS = [1, 5, 9, 100, 33, 77, 49, 2]


def require_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def load_shards(folder: Path) -> list[Tensors]:
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pth"))]


@SHARDS
@KV_HEADS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("safe", [False, True], ids=["bin", "safetensors"])
def test_meta_to_huggingface_to_meta_is_bit_exact(
    tmp_path: Path, count: int, kv_heads: int, dtype: torch.dtype, safe: bool
) -> None:
    tensors = meta_tensors(kv_heads, dtype=dtype)
    shards = split(tensors, count)
    meta = save_meta(tmp_path / "meta", shards, params(kv_heads))
    convert_checkpoint(meta, tmp_path / "hf", safe_serialization=safe, max_shard_size="50KB")
    require_equal(load_weights(tmp_path / "hf"), hf_tensors(tensors, kv_heads))
    if kv_heads % count:  # such files can be read; they are not written
        with pytest.raises(UsageError, match="cannot be split evenly"):
            convert_checkpoint(
                tmp_path / "hf", tmp_path / "back", output_type="pth", num_shards=count
            )
        return
    convert_checkpoint(tmp_path / "hf", tmp_path / "back", output_type="pth", num_shards=count)
    back = load_shards(tmp_path / "back")
    assert len(back) == count
    for found, expected in zip(back, shards, strict=True):
        require_equal(found, expected)
    described = json.loads((tmp_path / "back/params.json").read_text(encoding="utf-8"))
    assert described == params(kv_heads, vocab_size=ROWS)


@KV_HEADS
@pytest.mark.parametrize("container", [".bin", ".safetensors"])
def test_huggingface_to_meta_to_huggingface_is_bit_exact(
    tmp_path: Path, kv_heads: int, container: str
) -> None:
    base = make_base(tmp_path / "hf", container=container, num_key_value_heads=kv_heads)
    convert_checkpoint(base, tmp_path / "meta", output_type="pth", num_shards=2)
    convert_checkpoint(tmp_path / "meta", tmp_path / "back")
    require_equal(load_weights(tmp_path / "back"), load_weights(base))


def test_meta_may_be_split_over_another_number_of_files(tmp_path: Path) -> None:
    tensors = meta_tensors()
    meta = save_meta(tmp_path / "meta", split(tensors, 8, embeddings_by_rows=True))
    convert_checkpoint(meta, tmp_path / "out", output_type="pth", num_shards=2)
    for found, expected in zip(load_shards(tmp_path / "out"), split(tensors, 2), strict=True):
        require_equal(found, expected)


def test_scaled_positions_of_llama_3_go_there_and_back(tmp_path: Path) -> None:
    """Factor 32 by transformers' script for Llama 3.2, whose small models alone are this narrow."""
    described = params(4, rope_theta=500000.0, use_scaled_rope=True, vocab_size=ROWS)
    meta = save_meta(tmp_path / "meta", split(meta_tensors(4), 2), described)
    convert_checkpoint(meta, tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text(encoding="utf-8"))
    assert config["rope_scaling"] == {
        "type": "llama3",
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    convert_checkpoint(tmp_path / "hf", tmp_path / "back", output_type="pth", num_shards=2)
    assert json.loads((tmp_path / "back/params.json").read_text(encoding="utf-8")) == described


def test_dry_run_checks_and_writes_nothing(tmp_path: Path) -> None:
    meta = make_meta(tmp_path / "meta", 2)
    before = tree(tmp_path)
    report = convert_checkpoint(meta, tmp_path / "out", dry_run=True)
    assert report.summary().startswith("Planned:")
    assert tree(tmp_path) == before


def test_dtype_is_rounded_once_when_asked(tmp_path: Path) -> None:
    tensors = meta_tensors(dtype=torch.float32)
    meta = save_meta(tmp_path / "meta", split(tensors, 2))
    convert_checkpoint(meta, tmp_path / "hf", dtype="float16")
    expected = {name: tensor.half() for name, tensor in hf_tensors(tensors).items()}
    require_equal(load_weights(tmp_path / "hf"), expected)
    config = json.loads((tmp_path / "hf/config.json").read_text(encoding="utf-8"))
    assert config["torch_dtype"] == "float16"


@SHARDS
@KV_HEADS
def test_logits_of_metas_forward_pass_are_those_of_transformers(
    tmp_path: Path, count: int, kv_heads: int
) -> None:
    tensors = meta_tensors(kv_heads, dtype=torch.float32)
    described = params(kv_heads, rope_theta=500.0)
    meta = save_meta(tmp_path / "meta", split(tensors, count), described)
    convert_checkpoint(meta, tmp_path / "hf", safe_serialization=True)
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    with torch.no_grad():
        expected = meta_llama.forward(tensors, described, IDS, 500.0)
        logits = model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_real_model_speaks_alike_in_both_layouts(tmp_path: Path, real_data: Path) -> None:
    meta = real_data / "stories260K_zh_base_meta"
    convert_checkpoint(meta, tmp_path / "hf", context_length=512)
    require_equal(load_weights(tmp_path / "hf"), load_weights(real_data / "stories260K_zh_base_hf"))
    config = json.loads((tmp_path / "hf/config.json").read_text(encoding="utf-8"))
    theirs = json.loads(
        (real_data / "stories260K_zh_base_hf/config.json").read_text(encoding="utf-8")
    )
    shared = config.keys() & theirs.keys() - {"transformers_version", "rope_scaling"}
    assert {key: config[key] for key in shared} == {key: theirs[key] for key in shared}


def test_script_of_the_known_name_and_arguments(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ROWS)
    tensors = meta_tensors()
    save_meta(tmp_path / "13B", split(tensors, 2), pieces=None)
    save_meta(tmp_path / "7B", [meta_tensors(seed=3)], pieces=None)
    out = tmp_path / "out"
    words = ["--input_dir", tmp_path, "--model_size", "13B", "--output_dir", out]
    done = run_merge(*words, "--llama_version", "2", "--quiet", script=CONVERT_LLAMA)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    require_equal(load_weights(out), hf_tensors(tensors))
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["max_position_embeddings"] == 4096


SIZES: dict[str, tuple[list[str], str | None, str]] = {
    "33B is 30B": (["30B"], "33B", "30B"),
    "the only one": (["65B"], None, "65B"),
    "the folder itself": (["."], "7B", "."),
    "the folder itself, no size": (["."], None, "."),
}


@pytest.mark.parametrize(("present", "size", "found"), SIZES.values(), ids=SIZES)
def test_model_size_names_a_folder(
    tmp_path: Path, present: list[str], size: str | None, found: str
) -> None:
    from merge.jobs.convert_checkpoint import find_size

    for name in present:
        make_meta(tmp_path / name)
    assert find_size(tmp_path, size).samefile(tmp_path / found)


@pytest.mark.parametrize(("sizes", "asked"), [(["7B", "13B"], None), (["7B"], "13B"), ([], "7B")])
def test_size_that_is_not_there(tmp_path: Path, sizes: list[str], asked: str | None) -> None:
    from merge.jobs.convert_checkpoint import find_size

    for name in sizes:
        make_meta(tmp_path / name)
    with pytest.raises(UsageError, match="holds no model") as caught:
        find_size(tmp_path, asked)
    assert all(name in caught.value.facts["found"] for name in sizes)


def test_convert_script(tmp_path: Path) -> None:
    meta = make_meta(tmp_path / "meta", 4)
    words = ["--input", meta, "--output", tmp_path / "out", "--output_type", "hf"]
    done = run_merge(*words, script=CONVERT)
    assert done.returncode == 0, done.stderr
    assert "max_position_embeddings" not in done.stdout
    assert "2048" in done.stdout
    require_equal(load_weights(tmp_path / "out"), hf_tensors(meta_tensors()))
    again = run_merge(*words, script=CONVERT)
    assert again.returncode == 2
    assert "holds a model already" in again.stderr
    assert "Traceback" not in again.stderr


def refused(folder: Path, kind: type[MergeError], words: str, **options: Any) -> None:
    """Convert ``folder / "in"``, and require one sentence with a remedy and nothing changed."""
    before = tree(folder)
    arguments: dict[str, Any] = {"model": folder / "in", "output_dir": folder / "out"} | options
    with pytest.raises(kind, match=words) as caught:
        convert_checkpoint(**arguments)
    assert caught.value.facts.get("remedy")
    assert tree(folder) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_that_is_the_input(tmp_path: Path, overwrite: bool) -> None:
    same = {"output_dir": make_meta(tmp_path / "in"), "overwrite": overwrite}
    refused(tmp_path, OutputError, "one of the inputs", **same)


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    refused(tmp_path, LayoutError, "no configuration")


def test_tokenizer_with_more_tokens_than_rows(tmp_path: Path) -> None:
    save_meta(tmp_path / "in", [meta_tensors()], pieces=ROWS + 1)
    refused(tmp_path, VocabularyError, "do not belong together")


def test_rows_beyond_the_tokenizer_are_told(tmp_path: Path) -> None:
    save_meta(tmp_path / "in", [meta_tensors()], pieces=ROWS - 4)
    report = convert_checkpoint(tmp_path / "in", tmp_path / "out")
    assert any("--pad-vocab" in note for note in report.notes)


def test_tied_model_keeps_one_matrix(tmp_path: Path) -> None:
    base = make_base(tmp_path / "in", tie_word_embeddings=True)
    convert_checkpoint(base, tmp_path / "out", safe_serialization=True)
    require_equal(load_weights(tmp_path / "out"), load_weights(base))
    config = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is True
