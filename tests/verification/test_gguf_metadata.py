"""What a GGUF file says of its model, planted wrong, where there is no manifest to vouch for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from merge import convert_checkpoint, merge_lora, verify_merge
from merge.commands.verify_merge import main
from merge.output.preflight import MANIFEST_NAME
from tests.kit.adapters import make_adapter
from tests.kit.llamas import make_base
from tests.kit.rewritten_gguf import rewrite_gguf

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

NAME = "ggml-model-f16.gguf"
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ROWS = 151


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


def test_what_a_merge_says_is_right_and_what_is_not_read_is_told(
    tmp_path: Path, base: Path, lora: Path, merged: Path
) -> None:
    rewrite_gguf(merged, tmp_path / NAME, {})
    found = verify_merge(tmp_path, base_model=base, lora_model=lora)
    assert [str(fault) for fault in found.faults] == []
    metadata, scaling = found.unchecked
    assert "rotary factors, scores and types of tokens" in metadata
    assert '"rope_scaling": {"rope_type": "llama3"' in scaling


# key, another value (None: left out), what is expected, what is found
PLANTED: dict[str, tuple[str, object, str, str]] = {
    "context": ("llama.context_length", 7, '"max_position_embeddings": 64', "7"),
    "eps": ("llama.attention.layer_norm_rms_epsilon", 0.5, '"rms_norm_eps": 1e-06', "0.5"),
    "eps-of-text": ("llama.attention.layer_norm_rms_epsilon", "1e-06", "1e-06", '"1e-06"'),
    "base-of-frequencies": ("llama.rope.freq_base", 77.0, '"rope_theta": 500000', "77.0"),
    "no-base": ("llama.rope.freq_base", None, '"rope_theta": 500000', "10000"),
    "scaling": ("llama.rope.scaling.factor", 2.0, '"rope_scaling": null', '"linear"'),
    "bos": ("tokenizer.ggml.bos_token_id", 2, "bos_token_id 1", "bos_token_id 2"),
    "bos-beyond": ("tokenizer.ggml.bos_token_id", 9999, "bos_token_id 1", "9999"),
    "eos": ("tokenizer.ggml.eos_token_id", 1, "eos_token_id 2", "eos_token_id 1"),
    "no-tokens": ("tokenizer.ggml.tokens", None, "a list of text", "no tokenizer.ggml.tokens"),
    "number-for-tokens": ("tokenizer.ggml.tokens", 5, "a list of text", "tokens 5"),
    "numbers-for-tokens": ("tokenizer.ggml.tokens", [5] * ROWS, "a list of text", "tokens [5,"),
    "other-tokens": ("tokenizer.ggml.tokens", ["a"] * ROWS, "'<unk>' as token 0", "'a'"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_key_that_is_not_the_models_is_named(
    tmp_path: Path, base: Path, lora: Path, merged: Path, fault: str
) -> None:
    key, value, expected, actual = PLANTED[fault]
    rewrite_gguf(merged, tmp_path / NAME, {key: value})
    (found,) = faults(tmp_path, base_model=base, lora_model=lora)
    lines = {line.split(":")[0].strip(): line for line in found.splitlines()}
    assert expected in lines["expected"]
    assert actual in lines["found"]
    assert NAME in lines["file"]


def test_fewer_tokens_than_rows_are_found(
    tmp_path: Path, base: Path, lora: Path, merged: Path
) -> None:
    rewrite_gguf(merged, tmp_path / NAME, {"tokenizer.ggml.tokens": ["a"] * 9})
    found = faults(tmp_path, base_model=base, lora_model=lora)
    assert any("151 tokens" in fault and "found:    9 tokens" in fault for fault in found)


@pytest.mark.parametrize(
    ("scaling", "faulty"),
    [
        ({"type": "linear", "factor": 4.0}, {"llama.rope.scaling.factor": 2.0}),
        ({"type": "linear", "factor": 4}, {"llama.rope.scaling.type": "none"}),
        ({"rope_type": "yarn", "factor": 4.0}, {"llama.rope.scaling.type": "linear"}),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            {"llama.rope.scaling.original_context_length": 64},
        ),
        ({"type": "dynamic", "factor": 4.0}, {"llama.rope.scaling.factor": 4.0}),
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
    rewrite_gguf(tmp_path / NAME, out / NAME, faulty)
    (found,) = faults(out, base_model=model)
    assert '"rope_scaling": ' in found


def test_a_base_without_a_tokenizer_leaves_the_tokens_unchecked(tmp_path: Path) -> None:
    model = make_base(tmp_path / "model")
    convert_checkpoint(model, tmp_path / "out", output_type="gguf", outtype="f16")
    (tmp_path / "out" / MANIFEST_NAME).unlink()
    (model / "tokenizer.model").unlink()
    assert not faults(tmp_path / "out", base_model=model)


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
    assert f'expected: "max_position_embeddings": 64, as in {base / "config.json"}' in found
    assert 'found:    "max_position_embeddings": 4096' in found


def test_the_command_tells_a_number_for_tokens_in_one_message(
    tmp_path: Path, base: Path, lora: Path, merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite_gguf(merged, tmp_path / NAME, {"tokenizer.ggml.tokens": 5})
    words = ["--output_dir", tmp_path, "--base_model", base, "--lora_model", lora]
    assert main([*map(str, words), "--quiet"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("FAILED: the GGUF file lists no tokens")
    assert "Traceback" not in said
