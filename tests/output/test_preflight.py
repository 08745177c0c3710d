"""Output folders that may not be written to, and what stays when a run fails."""

from __future__ import annotations

import json
import os
import shutil
import struct
from math import prod
from pathlib import Path

import pytest
import torch

from merge.errors import FormatError, LayoutError, NumberError, OutputError, UsageError
from tests.formats.torch.test_zip import recompress
from tests.kit.files import tree, write_json
from tests.kit.inputs import Inputs
from tests.kit.models import (
    HIDDEN,
    LAYERS,
    adapter_tensors,
    base_config,
    base_tensors,
    save_adapter,
    save_base,
)


@pytest.mark.parametrize(
    "name",
    [
        "consolidated.00.pth",
        "pytorch_model.bin",
        "model-00001-of-00002.safetensors",
        "model.gguf",
        "config.json",
        "params.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_with_a_model_in_it_is_left_alone(
    inputs: Inputs, name: str, overwrite: bool
) -> None:
    inputs.out.mkdir()
    (inputs.out / name).write_bytes(b"somebody's work")
    error = inputs.refused(OutputError, overwrite=overwrite)
    assert error.facts["file"] == str(inputs.out)
    assert name in error.facts["found"]
    assert "--output_dir" in error.facts["remedy"]


def test_result_of_an_earlier_run_needs_overwrite(inputs: Inputs) -> None:
    inputs.merge()
    error = inputs.refused(OutputError)
    assert "consolidated.00.pth" in error.facts["found"]
    assert "--overwrite" in error.facts["remedy"]
    inputs.merge(inputs.llama, overwrite=True)


def test_overwriting_leaves_no_file_of_the_earlier_result(inputs: Inputs) -> None:
    inputs.merge(output_type="huggingface", max_shard_size="5KB", safe_serialization=True)
    inputs.merge(output_type="pth", overwrite=True)
    names = {path.name for path in inputs.out.iterdir()}
    assert names == {"consolidated.00.pth", "params.json", "tokenizer.model", "merge_manifest.json"}


def test_overwriting_spares_files_that_no_merge_wrote(inputs: Inputs) -> None:
    inputs.merge()
    (inputs.out / "README.md").write_text("notes", encoding="utf-8")
    inputs.merge(inputs.llama, overwrite=True)
    assert (inputs.out / "README.md").read_text(encoding="utf-8") == "notes"
    (inputs.out / "ggml-model.gguf").write_bytes(b"made from it since")
    assert "ggml-model.gguf" in inputs.refused(OutputError, overwrite=True).facts["found"]


def test_overwriting_removes_nothing_outside_the_folder(inputs: Inputs) -> None:
    inputs.merge()
    (inputs.folder / "precious.json").write_text("{}", encoding="utf-8")
    path = inputs.out / "merge_manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["files"] |= {"../precious.json": {}, str(inputs.folder / "precious.json"): {}}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    inputs.merge(overwrite=True)
    assert (inputs.folder / "precious.json").is_file()


def test_failed_run_with_overwrite_leaves_the_earlier_result(inputs: Inputs) -> None:
    inputs.merge()
    tensors = base_tensors(dtype=torch.bfloat16)
    tensors["model.norm.weight"][2] = 1e6
    save_base(inputs.base, tensors)
    inputs.refused(NumberError, overwrite=True)


def test_other_files_and_folders_do_not_hinder(inputs: Inputs) -> None:
    for folder in ("tokenizer_tools", "old.bin"):
        (inputs.out / folder).mkdir(parents=True)
    (inputs.out / "notes.txt").write_text("mine", encoding="utf-8")
    inputs.merge()
    assert (inputs.out / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("role", ["base", "llama", "alpaca"])
def test_output_folder_that_is_an_input(inputs: Inputs, role: str) -> None:
    folder: Path = getattr(inputs, role)
    for overwrite in (False, True):
        error = inputs.refused(OutputError, output_dir=folder, overwrite=overwrite)
        assert "one of the inputs" in error.sentence
        assert error.facts["file"] == str(folder)


def test_output_folder_that_is_an_input_by_another_path(inputs: Inputs) -> None:
    link = inputs.folder / "link"
    try:
        link.symlink_to(inputs.base, target_is_directory=True)
    except OSError:
        pytest.skip("this system lets only some users make symbolic links")
    assert "inputs" in inputs.refused(OutputError, output_dir=link).sentence


@pytest.mark.parametrize("below", ["", "deep/down"])
def test_output_folder_that_is_a_file(inputs: Inputs, below: str) -> None:
    inputs.out.write_text("a file", encoding="utf-8")
    error = inputs.refused(OutputError, output_dir=inputs.out / below)
    assert str(inputs.out) in error.facts["found"]


def test_output_folder_without_permission(inputs: Inputs) -> None:
    locked = inputs.folder / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write anywhere")
    error = inputs.refused(OutputError, output_dir=locked / "merged")
    assert str(locked) in error.facts["found"]


def test_folders_on_the_way_are_made_and_go_again_when_the_run_fails(inputs: Inputs) -> None:
    deep = inputs.folder / "a" / "b" / "c"
    tensors = base_tensors(dtype=torch.bfloat16)
    tensors["lm_head.weight"][0] = float("inf")
    save_base(inputs.base, tensors)
    only_q = save_adapter(inputs.folder / "only-q")
    inputs.refused(NumberError, only_q, output_dir=deep)
    save_base(inputs.base)
    inputs.merge(only_q, output_dir=deep)
    assert (deep / "consolidated.00.pth").is_file()


def sparse_base(folder: Path, nbytes: int) -> None:
    """A model of that size with no data on the disk: a header, and a hole."""
    intermediate = nbytes // (LAYERS * 3 * HIDDEN * 2)
    shapes = {name: tuple(t.shape) for name, t in base_tensors().items()}
    for name in shapes:
        if "gate_proj" in name or "up_proj" in name:
            shapes[name] = (intermediate, HIDDEN)
        if "down_proj" in name:
            shapes[name] = (HIDDEN, intermediate)
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    (folder / "pytorch_model.bin").unlink()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + offset)
    write_json(folder / "config.json", base_config(intermediate_size=intermediate))


# A base that is a hole in a file has no norm that a model could have.
ZEROS = {"allow_unknown_combination": True}


@pytest.mark.parametrize("dry_run", [False, True])
def test_disk_that_is_too_small_is_told_before_anything_is_written(
    inputs: Inputs, dry_run: bool
) -> None:
    free = shutil.disk_usage(inputs.folder).free
    try:
        sparse_base(inputs.base, nbytes=free + (free >> 2))
    except OSError as error:
        pytest.skip(f"this file system has no files of that size: {error.strerror}")
    only_q = save_adapter(inputs.folder / "only-q")
    error = inputs.refused(OutputError, only_q, dry_run=dry_run, num_shards=1, **ZEROS)
    assert "not enough disk space" in error.sentence
    assert error.facts["file"] == str(inputs.out)
    needed, found = (float(error.facts[key].split()[0]) for key in ("expected", "found"))
    assert needed > found


@pytest.mark.parametrize("given", [True, False], ids=["with --offload_dir", "without"])
def test_compressed_inputs_give_the_same_bytes_and_leave_nothing(
    inputs: Inputs, given: bool
) -> None:
    inputs.merge(output_dir=inputs.folder / "plain")
    for folder in (inputs.llama, inputs.alpaca):
        recompress(folder / "adapter_model.bin")
    recompress(inputs.base / "pytorch_model.bin")
    before = tree(inputs.folder)
    inputs.merge(offload_dir=inputs.folder / "offload" / "here" if given else None)
    after = tree(inputs.folder)
    assert {name for name in after if name not in before and not name.startswith("merged")} == set()
    name = "consolidated.00.pth"
    plain = (inputs.folder / "plain" / name).read_bytes()
    assert (inputs.out / name).read_bytes() == plain


def test_offload_folder_is_gone_after_a_failure_too(inputs: Inputs) -> None:
    recompress(inputs.llama / "adapter_model.bin")
    (inputs.alpaca / "adapter_model.bin").write_bytes(b"")
    inputs.refused(FormatError, offload_dir=inputs.folder / "offload")
    tensors = base_tensors(dtype=torch.bfloat16)
    tensors["model.norm.weight"][2] = 1e6
    save_base(inputs.base, tensors)
    inputs.refused(NumberError, inputs.llama, offload_dir=inputs.folder / "offload")


def test_what_others_put_into_the_offload_folder_stays(inputs: Inputs) -> None:
    recompress(inputs.llama / "adapter_model.bin")
    offload = inputs.folder / "offload"
    offload.mkdir()
    (offload / "theirs").write_text("stays", encoding="utf-8")
    inputs.merge(inputs.llama, offload_dir=offload)
    assert [path.name for path in offload.iterdir()] == ["theirs"]


@pytest.mark.parametrize("count", [3, 5, 8, 64])
def test_number_of_shards_that_does_not_divide(inputs: Inputs, count: int) -> None:
    error = inputs.refused(UsageError, num_shards=count)
    assert "divides" in error.facts["expected"]
    assert error.facts["found"] == f"--num_shards {count}"
    assert "leave --num_shards out" in error.facts["remedy"]


def test_number_of_shards_that_meta_would_use_and_that_does_not_divide(inputs: Inputs) -> None:
    odd = 100_000_001
    sparse_base(inputs.base, nbytes=odd * LAYERS * 3 * HIDDEN * 2)  # two files, like a 13B model
    error = inputs.refused(UsageError, save_adapter(inputs.folder / "only-q"), **ZEROS)
    assert error.facts["expected"] == f"--num_shards that divides intermediate_size = {odd}"
    assert error.facts["found"] == "--num_shards 2"
    assert "leave" not in error.facts["remedy"]


def test_heads_that_params_json_cannot_say(inputs: Inputs) -> None:
    config = base_config(head_dim=8)
    tensors = base_tensors()
    for name, tensor in tensors.items():
        if any(part in name for part in ("q_proj", "k_proj", "v_proj")):
            tensors[name] = torch.cat([tensor, tensor])
        if "o_proj" in name:
            tensors[name] = torch.cat([tensor, tensor], dim=1)
    save_base(inputs.base, tensors)
    write_json(inputs.base / "config.json", config)
    embeddings = {k: v for k, v in adapter_tensors(57).items() if "lora" not in k}
    save_adapter(inputs.alpaca, embeddings)
    error = inputs.refused(LayoutError, inputs.alpaca)
    assert "head" in error.facts["found"]
    inputs.merge(inputs.alpaca, output_type="huggingface")
