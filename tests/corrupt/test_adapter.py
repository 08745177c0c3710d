"""Adapters that are empty, damaged, another model's, or of a kind that is not merged here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from merge.errors import AdapterError, FormatError, LayoutError, NumberError, UsageError
from tests.kit.containers import Opens
from tests.kit.files import write_json
from tests.kit.inputs import Inputs
from tests.kit.models import (
    HIDDEN,
    LLAMA_ROWS,
    PREFIX,
    Q_PROJ,
    RANK,
    adapter_tensors,
    base_config,
    save_adapter,
)

A, B = f"{PREFIX}{Q_PROJ}.lora_A.weight", f"{PREFIX}{Q_PROJ}.lora_B.weight"


def weights(inputs: Inputs) -> Path:
    return inputs.llama / "adapter_model.bin"


@pytest.mark.parametrize("zipped", [True, False], ids=["today", "443 bytes"])
def test_empty_adapter_is_named_as_the_training_bug_it_is(inputs: Inputs, zipped: bool) -> None:
    torch.save({}, weights(inputs), _use_new_zipfile_serialization=zipped)
    error = inputs.refused(AdapterError, inputs.llama)
    assert "empty" in error.sentence
    assert error.facts["file"] == str(weights(inputs))
    assert f"({weights(inputs).stat().st_size} bytes)" in error.facts["found"]
    assert "state_dict" in error.facts["remedy"]


@pytest.mark.parametrize("key", [A, B, f"{PREFIX}model.embed_tokens.weight"])
@pytest.mark.parametrize("shape", [(0,), (0, HIDDEN)])
def test_tensor_without_rows_is_named_as_zero_3s_doing(
    inputs: Inputs, key: str, shape: tuple[int, ...]
) -> None:
    save_adapter(inputs.llama, adapter_tensors(LLAMA_ROWS) | {key: torch.empty(shape)})
    error = inputs.refused(AdapterError, inputs.llama)
    assert error.facts["tensor"] == key
    assert error.facts["found"] == f"shape {shape}"
    assert "ZeRO-3" in error.facts["remedy"]


@pytest.mark.parametrize("rows", [LLAMA_ROWS, None], ids=["with embeddings", "without"])
def test_adapter_of_another_size(inputs: Inputs, rows: int | None) -> None:
    save_adapter(inputs.llama, adapter_tensors(rows, hidden=20), pieces=rows)
    tokenizer = None if rows else inputs.base
    error = inputs.refused(AdapterError, inputs.llama, tokenizer=tokenizer)
    assert "another size" in error.sentence
    assert error.facts["file"] == str(weights(inputs))
    assert f"{HIDDEN})" in error.facts["expected"]
    assert "20)" in error.facts["found"]
    assert "13B" in error.facts["remedy"]


@pytest.mark.parametrize(("present", "absent"), [(A, B), (B, A)])
def test_half_of_a_lora(inputs: Inputs, present: str, absent: str) -> None:
    tensors = adapter_tensors(LLAMA_ROWS)
    del tensors[absent]
    save_adapter(inputs.llama, tensors)
    error = inputs.refused(AdapterError, inputs.llama)
    assert error.facts["tensor"] == absent.removeprefix(PREFIX)
    assert f"{present.split('.')[-2]} of a module without its" in error.sentence
    assert error.facts["found"] == "1 with one half only"


@pytest.mark.parametrize(
    "key",
    [
        "weird",
        "lora_A.weight.0",
        f"{PREFIX}{Q_PROJ}.lora_A",
        f"{PREFIX}{Q_PROJ}.lora_A.weight.absmax",
        f"{PREFIX}{Q_PROJ}.lora_C.weight",
        f"{PREFIX}{Q_PROJ}.bias",
        f"{PREFIX}model.layers.9.self_attn.q_proj.weight",
        f"{PREFIX}transformer.h.0.attn.c_attn.weight",
        f"{PREFIX}model.rotary_emb.inv_freq",
    ],
)
def test_stray_key_is_named(inputs: Inputs, key: str) -> None:
    save_adapter(inputs.llama, adapter_tensors(LLAMA_ROWS) | {key: torch.ones(HIDDEN, HIDDEN)})
    error = inputs.refused(AdapterError, inputs.llama)
    assert error.facts["file"] == str(weights(inputs))
    assert error.facts["tensor"] in (key, key.removeprefix(PREFIX))


@pytest.mark.parametrize("module", ["model.layers.2.self_attn.q_proj", "model.layers.0.attn.wq"])
def test_lora_for_a_module_that_the_base_lacks(inputs: Inputs, module: str) -> None:
    more = {
        f"{PREFIX}{module}.lora_A.weight": torch.ones(RANK, HIDDEN),
        f"{PREFIX}{module}.lora_B.weight": torch.ones(HIDDEN, RANK),
    }
    save_adapter(inputs.llama, adapter_tensors(LLAMA_ROWS) | more)
    error = inputs.refused(AdapterError, inputs.llama)
    assert error.facts["tensor"] == f"{module}.weight"
    assert "decapoda-research/llama-7b-hf" in error.facts["remedy"]  # the base that it records


def test_same_tensor_under_two_keys(inputs: Inputs) -> None:
    tensors = adapter_tensors(LLAMA_ROWS)
    tensors[A.replace("lora_A", "lora_A.default")] = tensors[A]
    save_adapter(inputs.llama, tensors)
    assert "twice" in inputs.refused(AdapterError, inputs.llama).sentence


def test_two_adapters_in_one_file(inputs: Inputs) -> None:
    tensors = {
        key.replace("weight", f"{name}.weight"): tensor
        for name, layer in (("chinese", "layers.0"), ("english", "layers.1"))
        for key, tensor in adapter_tensors().items()
        if layer in key
    }
    save_adapter(inputs.llama, tensors)
    assert inputs.refused(AdapterError, inputs.llama).facts["found"] == "chinese, english"


def test_two_versions_of_one_trained_tensor(inputs: Inputs) -> None:
    tensors = adapter_tensors(LLAMA_ROWS)
    other = torch.ones(LLAMA_ROWS, HIDDEN)
    tensors[f"{PREFIX}lm_head.modules_to_save.default.weight"] = other
    save_adapter(inputs.llama, tensors)
    error = inputs.refused(AdapterError, inputs.llama)
    assert "two different versions" in error.sentence
    assert "lm_head.weight" in error.facts["tensor"]


def test_untrained_copy_without_the_trained_one(inputs: Inputs) -> None:
    tensors = adapter_tensors()
    tensors[f"{PREFIX}lm_head.original_module.weight"] = torch.ones(40, HIDDEN)
    save_adapter(inputs.llama, tensors)
    error = inputs.refused(AdapterError, inputs.llama)
    assert error.facts["tensor"] == "lm_head.original_module.weight"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_quantised_adapter(inputs: Inputs, dtype: torch.dtype) -> None:
    tensors = adapter_tensors(LLAMA_ROWS)
    save_adapter(inputs.llama, tensors | {A: tensors[A].to(dtype)})
    error = inputs.refused(AdapterError, inputs.llama)
    assert error.facts["tensor"] == A
    assert error.facts["found"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_adapter_with_a_value_that_is_no_number(inputs: Inputs, value: float) -> None:
    tensors = adapter_tensors(LLAMA_ROWS)
    tensors[B][5, 1] = value
    save_adapter(inputs.llama, tensors)
    error = inputs.refused(NumberError, inputs.llama)
    assert error.facts["file"] == str(inputs.llama / "adapter_model.bin")
    assert f"{B}, row 5" in error.facts["tensor"]
    assert error.facts["found"] == f"{value:g}"
    assert "diverged" in error.facts["remedy"]


def test_whole_tensor_of_an_adapter_with_a_value_that_is_no_number(inputs: Inputs) -> None:
    tensors = adapter_tensors(LLAMA_ROWS)
    tensors[f"{PREFIX}lm_head.weight"][9, 1] = float("nan")
    save_adapter(inputs.llama, tensors)
    error = inputs.refused(NumberError, inputs.llama, dtype="float32")
    assert error.facts["file"] == str(inputs.llama / "adapter_model.bin")
    assert "lm_head.weight, row 9" in error.facts["tensor"]


@pytest.mark.parametrize("fields", [{"r": 8}, {"rank_pattern": {"q_proj": 4}}])
def test_rank_that_contradicts_the_configuration(inputs: Inputs, fields: dict[str, object]) -> None:
    save_adapter(inputs.llama, adapter_tensors(LLAMA_ROWS), **fields)
    error = inputs.refused(AdapterError, inputs.llama)
    assert "different ranks" in error.sentence
    assert error.facts["found"] == f"lora_A ({RANK}, {HIDDEN}) and lora_B ({HIDDEN}, {RANK})"
    assert "adapter_config.json" in error.facts["remedy"]


@pytest.mark.parametrize("shape", [(RANK,), (RANK, HIDDEN, 1), ()])
def test_lora_that_is_no_matrix(inputs: Inputs, shape: tuple[int, ...]) -> None:
    save_adapter(inputs.llama, adapter_tensors(LLAMA_ROWS) | {A: torch.ones(shape)})
    assert str(shape) in inputs.refused(AdapterError, inputs.llama).facts["found"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"r": None}, '"r"'),
        ({"r": 0}, '"r"'),
        ({"r": "8"}, '"r"'),
        ({"lora_alpha": None}, '"lora_alpha"'),
        ({"rank_pattern": [8]}, '"rank_pattern"'),
        ({"rank_pattern": {"q_proj": "eight"}}, '"q_proj"'),
        ({"alpha_pattern": {"q_proj": None}}, '"q_proj"'),
        ({"alpha_pattern": {"(": 8}}, '"alpha_pattern"'),
    ],
    ids=str,
)
def test_configuration_that_says_no_scaling(
    inputs: Inputs, fields: dict[str, object], named: str
) -> None:
    save_adapter(inputs.llama, adapter_tensors(LLAMA_ROWS), **fields)
    error = inputs.refused(AdapterError, inputs.llama)
    assert error.facts["file"] == str(inputs.llama / "adapter_config.json")
    assert named in error.facts["expected"]


def test_configuration_that_is_no_json(inputs: Inputs) -> None:
    (inputs.llama / "adapter_config.json").write_text("<html>", encoding="utf-8")
    error = inputs.refused(FormatError, inputs.llama)
    assert error.facts["file"] == str(inputs.llama / "adapter_config.json")


def test_configuration_that_is_not_there(inputs: Inputs) -> None:
    (inputs.llama / "adapter_config.json").unlink()
    error = inputs.refused(AdapterError, inputs.llama)
    assert error.facts["file"] == str(inputs.llama / "adapter_config.json")


def test_weights_that_are_not_there(inputs: Inputs) -> None:
    weights(inputs).unlink()
    error = inputs.refused(AdapterError, inputs.llama)
    assert "adapter_model.safetensors or adapter_model.bin" in error.facts["expected"]
    assert "tokenizer.model" in error.facts["found"]


def test_weights_that_are_there_in_both_containers(inputs: Inputs) -> None:
    save_adapter(inputs.llama, name="adapter_model.safetensors")
    assert "twice" in inputs.refused(AdapterError, inputs.llama).sentence


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
@pytest.mark.parametrize("kept", [0.2, 0.95])
def test_truncated_adapter(inputs: Inputs, name: str, kept: float) -> None:
    weights(inputs).unlink()
    path = save_adapter(inputs.llama, adapter_tensors(LLAMA_ROWS), name=name) / name
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    error = inputs.refused(FormatError, inputs.llama)
    assert error.facts["file"] == str(path)
    assert f"{path.stat().st_size:,} bytes" in error.facts["found"]


def test_git_lfs_pointer(inputs: Inputs) -> None:
    weights(inputs).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    error = inputs.refused(FormatError, inputs.llama)
    assert error.facts["file"] == str(weights(inputs))
    assert "git lfs pull" in error.facts["remedy"]


def test_adapter_that_runs_code_does_not_run(inputs: Inputs) -> None:
    trap = inputs.folder / "it-ran"
    torch.save({A: Opens(trap)}, weights(inputs))
    assert "run code" in inputs.refused(FormatError, inputs.llama).sentence
    assert not trap.exists()


def test_config_of_another_model_beside_the_adapter(inputs: Inputs) -> None:
    write_json(inputs.llama / "config.json", base_config(num_hidden_layers=40))
    error = inputs.refused(LayoutError, inputs.llama)
    assert error.facts["file"] == str(inputs.llama / "config.json")
    assert error.facts["found"] == "num_hidden_layers 40"


def test_name_that_does_not_exist_shows_what_is_there(inputs: Inputs) -> None:
    error = inputs.refused(UsageError, inputs.llama, inputs.folder / "chinese-alpca")
    assert "the adapter does not exist" in error.sentence
    assert "chinese-alpaca" in error.facts["remedy"]


def test_field_of_a_later_release_is_listed_and_does_not_hinder(inputs: Inputs) -> None:
    from merge import merge_lora

    save_adapter(inputs.llama, adapter_tensors(LLAMA_ROWS), of_next_year=None)
    report = merge_lora(inputs.base, inputs.llama, inputs.out, dry_run=True)
    assert "of_next_year" in report.summary()


def test_adapter_that_changes_nothing_is_said_to(inputs: Inputs) -> None:
    from merge import merge_lora

    tensors = {
        key: torch.zeros_like(tensor) if "lora_B" in key else tensor
        for key, tensor in adapter_tensors().items()
    }
    shutil.rmtree(inputs.llama)
    save_adapter(inputs.llama, tensors)
    report = merge_lora(inputs.base, inputs.llama, inputs.out)
    assert "changes nothing" in report.summary()
