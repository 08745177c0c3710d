"""What an adapter's configuration declares must be in its file, as PEFT would have saved it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from merge import merge_lora
from merge.deltas.adapter import open_adapter
from merge.deltas.adapter_config import AdapterFolder
from merge.deltas.apply import apply_adapters
from merge.errors import AdapterError
from merge.tensors.lazy import Checkpoint
from tests.deltas.test_biases import qwen2
from tests.kit.adapters import LINEAR, make_lora
from tests.kit.files import load_weights
from tests.kit.llamas import make_base
from tests.kit.refusals import refused_merge

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:The following:RuntimeWarning"),
]

BOTH = ["embed_tokens", "lm_head"]
Q = "model.layers.{}.self_attn.q_proj.lora_A.weight"
# What PEFT made, which keys are taken out of it, and what the message names.
LOST: dict[str, tuple[dict[str, Any], str, str]] = {
    "both saved modules": ({"modules_to_save": BOTH}, "weight:s", "model.embed_tokens.weight"),
    "one saved module": ({"modules_to_save": BOTH}, "lm_head", "lm_head.weight"),
    "a saved norm": ({"modules_to_save": ["norm"]}, "model.norm", "model.norm.weight"),
    "part of a saved module": (
        {"modules_to_save": ["mlp"], "target_modules": ["q_proj"]},
        "layers.1.mlp",
        "model.layers.1.mlp.gate_proj.weight",
    ),
    "rows of one side": (
        {"trainable_token_indices": {"lm_head": [2], "embed_tokens": [1, 5]}},
        "lm_head",
        "lm_head.weight",
    ),
    "a layer": ({}, "layers.1.", Q.format(1)),
    "a layer of several": ({"target_modules": [*LINEAR]}, "layers.0.", Q.format(0)),
    "a kind": ({}, "down_proj", "model.layers.0.mlp.down_proj.lora_A.weight"),
    "one module": ({}, "layers.1.self_attn", Q.format(1)),
    "a chosen layer": ({"layers_to_transform": [0, 1]}, "layers.0.", Q.format(0)),
    "the head's": (
        {"target_modules": ["q_proj", "lm_head"]},
        "lm_head",
        "lm_head.lora_A.weight",
    ),
}


def without(adapter: Path, lost: Callable[[str], bool]) -> None:
    tensors = load_weights(adapter)
    kept = {name: tensor for name, tensor in tensors.items() if not lost(name)}
    assert 0 < len(kept) < len(tensors)
    save_file(kept, adapter / "adapter_model.safetensors", metadata={"format": "pt"})


def reconfigured(adapter: Path, **fields: Any) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(config), encoding="utf-8")


def refused(base: Path, adapter: Path, out: Path) -> AdapterError:
    error = refused_merge(base, adapter, out)
    assert {"file", "tensor", "expected", "found"} <= error.facts.keys()
    return error


@pytest.mark.parametrize(("settings", "lost", "named"), LOST.values(), ids=LOST)
def test_what_is_declared_and_lost_is_named(
    tmp_path: Path, base: Path, settings: dict[str, Any], lost: str, named: str
) -> None:
    adapter = make_lora(tmp_path / "lora", base, **settings)
    if lost == "weight:s":
        without(adapter, lambda name: "lora" not in name)
    else:
        without(adapter, lambda name: lost in name)
    assert refused(base, adapter, tmp_path / "out").facts["tensor"] == named


def test_lora_of_a_module_that_was_no_target(tmp_path: Path, base: Path) -> None:
    adapter = make_lora(tmp_path / "lora", base)
    reconfigured(adapter, target_modules=["q_proj"])
    error = refused(base, adapter, tmp_path / "out")
    assert error.facts["tensor"] == "model.layers.0.mlp.down_proj.lora_A.weight"


@pytest.mark.parametrize("all_of_them", [True, False])
def test_lost_bias_of_lora_b(tmp_path: Path, all_of_them: bool) -> None:
    model = qwen2(tmp_path / "base")
    settings = {"lora_bias": True, "target_modules": ["q_proj"]}
    adapter = make_lora(tmp_path / "lora", tmp_path / "base", **settings)
    part = "lora_B.bias" if all_of_them else "layers.1.self_attn.q_proj.lora_B.bias"
    without(adapter, lambda name: part in name)
    with pytest.raises(AdapterError, match="do not agree about lora_bias"):
        apply_adapters(model, [open_adapter(AdapterFolder(adapter))], None)


def biased(folder: Path, bias: str) -> tuple[Checkpoint, Path]:
    """A base with biases, and an adapter that trained them, whose file lacks them."""
    model = qwen2(folder / "base")
    adapter = make_lora(folder / "lora", folder / "base", bias=bias, target_modules=["q_proj"])
    without(adapter, lambda name: name.endswith("bias"))
    return model, adapter


def test_lost_biases(tmp_path: Path) -> None:
    model, adapter = biased(tmp_path, "all")
    with pytest.raises(AdapterError, match="lacks biases") as caught:
        apply_adapters(model, [open_adapter(AdapterFolder(adapter))], None)
    assert caught.value.facts["tensor"] in model.tensors


def test_biases_that_some_releases_did_not_save_are_told(tmp_path: Path) -> None:
    model, adapter = biased(tmp_path, "lora_only")
    (note,) = apply_adapters(model, [open_adapter(AdapterFolder(adapter))], None).notes
    assert "none of the 2 biases" in note


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_a_base_without_biases_lacks_none(tmp_path: Path, base: Path, bias: str) -> None:
    adapter = make_lora(tmp_path / "lora", base, bias=bias)
    assert not merge_lora(base, adapter, tmp_path / "out", dry_run=True).job.model.notes


@pytest.mark.parametrize("targets", [r".*\.(q_proj|down_proj)", "all-linear", None])
def test_without_a_list_of_targets_a_gap_is_told(
    tmp_path: Path, base: Path, targets: str | None
) -> None:
    adapter = make_lora(tmp_path / "lora", base)
    reconfigured(adapter, target_modules=targets)
    without(adapter, lambda name: "layers.1.mlp.down_proj" in name)
    report = merge_lora(base, adapter, tmp_path / "out", dry_run=True)
    assert "no LoRA for 1 modules" in report.summary()
    assert "model.layers.1.mlp.down_proj" in report.summary()


PRESENT: dict[str, dict[str, Any]] = {
    "names that the base does not have": {
        "target_modules": ["q_proj", "query_key_value"],
        "modules_to_save": ["classifier", "score"],
    },
    "excluded by name": {"exclude_modules": ["layers.1.mlp.down_proj"]},
    "excluded by an expression": {"exclude_modules": r".*layers\.1\.mlp\..*"},
    "one layer, as a number": {"layers_to_transform": 1},
    "layers with their pattern": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "whole names": {"target_modules": ["model.layers.1.self_attn.q_proj"]},
    "a module without weights": {"modules_to_save": ["rotary_emb"]},
    "a saved layer among targets": {"modules_to_save": ["layers.1"]},
    "saved and a target": {"modules_to_save": ["lm_head"], "target_modules": [*LINEAR, "lm_head"]},
}


@pytest.mark.parametrize("settings", PRESENT.values(), ids=PRESENT)
def test_what_was_never_trained_is_not_missed(
    tmp_path: Path, base: Path, settings: dict[str, Any]
) -> None:
    adapter = make_lora(tmp_path / "lora", base, **settings)
    assert not merge_lora(base, adapter, tmp_path / "out", dry_run=True).job.model.notes


@pytest.mark.parametrize("side", BOTH)
def test_of_tied_sides_one_is_enough(tmp_path: Path, side: str) -> None:
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = make_lora(tmp_path / "lora", base, modules_to_save=BOTH)
    without(adapter, lambda name: side in name)
    merge_lora(base, adapter, tmp_path / "out", dry_run=True)
    without(adapter, lambda name: "lora" not in name)
    refused(base, adapter, tmp_path / "none")


def test_adapters_of_published_configurations_hold_what_they_declare(
    tmp_path: Path, base: Path, real_data: Path
) -> None:
    kept = ("target_modules", "modules_to_save", "bias", "layers_to_transform", "exclude_modules")
    paths = sorted((real_data / "adapter_configs").glob("*.json"))
    for path in paths:
        fields = json.loads(path.read_text(encoding="utf-8"))
        settings = {key: fields[key] for key in kept if fields.get(key)}
        if not {*settings["target_modules"]} & {*LINEAR, *BOTH}:
            continue  # another architecture's
        adapter = make_lora(tmp_path / path.stem, base, **settings)
        merge_lora(base, adapter, tmp_path / "out", dry_run=True)
    assert len(list(tmp_path.iterdir())) == len(paths) - 1
