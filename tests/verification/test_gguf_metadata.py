"""What a GGUF file says of its model, planted wrong, where there is no manifest to vouch for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from merge import convert_checkpoint, merge_lora, verify_merge
from merge.commands.verify_merge import main
from merge.output.preflight import MANIFEST_NAME
from merge.verification.rotary_factors import rotary_factors
from tests.tiny import make_adapter, make_base, write_tokenizer

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

NAME = "ggml-model-f16.gguf"
FACTORS = "rope_freqs.weight"
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ROWS = 151


def value_type(value: object) -> Any:
    """How the package stores a value: as llama.cpp's converter does its like."""
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
    return gguf.GGUFValueType[kinds[type(value)]]


def rewritten(
    source: Path,
    out: Path,
    values: Mapping[str, object],
    tensors: Mapping[str, np.ndarray | None] | None = None,
) -> Path:
    """Copy a GGUF file by the package, with other values and tensors; None leaves one out."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, "llama")
    kept = {k: f for k, f in reader.fields.items() if not k.startswith(("GGUF.", "general.arch"))}
    for key, field in kept.items():
        if key not in values:
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for key, value in values.items():
        if value is not None:
            inner = value_type(value[0]) if isinstance(value, list) else None
            writer.add_key_value(key, value, value_type(value), inner)
    others = tensors or {}
    for tensor in reader.tensors:
        if tensor.name not in others:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, data in others.items():
        if data is not None:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_base(tmp_path_factory.mktemp("base"), num_key_value_heads=4)
    return configured(folder, rope_scaling=SCALING, rope_theta=500000.0)


def configured(folder: Path, **fields: object) -> Path:
    """Set fields of a ``config.json`` in the spelling before transformers 5."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | fields
    config.pop("rope_parameters", None)
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("lora"), base, rows=ROWS)


@pytest.fixture(scope="module")
def merged(base: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("merged") / "out"
    merge_lora(base, lora, output, output_type="gguf", outtype="f16")
    return output / NAME


def faults(folder: Path, **inputs: Any) -> list[str]:
    return [str(fault) for fault in verify_merge(folder, **inputs).faults]


def test_what_a_merge_says_is_right_and_what_no_input_says_is_told(
    tmp_path: Path, base: Path, lora: Path, merged: Path
) -> None:
    rewritten(merged, tmp_path / NAME, {})
    found = verify_merge(tmp_path, base_model=base, lora_model=lora)
    assert [str(fault) for fault in found.faults] == []
    assert any("keys against config.json and tokenizer.model" in line for line in found.checked)
    (told,) = found.unchecked
    keys = set(told.partition(": ")[2].split(", "))
    said = set(gguf.GGUFReader(merged).fields)
    assert keys <= said
    assert "general.name" in keys
    assert not [key for key in keys if key.startswith("llama.")]
    assert [key for key in keys if key.startswith("tokenizer.")] == ["tokenizer.ggml.pre"]


# key, another value (None: left out), what is expected, what is found
PLANTED: dict[str, tuple[str, object, str, str]] = {
    "context": ("llama.context_length", 7, "llama.context_length 64", "llama.context_length 7"),
    "no-context": ("llama.context_length", None, "llama.context_length 64", "no llama.context"),
    "eps": ("llama.attention.layer_norm_rms_epsilon", 0.5, "epsilon 1e-06", "epsilon 0.5"),
    "eps-of-text": ("llama.attention.layer_norm_rms_epsilon", "1e-06", "1e-06", "'1e-06'"),
    "no-eps": ("llama.attention.layer_norm_rms_epsilon", None, "1e-06", "no llama.attention"),
    "base-of-frequencies": ("llama.rope.freq_base", 77.0, "500000", "llama.rope.freq_base 77"),
    "no-base": ("llama.rope.freq_base", None, "500000", "which llama.cpp takes for 10000"),
    "rotary-width": ("llama.rope.dimension_count", 2, "count 8", "count 2"),
    "key-length": ("llama.attention.value_length", 4, "length 8", "length 4"),
    "vocabulary": ("llama.vocab_size", 99, "vocab_size 151", "vocab_size 99"),
    "scaling": ("llama.rope.scaling.type", "linear", "no llama.rope.scaling.type", "'linear'"),
    "factor": ("llama.rope.scaling.factor", 4.0, "no llama.rope.scaling.factor", "factor 4"),
    "old-factor": ("llama.rope.scale_linear", 4.0, "no llama.rope.scale_linear", "linear 4"),
    "bos": ("tokenizer.ggml.bos_token_id", 2, "bos_token_id 1", "bos_token_id 2"),
    "bos-beyond": ("tokenizer.ggml.bos_token_id", 9999, "bos_token_id 1", "9999"),
    "bos-list": ("tokenizer.ggml.bos_token_id", [1], "bos_token_id 1", "[1]"),
    "eos": ("tokenizer.ggml.eos_token_id", 1, "eos_token_id 2", "eos_token_id 1"),
    "unknown": ("tokenizer.ggml.unknown_token_id", 3, "unknown_token_id 0", "token_id 3"),
    "other-id-beyond": ("tokenizer.ggml.eot_token_id", 151, "from 0 to 150", "token_id 151"),
    "no-bos-added": ("tokenizer.ggml.add_bos_token", False, "add_bos_token True", "False"),
    "eos-added": ("tokenizer.ggml.add_eos_token", True, "add_eos_token False", "True"),
    "no-space": ("tokenizer.ggml.add_space_prefix", False, "space_prefix True", "False"),
    "kind-of-tokenizer": ("tokenizer.ggml.model", "gpt2", "model 'llama'", "'gpt2'"),
    "no-tokens": ("tokenizer.ggml.tokens", None, "a list of text", "no tokenizer.ggml.tokens"),
    "number-for-tokens": ("tokenizer.ggml.tokens", 5, "a list of text", "tokens 5"),
    "numbers-for-tokens": ("tokenizer.ggml.tokens", [5] * ROWS, "a list of text", "tokens [5,"),
    "fewer-tokens": ("tokenizer.ggml.tokens", ["a"] * 9, "151 tokens", "found:    9 tokens"),
    "other-tokens": ("tokenizer.ggml.tokens", ["a"] * ROWS, "token 0: '<unk>'", "151 such"),
    "no-scores": ("tokenizer.ggml.scores", None, "151 values", "no tokenizer.ggml.scores"),
    "scores-of-0": ("tokenizer.ggml.scores", [0.0] * ROWS, "token 4 ('piece1'): -1.0", "147 such"),
    "whole-scores": ("tokenizer.ggml.scores", [0] * ROWS, "151 values (float)", "a list of 151"),
    "fewer-scores": ("tokenizer.ggml.scores", [0.0] * 9, "151 values", "a list of 9"),
    "all-control": ("tokenizer.ggml.token_type", [3] * ROWS, "token 0 ('<unk>'): 2", "149 such"),
    "no-types": ("tokenizer.ggml.token_type", None, "151 values", "no tokenizer.ggml.token_type"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_key_that_is_not_the_models_is_named(
    tmp_path: Path, base: Path, lora: Path, merged: Path, fault: str
) -> None:
    key, value, expected, actual = PLANTED[fault]
    rewritten(merged, tmp_path / NAME, {key: value})
    (found,) = faults(tmp_path, base_model=base, lora_model=lora)
    lines = {line.split(":")[0].strip(): line for line in found.splitlines()}
    assert expected in lines["expected"]
    assert actual in lines["found"]
    assert NAME in lines["file"]
    assert key in found or "tokenizer and rows do not belong together" in found


@pytest.mark.parametrize(
    ("factors", "actual"),
    [
        (None, "no such tensor"),
        (np.full(4, 77.0, np.float32), "77; 4 of 4 are off"),
        (np.ones(4, np.float32), "1; "),
        (np.ones(3, np.float32), "shape (3,)"),
    ],
    ids=["missing", "other", "ones", "fewer"],
)
def test_other_factors_of_the_frequencies_are_found(
    tmp_path: Path, base: Path, lora: Path, merged: Path, factors: np.ndarray | None, actual: str
) -> None:
    rewritten(merged, tmp_path / NAME, {}, {FACTORS: factors})
    (found,) = faults(tmp_path, base_model=base, lora_model=lora)
    assert FACTORS in found
    assert f"found:    {actual}" in found


def test_factors_in_a_model_that_is_not_scaled_so_may_only_be_ones(tmp_path: Path) -> None:
    model = make_base(tmp_path / "model")
    convert_checkpoint(model, tmp_path / "out", output_type="gguf", outtype="f16")
    for value, count in ((1.0, 0), (2.0, 1)):
        folder = tmp_path / str(value)
        folder.mkdir()
        factors = {FACTORS: np.full(4, value, np.float32)}
        rewritten(tmp_path / "out" / NAME, folder / NAME, {}, factors)
        assert len(faults(folder, base_model=model)) == count


@pytest.mark.parametrize("head_dim", [8, 64, 128])
def test_factors_are_those_that_transformers_divides_by(head_dim: int) -> None:
    scaling = SCALING | {"original_max_position_embeddings": 8192}
    sizes = {"hidden_size": 8 * head_dim, "num_attention_heads": 8, "head_dim": head_dim}
    rotary = {"rope_theta": 500000.0, **scaling}
    config = LlamaConfig(**sizes, max_position_embeddings=131072, rope_parameters=rotary)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 500000.0 ** (torch.arange(0, head_dim, 2).double() / head_dim)
    found = rotary_factors({**sizes, "rope_parameters": rotary})
    assert found is not None
    assert torch.allclose(torch.tensor(found).double(), plain / scaled.double(), rtol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "faulty"),
    [
        ({"type": "linear", "factor": 4.0}, {"llama.rope.scaling.factor": 2.0}),
        ({"type": "linear", "factor": 4}, {"llama.rope.scaling.type": None}),
        ({"rope_type": "yarn", "factor": 4.0}, {"llama.rope.scaling.type": "linear"}),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            {"llama.rope.scaling.original_context_length": 64},
        ),
        (
            {"type": "yarn", "factor": 4.0, "beta_fast": 16, "attention_factor": 0.5},
            {"llama.rope.scaling.yarn_beta_fast": 32.0},
        ),
        ({"type": "yarn", "factor": 4.0}, {"llama.rope.scaling.yarn_attn_factor": 2.0}),
        ({"type": "dynamic", "factor": 4.0}, {"llama.rope.scaling.type": "linear"}),
    ],
)
def test_scaling_is_held_against_the_configuration(
    tmp_path: Path, scaling: dict[str, object], faulty: dict[str, object]
) -> None:
    model = configured(make_base(tmp_path / "model"), rope_scaling=scaling)
    out = tmp_path / "out"
    convert_checkpoint(model, out, output_type="gguf", outtype="f16")
    (out / MANIFEST_NAME).unlink()
    assert faults(out, base_model=model) == []
    (out / NAME).rename(tmp_path / NAME)
    rewritten(tmp_path / NAME, out / NAME, faulty)
    (found,) = faults(out, base_model=model)
    assert next(iter(faulty)) in found


def _padded(folder: Path) -> Path:
    """A base with three rows more than its tokenizer has tokens."""
    make_base(folder, vocab_size=104)
    write_tokenizer(folder, 101)
    return folder


def _lists(texts: list[str], kinds: list[int]) -> dict[str, object]:
    scores = [-float(max(0, n - 3)) for n in range(101)] + [-1000.0] * len(texts)
    special = ["<unk>", "<s>", "</s>"]
    return {
        "tokenizer.ggml.tokens": [*special, *(f"piece{n}" for n in range(98)), *texts],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * 98, *kinds],
        "llama.vocab_size": 101 + len(texts),
    }


def test_rows_of_padding_have_tokens_that_say_so(tmp_path: Path) -> None:
    model = _padded(tmp_path / "model")
    whole = tmp_path / "whole"
    whole.mkdir()
    write_tokenizer(whole, 104)
    convert_checkpoint(model, tmp_path / "gguf", output_type="gguf", outtype="f16", tokenizer=whole)
    for name, lists in {
        "right": _lists(["[PAD1]", "[PAD2]", "[PAD3]"], [5] * 3),
        "strangers": _lists(["[PAD1]", "hello", "[PAD3]"], [5, 1, 1]),
        "fewer": _lists([], []),
    }.items():
        out = tmp_path / name
        out.mkdir()
        rewritten(tmp_path / "gguf" / NAME, out / NAME, lists)
        found = verify_merge(out, base_model=model)
        said = [str(fault) for fault in found.faults]
        strangers = [line for line in found.unchecked if "tokens from 102 on" in line]
        assert strangers[:1] == (
            [] if name != "strangers" else [f"2 tokens from 102 on: not in {model}"]
        )
        assert bool(said) == (name == "fewer")
        if name == "fewer":
            assert any("104 tokens, one for each row" in fault for fault in said)


def test_a_base_without_a_tokenizer_leaves_the_tokens_unchecked(tmp_path: Path) -> None:
    model = make_base(tmp_path / "model")
    convert_checkpoint(model, tmp_path / "out", output_type="gguf", outtype="f16")
    (tmp_path / "out" / MANIFEST_NAME).unlink()
    (model / "tokenizer.model").unlink()
    found = verify_merge(tmp_path / "out", base_model=model)
    assert not found.faults
    assert any("tokens, their scores, types and special ids" in line for line in found.unchecked)


def test_the_last_adapters_configuration_counts_and_is_named(
    tmp_path: Path, base: Path, lora: Path
) -> None:
    long = Path(shutil.copytree(lora, tmp_path / "long"))
    (long / "config.json").write_bytes((base / "config.json").read_bytes())
    configured(long, max_position_embeddings=4096)
    merge_lora(base, long, tmp_path / "out", output_type="gguf", outtype="f16")
    (tmp_path / "out" / MANIFEST_NAME).unlink()
    assert faults(tmp_path / "out", base_model=base, lora_model=long) == []
    (found,) = faults(tmp_path / "out", base_model=base, lora_model=lora)
    assert "expected: llama.context_length 64, by " + str(base / "config.json") in found
    assert "found:    llama.context_length 4096" in found


def test_the_command_tells_a_number_for_tokens_in_one_message(
    tmp_path: Path, base: Path, lora: Path, merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewritten(merged, tmp_path / NAME, {"tokenizer.ggml.tokens": 5})
    words = ["--output_dir", tmp_path, "--base_model", base, "--lora_model", lora]
    assert main([*map(str, words), "--quiet"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("WRONG: the GGUF file lists no tokens")
    assert "Traceback" not in said
