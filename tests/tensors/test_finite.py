"""Weights that are infinite or no numbers: refused by tensor, or written and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merge.deltas.dense import Added
from merge.errors import NumberError
from merge.jobs.convert_checkpoint import convert_checkpoint
from merge.tensors.finite import find_largest, is_finite
from merge.tensors.patched import PatchedTensor
from tests.kit.in_memory import lazy
from tests.kit.inputs import Inputs
from tests.kit.models import (
    LLAMA_ROWS,
    PREFIX,
    Q_PROJ,
    adapter_tensors,
    base_tensors,
    save_adapter,
    save_base,
)

NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
VALUES = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", [0, 7, 4095])
def test_any_value_in_any_place_is_seen(dtype: torch.dtype, value: float, place: int) -> None:
    rows = torch.randn(64, 64, dtype=torch.float32).to(dtype)
    rows[0, 0], rows[1, 1] = torch.finfo(dtype).max, torch.finfo(dtype).min
    assert is_finite(rows)
    rows.view(-1)[place] = value
    assert not is_finite(rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_is_judged_by_its_bits_as_by_its_value(dtype: torch.dtype) -> None:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    assert [is_finite(one) for one in numbers.split(1)] == numbers.isfinite().tolist()
    found = torch.tensor([find_largest(one) for one in numbers.split(1)])
    assert torch.equal(found.nan_to_num(-1.0), numbers.float().abs().nan_to_num(-1.0))


@pytest.mark.parametrize("largest", [65504.0, -65504.0])
def test_sum_beyond_the_largest_number_is_refused_even_where_it_rounds_to_that(
    largest: float,
) -> None:
    base = torch.tensor([[1.0, largest]]).half()
    assert _add(base, 0.0).tolist() == [[1.0, largest]]
    assert (base.float() + largest / 2**13).half().tolist()[0][1] == largest
    with pytest.raises(NumberError, match="cannot be written in this dtype"):
        _add(base, largest / 2**13)


def _add(base: torch.Tensor, added: float) -> torch.Tensor:
    """``base`` with a float32 number added to each element, in its own dtype."""
    patch, start = Added(lazy(torch.full(base.shape, added))), lazy(base)
    return PatchedTensor(start.shape, start.dtype, start.origin, start, ((patch,),)).read()


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", [NORM, UP])
def test_value_in_a_tensor_that_nothing_changes_is_refused(
    inputs: Inputs, name: str, value: float
) -> None:
    tensors = base_tensors()
    tensors[name][7] = value
    save_base(inputs.base, tensors)
    error = inputs.refused(NumberError, output_type="huggingface")
    assert error.facts["tensor"] == f"pytorch_model.bin: {name}, row 7"
    assert error.facts["file"] == str(inputs.base / "pytorch_model.bin")
    assert float(error.facts["found"]) == pytest.approx(value, nan_ok=True)
    assert "--allow_nonfinite" in error.facts["remedy"]


def test_value_in_a_tensor_that_replaces_the_bases_is_refused(inputs: Inputs) -> None:
    tensors = adapter_tensors(LLAMA_ROWS)
    tensors[f"{PREFIX}model.embed_tokens.weight"][50, 3] = float("nan")
    save_adapter(inputs.llama, tensors, pieces=LLAMA_ROWS)
    error = inputs.refused(NumberError, inputs.llama)
    name = f"{PREFIX}model.embed_tokens.weight"
    assert error.facts["tensor"] == f"adapter_model.bin: {name}, row 50"
    assert error.facts["file"] == str(inputs.llama / "adapter_model.bin")
    assert error.facts["found"] == "nan"


def test_values_of_a_base_that_is_replaced_do_not_matter(inputs: Inputs) -> None:
    tensors = base_tensors()
    tensors["lm_head.weight"][3, 3] = float("nan")
    inputs.merge(inputs.llama, output_dir=inputs.folder / "of finite numbers")
    save_base(inputs.base, tensors)
    inputs.merge(inputs.llama)
    written = (inputs.out / "consolidated.00.pth").read_bytes()
    assert written == (inputs.folder / "of finite numbers" / "consolidated.00.pth").read_bytes()


@pytest.mark.parametrize("name", [NORM, f"{Q_PROJ}.weight"])
def test_allowed_values_are_written_and_named(inputs: Inputs, name: str) -> None:
    from merge import merge_lora

    tensors = base_tensors()
    tensors[name].view(-1)[5] = float("inf")
    save_base(inputs.base, tensors)
    report = merge_lora(
        inputs.base,
        [inputs.llama, inputs.alpaca],
        inputs.out,
        output_type="huggingface",
        safe_serialization=True,
        allow_nonfinite=True,
    )
    assert f"1 tensors hold NaN or Inf: {name}" in report.summary()
    index = json.loads((inputs.out / "model.safetensors.index.json").read_text(encoding="utf-8"))
    written = load_file(inputs.out / index["weight_map"][name])[name].view(-1)
    assert written[5] == float("inf")
    assert int((~written.isfinite()).sum()) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_overflow_stays_refused_with_the_largest_value(inputs: Inputs, dtype: torch.dtype) -> None:
    tensors = base_tensors(dtype=dtype)
    tensors[UP][7, 3], tensors[UP][9, 1] = 70_000, -131_072
    save_base(inputs.base, tensors)
    error = inputs.refused(NumberError, dtype="float16", allow_nonfinite=True)
    assert UP in error.facts["tensor"]
    assert float(error.facts["found"]) == -131_072
    assert "bfloat16" in error.facts["remedy"]


def test_conversion_looks_too(tmp_path: Path) -> None:
    tensors = base_tensors()
    tensors[NORM][2] = float("nan")
    base = save_base(tmp_path / "base", tensors)
    with pytest.raises(NumberError) as caught:
        convert_checkpoint(base, tmp_path / "out", output_type="pth")
    assert caught.value.facts["tensor"] == f"pytorch_model.bin: {NORM}, row 2"
    assert caught.value.facts["file"] == str(base / "pytorch_model.bin")
    assert not (tmp_path / "out").exists()
