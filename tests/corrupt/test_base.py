"""Base models that are incomplete, damaged, quantised, or none at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from merge.errors import AdapterError, FormatError, LayoutError, NumberError, UsageError
from tests.kit.containers import Opens
from tests.kit.files import Tensors, save_tensors, write_json
from tests.kit.inputs import Inputs
from tests.kit.models import BASE_ROWS, HIDDEN, Q_PROJ, base_config, base_tensors, save_base

WEIGHT = f"{Q_PROJ}.weight"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 9976578928\n"


def sharded(folder: Path, count: int, end: str, index: bool, first: int = 1) -> list[Path]:
    """Save the base in ``count`` files, with an index or without."""
    (folder / "pytorch_model.bin").unlink()
    stem = {"bin": "pytorch_model", "safetensors": "model"}[end]
    names = [f"{stem}-{n:05}-of-{count:05}.{end}" for n in range(first, first + count)]
    tensors = list(base_tensors().items())
    weight_map: dict[str, str] = {}
    for number, name in enumerate(names):
        part = dict(tensors[number::count])
        save_tensors(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    if index:
        write_json(folder / f"{stem}.{end}.index.json", {"weight_map": weight_map})
    return [folder / name for name in names]


shards = pytest.mark.parametrize("end", ["bin", "safetensors"])
indexed = pytest.mark.parametrize("index", [True, False], ids=["with index", "without index"])


@shards
@indexed
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_missing_shard_is_named(inputs: Inputs, end: str, index: bool, missing: int) -> None:
    files = sharded(inputs.base, 3, end, index)
    files[missing].unlink()
    error = inputs.refused(LayoutError)
    assert error.facts["file"] == str(files[missing])
    assert error.facts["expected"] == "3 weight files"
    assert files[missing].name in error.facts["found"]


@shards
@indexed
@pytest.mark.parametrize("first", [0, 1])
def test_whole_shards_are_found_whatever_number_they_begin_with(
    inputs: Inputs, end: str, index: bool, first: int
) -> None:
    inputs.merge(output_dir=inputs.folder / "of one file")
    sharded(inputs.base, 3, end, index, first)
    inputs.merge()
    name = "consolidated.00.pth"
    assert (inputs.out / name).read_bytes() == (inputs.folder / "of one file" / name).read_bytes()


@shards
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_truncated_weights_are_refused_with_their_size(
    inputs: Inputs, end: str, kept: float
) -> None:
    path = sharded(inputs.base, 2, end, index=True)[1]
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    error = inputs.refused(FormatError)
    assert error.facts["file"] == str(path)
    assert f"{path.stat().st_size:,} bytes" in error.facts["found"]
    assert "fetch" in error.facts["remedy"]


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "empty"), (LFS, "Git LFS"), (b"<html>", "not a weight file")]
)
def test_something_else_in_place_of_weights(inputs: Inputs, content: bytes, word: str) -> None:
    path = inputs.base / "pytorch_model.bin"
    path.write_bytes(content)
    error = inputs.refused(FormatError)
    assert word in error.sentence
    assert error.facts["file"] == str(path)


def test_weights_that_run_code_do_not_run(inputs: Inputs) -> None:
    trap = inputs.folder / "it-ran"
    torch.save({WEIGHT: Opens(trap)}, inputs.base / "pytorch_model.bin")
    error = inputs.refused(FormatError)
    assert "run code" in error.sentence
    assert not trap.exists()


def test_no_weights_at_all(inputs: Inputs) -> None:
    (inputs.base / "pytorch_model.bin").unlink()
    error = inputs.refused(LayoutError)
    assert "no weights" in error.sentence
    assert error.facts["file"] == str(inputs.base)
    assert "config.json" in error.facts["found"]


def test_training_leftovers_are_no_weights(inputs: Inputs) -> None:
    (inputs.base / "pytorch_model.bin").rename(inputs.base / "optimizer.bin")
    (inputs.base / "training_args.bin").write_bytes(b"anything")
    assert "no weights" in inputs.refused(LayoutError).sentence


def test_index_of_another_download(inputs: Inputs) -> None:
    write_json(
        inputs.base / "pytorch_model.bin.index.json",
        {"weight_map": dict.fromkeys([*base_tensors(), "model.extra"], "pytorch_model.bin")},
    )
    error = inputs.refused(LayoutError)
    assert error.facts["tensor"] == "model.extra"
    assert error.facts["file"] == str(inputs.base / "pytorch_model.bin")


def test_two_files_with_the_same_tensor(inputs: Inputs) -> None:
    save_tensors(inputs.base / "pytorch_model_old.bin", base_tensors())
    error = inputs.refused(LayoutError)
    assert "two weight files hold the same tensor" in error.sentence
    assert "pytorch_model.bin" in error.facts["found"]


def without(name: str) -> Tensors:
    tensors = base_tensors()
    del tensors[name]
    return tensors


@pytest.mark.parametrize("name", [WEIGHT, "model.norm.weight", "lm_head.weight"])
def test_missing_tensor_is_named(inputs: Inputs, name: str) -> None:
    save_base(inputs.base, without(name))
    error = inputs.refused(LayoutError)
    assert error.facts["tensor"] == name
    assert error.facts["expected"].startswith(f"{len(base_tensors())} tensors")
    assert error.facts["found"].startswith("1 of them missing")


def test_tensor_that_no_llama_has_is_named(inputs: Inputs) -> None:
    save_base(inputs.base, base_tensors() | {f"{Q_PROJ}.bias": torch.zeros(HIDDEN)})
    error = inputs.refused(LayoutError)
    assert f"{Q_PROJ}.bias" in error.facts["tensor"]
    assert "pytorch_model.bin" in error.facts["tensor"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (WEIGHT, torch.ones(HIDDEN, HIDDEN + 4)),
        (WEIGHT, torch.ones(HIDDEN * HIDDEN)),
        (WEIGHT, torch.tensor(1.0)),
        ("model.embed_tokens.weight", torch.tensor(1.0)),
        ("model.embed_tokens.weight", torch.ones(BASE_ROWS)),
        ("lm_head.weight", torch.ones(BASE_ROWS, HIDDEN + 1)),
    ],
    ids=["wider", "flat", "scalar", "scalar embedding", "flat embedding", "wider head"],
)
def test_tensor_of_another_shape_is_named(inputs: Inputs, name: str, value: torch.Tensor) -> None:
    save_base(inputs.base, base_tensors() | {name: value})
    error = inputs.refused(LayoutError)
    assert "another shape" in error.sentence
    assert error.facts["tensor"] == f"pytorch_model.bin: {name}"
    assert error.facts["found"] == str(tuple(value.shape))


def gptq(tensors: Tensors) -> None:
    del tensors[WEIGHT]
    tensors[f"{Q_PROJ}.qweight"] = torch.zeros(HIDDEN // 8, HIDDEN, dtype=torch.int32)
    tensors[f"{Q_PROJ}.scales"] = torch.zeros(1, HIDDEN)


def bitsandbytes_8bit(tensors: Tensors) -> None:
    tensors[WEIGHT] = torch.zeros(HIDDEN, HIDDEN, dtype=torch.int8)
    tensors[f"{Q_PROJ}.SCB"] = torch.zeros(HIDDEN)


def bitsandbytes_4bit(tensors: Tensors) -> None:
    tensors[WEIGHT] = torch.zeros(HIDDEN * HIDDEN // 2, 1, dtype=torch.uint8)


def int8(tensors: Tensors) -> None:
    tensors[WEIGHT] = torch.zeros(HIDDEN, HIDDEN, dtype=torch.int8)


def fp8(tensors: Tensors) -> None:
    tensors[WEIGHT] = tensors[WEIGHT].to(torch.float8_e4m3fn)
    tensors[f"{Q_PROJ}.weight_scale"] = torch.ones(1)


def compressed_tensors(tensors: Tensors) -> None:
    del tensors[WEIGHT]
    tensors[f"{Q_PROJ}.weight_packed"] = torch.zeros(HIDDEN, 2, dtype=torch.int32)


@pytest.mark.parametrize(
    "quantise", [gptq, bitsandbytes_8bit, bitsandbytes_4bit, int8, fp8, compressed_tensors]
)
def test_quantised_base_is_refused_as_such(
    inputs: Inputs, quantise: Callable[[Tensors], None]
) -> None:
    tensors = base_tensors()
    quantise(tensors)
    save_base(inputs.base, tensors)
    error = inputs.refused(LayoutError)
    assert "quantized" in error.sentence
    assert Q_PROJ in error.facts["tensor"]
    assert "float16" in error.facts["expected"]


def test_no_config_json(inputs: Inputs) -> None:
    (inputs.base / "config.json").unlink()
    error = inputs.refused(LayoutError)
    assert error.facts["file"] == str(inputs.base / "config.json")
    assert error.facts["found"] == "no config.json"


def test_meta_folder_as_base(inputs: Inputs) -> None:
    (inputs.base / "config.json").unlink()
    write_json(inputs.base / "params.json", {"dim": HIDDEN})
    assert "Meta" in inputs.refused(LayoutError).facts["found"]


def test_base_and_adapter_swapped(inputs: Inputs) -> None:
    error = inputs.refused(AdapterError, inputs.base, base_model=inputs.llama)
    assert error.facts["file"] == str(inputs.base / "adapter_config.json")
    assert "a whole model" in error.facts["found"]
    error = inputs.refused(LayoutError, inputs.alpaca, base_model=inputs.llama)
    assert "an adapter" in error.facts["found"]
    assert "--lora_model" in error.facts["remedy"]


@pytest.mark.parametrize("text", ["", '{"hidden_size": ', "[1, 2]", "\x00\x01", "null"])
def test_config_json_that_is_none(inputs: Inputs, text: str) -> None:
    (inputs.base / "config.json").write_text(text, encoding="utf-8")
    error = inputs.refused(FormatError)
    assert error.facts["file"] == str(inputs.base / "config.json")
    assert error.facts["found"]


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "gpt2", None])
def test_another_architecture_is_named(inputs: Inputs, model_type: str | None) -> None:
    write_json(inputs.base / "config.json", base_config(model_type=model_type))
    error = inputs.refused(LayoutError)
    assert error.facts["found"] == repr(model_type)
    assert "llama" in error.facts["expected"]


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
)
@pytest.mark.parametrize("value", [None, 0, -1, "32", 2.5, True])
def test_number_that_is_missing_or_none(inputs: Inputs, key: str, value: object) -> None:
    write_json(inputs.base / "config.json", base_config(**{key: value}))
    error = inputs.refused(LayoutError)
    assert f'"{key}"' in error.facts["expected"]
    assert error.facts["found"] == repr(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 3),
        ("num_hidden_layers", 1),
        ("intermediate_size", 32),
        ("num_key_value_heads", 4),
    ],
)
def test_config_of_another_size(inputs: Inputs, key: str, value: int) -> None:
    write_json(inputs.base / "config.json", base_config(**{key: value}))
    error = inputs.refused(LayoutError)
    assert "config.json" in str(error)
    assert "model.layers." in error.facts["tensor"]


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
    ],
    ids=["linear", "llama3", "transformers 5"],
)
def test_scaled_rope_cannot_be_said_in_params_json(
    inputs: Inputs, fields: dict[str, object]
) -> None:
    write_json(inputs.base / "config.json", base_config(**fields))
    error = inputs.refused(LayoutError)
    assert json.loads(error.facts["found"])["factor"] in (2.0, 8.0)
    assert "--output_type huggingface" in error.facts["remedy"]
    inputs.merge(output_type="huggingface")
    config = json.loads((inputs.out / "config.json").read_text(encoding="utf-8"))
    assert config["rope_scaling"]["factor"] in (2.0, 8.0)


def test_quantisation_that_the_weights_do_not_have_is_not_taken_along(inputs: Inputs) -> None:
    """A configuration saved beside a QLoRA speaks of weights that are not these."""
    save_base(inputs.base, quantization_config={"quant_method": "bitsandbytes"})
    inputs.merge(output_type="huggingface")
    config = json.loads((inputs.out / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config


@pytest.mark.parametrize("value", [1e5, -1e5, float("inf"), float("nan")])
def test_value_beyond_float16_is_refused_with_its_place(inputs: Inputs, value: float) -> None:
    tensors = base_tensors(dtype=torch.bfloat16)
    tensors["model.layers.1.mlp.up_proj.weight"][7, 3] = value
    save_base(inputs.base, tensors, torch_dtype="bfloat16")
    error = inputs.refused(NumberError)
    assert "model.layers.1.mlp.up_proj.weight, row 7" in error.facts["tensor"]
    assert "65504" in error.facts["expected"]
    assert float(error.facts["found"]) == pytest.approx(value, rel=0.01, nan_ok=True)
    assert "bfloat16" in error.facts["remedy"]
    if value in (1e5, -1e5):
        inputs.merge(dtype="auto")


def test_tied_model_whose_two_sides_differ(inputs: Inputs) -> None:
    save_base(inputs.base, tie_word_embeddings=True)
    error = inputs.refused(LayoutError)
    assert "ties" in error.sentence
    assert "lm_head.weight" in error.facts["tensor"]


def test_name_that_does_not_exist_shows_what_is_there(inputs: Inputs) -> None:
    error = inputs.refused(UsageError, base_model=inputs.folder / "llama-7b-fh")
    assert error.facts["file"] == str(inputs.folder / "llama-7b-fh")
    assert "llama-7b-hf" in error.facts["remedy"]


def test_file_in_place_of_a_folder(inputs: Inputs) -> None:
    error = inputs.refused(UsageError, base_model=inputs.base / "pytorch_model.bin")
    assert str(inputs.base) in error.facts["remedy"]
