"""GGUF against what it was made from, and what the comparison says of a damaged one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from merge import convert_checkpoint, merge_lora
from merge.commands.compare_checkpoints import main
from tests.kit.files import load_weights, save_shards
from tests.kit.llamas import make_base
from tests.kit.spoiled_results import gguf_tensor

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("hf") / "out"
    merge_lora(base, adapter, output, output_type="huggingface")
    return output


@pytest.fixture
def quantized(tmp_path: Path, base: Path, adapter: Path) -> Path:
    merge_lora(base, adapter, tmp_path / "q8_0", output_type="gguf", outtype="q8_0")
    return tmp_path / "q8_0" / "ggml-model-q8_0.gguf"


@pytest.mark.parametrize("split", [None, "40kB"])
def test_f16_equals_the_hugging_face_folder_of_the_same_merge(
    tmp_path: Path,
    base: Path,
    adapter: Path,
    folder: Path,
    split: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"outtype": "f16", "split_max_size": split}
    merge_lora(base, adapter, tmp_path / "f16", output_type="gguf", **options)
    assert main([str(tmp_path / "f16"), str(folder)]) == 0
    said = capsys.readouterr().out
    assert "identical: 16 tensors" in said  # the norms are float32 in GGUF
    assert "equal in float16, the coarser of the two" in said
    assert "q8_0" not in said


@pytest.mark.parametrize("other", ["f16", "f32", "huggingface"])
def test_q8_0_is_the_same_within_the_error_of_its_blocks(
    tmp_path: Path,
    base: Path,
    adapter: Path,
    folder: Path,
    quantized: Path,
    other: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = folder
    if other != "huggingface":
        plain = tmp_path / other
        merge_lora(base, adapter, plain, output_type="gguf", outtype=other)
    for pair in ((quantized, plain), (plain, quantized)):
        assert main([*map(str, pair), "--verbose"]) == 0
        said = capsys.readouterr().out
        # Two matrices have rows that are no multiple of 32 long, and are f16.
        assert said.count("  within the error of q8_0 blocks: at most 0.") == 14
        assert "the same within the error of q8_0 blocks" in said


def test_two_files_in_q8_0_are_identical(
    quantized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = quantized.with_name("copy.gguf")
    copy.write_bytes(quantized.read_bytes())
    assert main([str(quantized), str(copy)]) == 0
    assert "every tensor is identical" in capsys.readouterr().out


def test_one_element_of_a_block_two_steps_off_is_found(
    folder: Path, quantized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gguf_tensor(quantized, "blk.1.ffn_up.weight") as data:
        values = data.reshape(-1, 34)[7, 2:].view(np.int8)  # two blocks are a row
        values[5] += 2 if values[5] < 0 else -2
    assert main([str(folder), str(quantized), "--max_ulp", "1000000"]) == 1
    said = capsys.readouterr().out
    assert f"{UP}: float16 and q8_0 (176, 64)" in said
    assert "1 of 11,264 elements (0.01%) are not within the error of q8_0 blocks" in said
    assert "[3, 37]: " in said
    assert "DIFFERENT: not within 1000000 ulp, or for q8_0 within the error of its blocks" in said


def test_another_scale_of_one_block_is_found(
    folder: Path, quantized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gguf_tensor(quantized, "blk.0.attn_q.weight") as data:
        scale = data.reshape(-1, 34)[9, :2].view(np.float16)
        scale *= np.float16(1.1)
    assert main([str(folder), str(quantized)]) == 1
    said = capsys.readouterr().out
    assert f"{Q}: float16 and q8_0 (64, 64)" in said
    assert "DIFFERENT" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_is_within_the_error_of_no_block(
    tmp_path: Path, folder: Path, quantized: Path, value: float
) -> None:
    tensors = load_weights(folder)
    tensors[UP][3, 4] = value
    other = tmp_path / "other"
    other.mkdir()
    save_shards(tensors, other)
    assert main([str(other), str(quantized)]) == 1


def test_a_tensor_that_only_the_gguf_file_has_is_missing(
    tmp_path: Path, folder: Path, quantized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_weights(folder)
    del tensors[UP]
    other = tmp_path / "other"
    other.mkdir()
    save_shards(tensors, other)
    assert main([str(quantized), str(other)]) == 1
    assert f"missing in B: {UP}" in capsys.readouterr().out


def test_a_gguf_file_without_one_of_its_tensors_is_refused(
    folder: Path, quantized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = quantized.read_bytes()
    assert data.count(b"blk.1.ffn_up.weight") == 1
    quantized.write_bytes(data.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_pu.weight"))
    assert main([str(folder), str(quantized)]) == 2
    said = capsys.readouterr().err
    assert "blk.1.ffn_up.weight" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kept", [3, 200, 0.5, 0.99])
def test_a_damaged_file_is_refused(
    folder: Path, quantized: Path, kept: float, capsys: pytest.CaptureFixture[str]
) -> None:
    data = quantized.read_bytes()
    quantized.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    assert main([str(folder), str(quantized)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "ggml-model-q8_0.gguf" in said


def test_a_conversion_of_bfloat16_is_within_its_blocks(tmp_path: Path) -> None:
    model = make_base(tmp_path / "model", dtype=torch.bfloat16)
    convert_checkpoint(model, tmp_path / "out", output_type="gguf", outtype="q8_0")
    assert main([str(model), str(tmp_path / "out")]) == 0
