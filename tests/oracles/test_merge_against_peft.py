"""The merge against PEFT's own ``merge_and_unload``, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from merge import merge_lora
from tests.kit.adapters import LINEAR, make_adapter, merge_with_peft, to_old_layout
from tests.kit.compare import merge_in_float64, require_one_rounding
from tests.kit.files import load_weights
from tests.kit.llamas import make_base

BASES: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped-query": {"num_key_value_heads": 4},
    "wide heads": {"head_dim": 16},
    "safetensors": {"container": ".safetensors"},
    "one file": {"max_shard_size": "10GB"},
    "bfloat16": {"dtype": torch.bfloat16},
    "float32": {"dtype": torch.float32},
}


def assert_same(found: Path, expected: dict[str, torch.Tensor]) -> None:
    """Within float32 tolerance; nothing missing, nothing more."""
    tensors = load_weights(found)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("base_changes", BASES.values(), ids=BASES)
def test_any_base_merges_as_peft_does(tmp_path: Path, base_changes: dict[str, Any]) -> None:
    base = make_base(tmp_path / "base", **base_changes)
    adapter = make_adapter(tmp_path / "lora", base, rows=151)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    assert_same(tmp_path / "out", merge_with_peft(base, [adapter]))


ADAPTERS: dict[str, dict[str, Any]] = {
    "q and v only, no vocabulary": {"targets": ["q_proj", "v_proj"], "modules_to_save": None},
    "attention": {"targets": LINEAR[:4]},
    "rank 1": {"r": 1},
    "rsLoRA": {"use_rslora": True, "r": 9},
    "rank and alpha patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
        "alpha_pattern": {"layers.0.self_attn.k_proj": 40, "k_proj": 5, ".*_proj": 3},
    },
    "fan_in_fan_out is nothing to a linear layer": {"fan_in_fan_out": True},
    "one layer": {"layers_to_transform": [1]},
    "lm_head as a LoRA": {"targets": [*LINEAR, "lm_head"], "modules_to_save": ["embed_tokens"]},
    "norms saved whole": {"modules_to_save": ["norm", "embed_tokens", "lm_head"]},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "gaussian start": {"init_lora_weights": "gaussian"},
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True")
@pytest.mark.parametrize("changes", ADAPTERS.values(), ids=ADAPTERS)
def test_any_adapter_merges_as_peft_does(tmp_path: Path, changes: dict[str, Any]) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "lora", base, **changes)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    assert_same(tmp_path / "out", merge_with_peft(base, [adapter]))


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
def test_two_adapters_merge_in_their_order(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    first = to_old_layout(make_adapter(tmp_path / "llama", base, rows=151, targets=LINEAR[:4]))
    second = to_old_layout(make_adapter(tmp_path / "alpaca", base, rows=152, seed=2, r=8))
    merge_lora(base, [first, second], tmp_path / "out", output_type="huggingface", dtype="float32")
    assert_same(tmp_path / "out", merge_with_peft(base, [first, second]))


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
def test_float16_is_the_float32_sum_rounded_once(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    first = to_old_layout(make_adapter(tmp_path / "llama", base, rows=151))
    second = to_old_layout(make_adapter(tmp_path / "alpaca", base, rows=152, seed=2))
    merge_lora(base, [first, second], tmp_path / "out", output_type="huggingface")
    theirs = {name: t.double() for name, t in merge_with_peft(base, [first, second]).items()}
    errors = merge_in_float64(base, [first, second]).float32_errors
    both = {name: 2 * error for name, error in errors.items()}  # each side's sums are in float32
    require_one_rounding(load_weights(tmp_path / "out"), theirs, both)


def test_rounding_per_adapter_is_one_merge_after_the_other(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    first = to_old_layout(make_adapter(tmp_path / "llama", base, rows=151))
    second = to_old_layout(make_adapter(tmp_path / "alpaca", base, rows=152, seed=2))
    settings: dict[str, Any] = {"output_type": "huggingface"}
    merge_lora(base, first, tmp_path / "half", **settings)
    merge_lora(tmp_path / "half", second, tmp_path / "two runs", **settings)
    merge_lora(base, [first, second], tmp_path / "one run", rounding="per_adapter", **settings)
    merge_lora(base, [first, second], tmp_path / "once", **settings)
    two, one = load_weights(tmp_path / "two runs"), load_weights(tmp_path / "one run")
    assert all(torch.equal(two[name], one[name]) for name in two)
    once = load_weights(tmp_path / "once")
    assert any(not torch.equal(once[name], one[name]) for name in once)


@pytest.mark.parametrize("sides", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_tied_embeddings_are_untied_when_the_sides_differ(tmp_path: Path, sides: list[str]) -> None:
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = make_adapter(tmp_path / "lora", base, modules_to_save=None)
    weights = load_weights(adapter)
    module = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}
    for number, side in enumerate(sides):
        torch.manual_seed(number)
        weights[f"base_model.model.{module[side]}.weight"] = torch.randn(101, 64)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(weights, adapter / "adapter_model.bin")
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    merged, old = load_weights(tmp_path / "out"), load_weights(base)
    for side, name in module.items():
        given = weights.get(f"base_model.model.{name}.weight")
        expected = old["model.embed_tokens.weight"].float() if side not in sides else given
        torch.testing.assert_close(merged[f"{name}.weight"], expected)
    assert '"tie_word_embeddings": false' in (tmp_path / "out/config.json").read_text("utf-8")


def test_tied_embeddings_stay_tied_when_nothing_touches_them(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = make_adapter(tmp_path / "lora", base, modules_to_save=None)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    assert "lm_head.weight" not in load_weights(tmp_path / "out")
    assert '"tie_word_embeddings": true' in (tmp_path / "out/config.json").read_text("utf-8")


@pytest.mark.parametrize("raw_bases", [False, True], ids=["adapter only", "with base layers"])
def test_a_raw_training_dict_merges_as_the_saved_adapter(tmp_path: Path, raw_bases: bool) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "lora", base, rows=151)
    merge_lora(base, adapter, tmp_path / "saved", output_type="huggingface")
    raw: dict[str, torch.Tensor] = {}
    for name, tensor in load_weights(adapter).items():
        stem = name.removesuffix(".weight")
        if "lora_" in name:
            raw[f"{stem}.default.weight"] = tensor
        else:
            raw[f"{stem}.modules_to_save.default.weight"] = tensor
            raw[f"{stem}.original_module.weight"] = torch.zeros_like(tensor)
    if raw_bases:
        for name, tensor in load_weights(base).items():
            stem = name.removesuffix(".weight")
            if stem.endswith("_proj"):
                raw[f"base_model.model.{stem}.base_layer.weight"] = tensor
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(raw, adapter / "adapter_model.bin")
    merge_lora(base, adapter, tmp_path / "raw", output_type="huggingface")
    saved, from_raw = load_weights(tmp_path / "saved"), load_weights(tmp_path / "raw")
    assert saved.keys() == from_raw.keys()
    assert all(torch.equal(saved[name], from_raw[name]) for name in saved)
