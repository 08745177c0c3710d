"""Options from a file, and a result that is made again from its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import apply_delta, convert_checkpoint, make_delta, merge_lora
from tests.kit.files import copied, load_weights, save_tensors
from tests.kit.inputs import Inputs
from tests.kit.models import base_tensors, save_base
from tests.kit.run import ROOT, run_merge, run_python


def read_manifest(folder: Path) -> Any:
    return json.loads((folder / "merge_manifest.json").read_text(encoding="utf-8"))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_merge_is_repeated_from_its_manifest(inputs: Inputs, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    merge_lora(
        inputs.base,
        [inputs.llama, inputs.alpaca],
        first,
        lora_weights="1.0,-0.5",
        output_type="huggingface",
        safe_serialization=True,
        max_shard_size=4000,
        dtype="float32",
        rounding="per_adapter",
    )
    done = run_merge("--from", first, "--output_dir", again)
    assert done.returncode == 0, done.stderr
    assert read_manifest(again) == read_manifest(first)


def test_a_gguf_file_is_repeated_byte_for_byte(inputs: Inputs, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    convert_checkpoint(inputs.base, tmp_path / "first", output_type="gguf", outtype="f32")
    words = ("--from", tmp_path / "first" / "merge_manifest.json", "--output", tmp_path / "again")
    done = run_python(ROOT / "scripts" / "convert_checkpoint.py", *words)
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "again") == read_manifest(tmp_path / "first")


def test_a_delta_is_applied_again_from_the_manifest(inputs: Inputs, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = {k: v + 0.01 * torch.randn_like(v) for k, v in base_tensors().items()}
    target = save_base(tmp_path / "target", trained)
    make_delta(inputs.base, target, tmp_path / "delta")
    apply_delta(inputs.base, tmp_path / "delta", tmp_path / "first")
    words = ("--from", tmp_path / "first", "--target", tmp_path / "again")
    done = run_python(ROOT / "scripts" / "apply_delta.py", *words)
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "again") == read_manifest(tmp_path / "first")


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_an_input_of_other_content_is_refused_by_name(
    inputs: Inputs, tmp_path: Path, which: str
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    merge_lora(inputs.base, inputs.llama, first)
    words: list[object] = ["--from", first, "--output_dir", again]
    if which == "base":
        other = save_base(tmp_path / "other", {k: v * 2 for k, v in base_tensors().items()})
        words += ["--base_model", other]
    else:
        other = copied(inputs.llama, tmp_path / "other")
        (file,) = other.glob("adapter_model.*")
        tensors = load_weights(other)
        save_tensors(file, {name: tensor * 2 for name, tensor in tensors.items()})
        words += ["--lora_model", other]
    done = run_merge(*words)
    assert done.returncode == 2
    assert "an input is not the one that the manifest records" in done.stderr
    assert str(other) in done.stderr
    assert not list(again.glob("*.pth"))
    done = run_merge(*words, "--allow_changed_inputs")
    assert done.returncode == 0, done.stderr
    ours, theirs = read_manifest(again)["inputs"], read_manifest(first)["inputs"]
    assert ours["adapters" if which == "adapter" else "base_model"] != theirs


def test_inputs_that_were_moved_are_given_on_the_command_line(
    inputs: Inputs, tmp_path: Path
) -> None:
    merge_lora(inputs.base, inputs.llama, tmp_path / "first")
    moved = inputs.base.rename(tmp_path / "moved")
    words = (
        "--from",
        tmp_path / "first",
        "--base_model",
        moved,
        "--output_dir",
        tmp_path / "again",
    )
    done = run_merge(*words)
    assert done.returncode == 0, done.stderr
    ours, theirs = read_manifest(tmp_path / "again"), read_manifest(tmp_path / "first")
    assert ours["tensors"] == theirs["tensors"]
    assert ours["files"] == theirs["files"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content.pop("options"), "does not say how its result was made"),
        (lambda content: content.update(job="convert"), "that of another command"),
        (
            lambda content: content["inputs"]["adapters"][0].pop("files"),
            "does not say how its result was made",
        ),
        (lambda content: content.update(inputs=[]), "does not say how its result was made"),
    ],
)
def test_a_manifest_of_something_else_is_refused(
    inputs: Inputs, tmp_path: Path, change: Any, told: str
) -> None:
    merge_lora(inputs.base, inputs.llama, tmp_path / "first")
    content = read_manifest(tmp_path / "first")
    change(content)
    file = write(tmp_path / "manifest.json", json.dumps(content))
    done = run_merge("--from", file, "--output_dir", tmp_path / "again")
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_of_options_is_a_command_line(inputs: Inputs, tmp_path: Path) -> None:
    config = write(
        tmp_path / "options.yaml",
        f"base_model: {inputs.base.as_posix()}\n"
        f"lora_model: [{inputs.llama.as_posix()}, {inputs.alpaca.as_posix()}]\n"
        f"output_dir: {(tmp_path / 'file').as_posix()}\n"
        "lora_weights: [1, -0.5]\noutput_type: hf\nsafe_serialization: true\n"
        "max_shard_size: 4000\n",
    )
    assert run_merge("--config", config).returncode == 0
    words = ("--base_model", inputs.base, "--lora_model", inputs.llama, inputs.alpaca)
    more = ("--output_type", "hf", "--safe_serialization", "--max_shard_size", "4000")
    out = tmp_path / "words"
    assert run_merge(*words, *more, "--lora_weights", "1,-0.5", "--output_dir", out).returncode == 0
    ours, theirs = read_manifest(tmp_path / "file"), read_manifest(out)
    assert ours["files"] == theirs["files"]
    last = ("--output_dir", tmp_path / "wins", "--lora_model", inputs.llama, "--lora_weights", "1")
    assert run_merge("--config", config, *last).returncode == 0
    assert len(read_manifest(tmp_path / "wins")["inputs"]["adapters"]) == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ouput_dir: x", "did you mean output_dir?"),
        ("safe_serialization: maybe", "true or false"),
        ("output_type: [pth, hf]", "one value"),
        ("num_shards: two", "--num_shards"),
        ("output_type: htf", "--output_type"),
        ("max_memory: 1", "--max_memory"),
        ("base_model: {a: b}", "text or numbers"),
        ("- a", "does not hold a YAML mapping"),
    ],
)
def test_a_mistake_in_the_file_ends_in_one_message(
    inputs: Inputs, tmp_path: Path, line: str, told: str
) -> None:
    config = write(tmp_path / "options.yaml", line + "\n")
    words = ("--base_model", inputs.base, "--lora_model", inputs.llama)
    done = run_merge("--config", config, *words, "--output_dir", tmp_path / "out")
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_required_may_be_in_the_file_and_is_missed_otherwise(
    inputs: Inputs, tmp_path: Path
) -> None:
    config = write(tmp_path / "options.json", json.dumps({"base_model": str(inputs.base)}))
    done = run_merge("--config", config)
    assert done.returncode == 2
    assert "required: --lora_model" in done.stderr
