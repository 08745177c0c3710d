"""Values in configurations that are of another kind than what stands there: refused by key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from merge import convert_checkpoint
from merge.commands.convert_checkpoint import main
from merge.errors import LayoutError, UsageError
from merge.layouts.config import build_merged_config
from tests.kit.files import tree, write_json
from tests.kit.models import base_config, base_tensors, random_tensor, save_adapter, save_base

pytest.importorskip("gguf", reason="needs the package gguf")

OUTPUT_TYPES = ("gguf", "huggingface", "pth")
LENGTHS = ["abc", [1], -5, 0, 1 << 40, 2048.0, "2048", True]
VALUES = [
    *(("max_position_embeddings", value) for value in LENGTHS),
    *(("rms_norm_eps", value) for value in (None, "1e-6", 0, -1e-6, True, [1e-6])),
    *(("rope_theta", value) for value in ("10000", -1.0, True)),
    *(("rope_scaling", value) for value in ("linear", [1], 2.0)),
    ("tie_word_embeddings", "false"),
]
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS: list[tuple[dict[str, Any], str]] = [
    *(({"type": "linear", "factor": value}, "factor") for value in (True, -1, 0, "x", [2.0])),
    *((LLAMA_3 | {"factor": value}, "factor") for value in (0, "x")),
    (LLAMA_3 | {"low_freq_factor": "x"}, "low_freq_factor"),
    (LLAMA_3 | {"high_freq_factor": 0}, "high_freq_factor"),
    ({"type": "yarn", "factor": 2.0, "attention_factor": "a"}, "attention_factor"),
    ({"type": "yarn", "factor": 2.0, "beta_slow": []}, "beta_slow"),
    ({"type": "yarn", "factor": 2.0, "extrapolation_factor": "a"}, "extrapolation_factor"),
    *(
        (
            {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": value},
            "original_max_position_embeddings",
        )
        for value in ("64", 64.0, -64)
    ),
    ({"type": ["linear"], "factor": 2.0}, "type"),
    ({"rope_type": 5, "factor": 2.0}, "rope_type"),
]


def refused(base: Path, output_type: str, file: str = "config.json") -> LayoutError:
    output = base.with_name("out")
    before = tree(base.parent)
    with pytest.raises(LayoutError) as caught:
        convert_checkpoint(base, output, output_type=output_type)
    assert tree(base.parent) == before
    assert caught.value.facts["file"] == str(base / file)
    assert caught.value.facts["remedy"]
    return caught.value


@pytest.mark.parametrize("output_type", OUTPUT_TYPES)
@pytest.mark.parametrize(("key", "value"), VALUES)
def test_a_value_of_config_json_is_named(
    tmp_path: Path, key: str, value: object, output_type: str
) -> None:
    error = refused(save_base(tmp_path / "base", **{key: value}), output_type)
    assert error.facts["expected"].startswith(f'"{key}": ')
    assert error.facts["found"] == repr(value)


@pytest.mark.parametrize("output_type", OUTPUT_TYPES)
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(("scaling", "key"), SCALINGS)
def test_a_value_of_the_scaling_is_named(
    tmp_path: Path, scaling: dict[str, Any], key: str, spelling: str, output_type: str
) -> None:
    error = refused(save_base(tmp_path / "base", **{spelling: scaling}), output_type)
    assert error.facts["expected"].startswith(f'"{spelling}": {{"{key}": ')
    assert error.facts["found"] == repr(scaling[key])


@pytest.mark.parametrize("output_type", OUTPUT_TYPES)
@pytest.mark.parametrize(
    ("key", "value"),
    [("top_k", "x"), ("top_k", 1.5), ("top_k", 1 << 40), ("temperature", "hot"), ("min_p", [1])],
)
def test_a_value_of_generation_config_json_is_named(
    tmp_path: Path, key: str, value: object, output_type: str
) -> None:
    base = save_base(tmp_path / "base")
    write_json(base / "generation_config.json", {key: value})
    error = refused(base, output_type, "generation_config.json")
    assert error.facts["expected"].startswith(f'"{key}": ')
    assert error.facts["found"] == repr(value)


@pytest.mark.parametrize("output_type", ["gguf", "huggingface"])
@pytest.mark.parametrize("template", [5, [5], {"default": "x"}, [{"name": 5, "template": "x"}]])
def test_a_chat_template_that_is_none_is_named(
    tmp_path: Path, template: object, output_type: str
) -> None:
    base = save_base(tmp_path / "base")
    write_json(base / "tokenizer_config.json", {"chat_template": template})
    error = refused(base, output_type, "tokenizer_config.json")
    assert error.facts["found"] == repr(template)


@pytest.mark.parametrize(
    ("key", "value"),
    [("unk_token_id", -1), ("sep_token_id", -5), ("text_config", 5), ("text_config", None)],
)
def test_what_llama_cpps_package_cannot_read_is_named(
    tmp_path: Path, key: str, value: object
) -> None:
    error = refused(save_base(tmp_path / "base", **{key: value}), "gguf")
    assert error.facts["expected"].startswith(f'"{key}": ')
    assert error.facts["found"] == repr(value)


def test_null_says_as_little_as_nothing(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("max_position_embeddings", "rope_theta", "rope_scaling", "head_dim"))
    said, unsaid = save_base(tmp_path / "said" / "base", **nothing), save_base(tmp_path / "base")
    write_json(said / "generation_config.json", {"top_k": None, "temperature": None})
    write_json(said / "tokenizer_config.json", {"chat_template": None})
    files = []
    for base in (said, unsaid):
        convert_checkpoint(base, base.parent / "out", output_type="gguf")
        files.append((base.parent / "out" / "ggml-model-f16.gguf").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("head_dim", [3, 5])
@pytest.mark.parametrize("output_type", OUTPUT_TYPES)
def test_heads_that_cannot_be_turned_are_refused(
    tmp_path: Path, head_dim: int, output_type: str
) -> None:
    tensors = base_tensors()
    for name, rows in {"q_proj": 4, "k_proj": 2, "v_proj": 2}.items():
        for layer in range(2):
            weight = random_tensor(rows * head_dim, 16)
            tensors[f"model.layers.{layer}.self_attn.{name}.weight"] = weight
            tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] = random_tensor(
                16, 4 * head_dim
            )
    error = refused(save_base(tmp_path / "base", tensors, head_dim=head_dim), output_type)
    assert error.facts["found"] == str(head_dim)


@pytest.mark.parametrize("output_type", OUTPUT_TYPES)
@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
def test_biases_that_the_weights_do_not_have_are_refused(
    tmp_path: Path, key: str, output_type: str
) -> None:
    error = refused(save_base(tmp_path / "base", **{key: True}), output_type)
    assert error.facts["expected"] == f'"{key}": false'


@pytest.mark.parametrize("output_type", ["gguf", "pth"])
@pytest.mark.parametrize(
    "named",
    [["MixtralForCausalLM"], ["LlamaForSequenceClassification"], "LlamaForCausalLM", [None]],
)
def test_the_class_of_another_model_is_refused(
    tmp_path: Path, named: object, output_type: str
) -> None:
    base = save_base(tmp_path / "base", architectures=named)
    assert refused(base, output_type).facts["found"] == repr(named)
    convert_checkpoint(base, tmp_path / "huggingface")
    written = json.loads((tmp_path / "huggingface" / "config.json").read_text(encoding="utf-8"))
    assert written["architectures"] == named


@pytest.mark.parametrize("output_type", ["gguf", "pth"])
@pytest.mark.parametrize("named", [None, [], ["LlamaForCausalLM"], ["LLaMAForCausalLM"]])
def test_a_llamas_classes_are_not(tmp_path: Path, named: object, output_type: str) -> None:
    base = save_base(tmp_path / "base", architectures=named)
    convert_checkpoint(base, tmp_path / "out", output_type=output_type)
    written = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert {"gguf": ".gguf", "pth": ".pth"}[output_type] in written


@pytest.mark.parametrize("name", ["..", "a/..", "a\0b", "x" * 300, "\udce4"])
def test_a_name_that_no_folder_can_have_is_refused(tmp_path: Path, name: str) -> None:
    base = save_base(tmp_path / "base")
    with pytest.raises(UsageError, match="cannot be the name of a model"):
        convert_checkpoint(base, tmp_path / "out", output_type="gguf", model_name=name)
    convert_checkpoint(base, tmp_path / "out", model_name=name)


def test_an_adapters_configuration_is_held_to_the_same(tmp_path: Path) -> None:
    from merge import merge_lora

    base, adapter = save_base(tmp_path / "base"), save_adapter(tmp_path / "lora")
    write_json(adapter / "config.json", base_config(rope_scaling={"type": "linear", "factor": "x"}))
    with pytest.raises(LayoutError) as caught:
        merge_lora(base, adapter, tmp_path / "out")
    assert caught.value.facts["file"] == str(adapter / "config.json")
    assert caught.value.facts["found"] == "'x'"


def test_the_command_says_it_in_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(tmp_path / "base", rms_norm_eps="1e-6")
    words = ["--input", str(base), "--output", str(tmp_path / "out"), "--output_type", "gguf"]
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"  file:     {base / 'config.json'}",
        '  expected: "rms_norm_eps": a positive number',
        "  found:    '1e-6'",
        "  remedy:   correct this file, or take it from the place where the weights are from",
        "  see docs/troubleshooting.md#files",
    ]


@pytest.mark.parametrize("first", ["linear", "yarn", "default"])
@pytest.mark.parametrize("second", ["linear", "yarn", "dynamic", "default"])
def test_rope_type_counts_where_type_says_another_kind(first: str, second: str) -> None:
    """As in transformers, before our writing of the configuration and after it."""
    from transformers import LlamaConfig

    scaling = {"type": first, "rope_type": second, "factor": 2.0}
    config = base_config(rope_scaling=scaling, max_position_embeddings=64)
    merged = build_merged_config(config, 40, "float16", False)
    wanted = LlamaConfig(**{**config, "rope_scaling": dict(scaling)}).rope_parameters
    found = LlamaConfig(**merged).rope_parameters
    assert found["rope_type"] == wanted["rope_type"] == second
    assert second == "default" or merged["rope_scaling"]["type"] == second
