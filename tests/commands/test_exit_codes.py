"""What a person sees: exit codes, one message, no traceback, and what an interruption leaves."""

from __future__ import annotations

import filecmp
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.kit.containers import Opens
from tests.kit.files import tree
from tests.kit.inputs import Inputs
from tests.kit.models import BASE_ROWS, adapter_tensors, random_tensor, save_adapter, save_base
from tests.kit.run import MERGE_TO_HF, command, quick_environment, run_merge


def words(inputs: Inputs, *lora: Path) -> list[object]:
    loras = ",".join(str(path) for path in lora or (inputs.llama, inputs.alpaca))
    return ["--base_model", inputs.base, "--lora_model", loras, "--output_dir", inputs.out]


def reverse(inputs: Inputs) -> list[object]:
    return words(inputs, inputs.alpaca, inputs.llama)


def truncate(inputs: Inputs) -> list[object]:
    path = inputs.llama / "adapter_model.bin"
    path.write_bytes(path.read_bytes()[:-100])
    return words(inputs)


def set_a_trap(inputs: Inputs) -> list[object]:
    torch.save({"trap": Opens(inputs.folder / "it-ran")}, inputs.llama / "adapter_model.bin")
    return words(inputs)


def forget_config(inputs: Inputs) -> list[object]:
    (inputs.base / "config.json").unlink()
    return words(inputs)


def mistype(inputs: Inputs) -> list[object]:
    return words(inputs, inputs.folder / "chinese-lama")


def swap_tokenizers(inputs: Inputs) -> list[object]:
    shutil.copy(inputs.llama / "tokenizer.model", inputs.alpaca)
    return words(inputs)


def fill_the_output(inputs: Inputs) -> list[object]:
    inputs.out.mkdir()
    (inputs.out / "config.json").write_text("{}", encoding="utf-8")
    return words(inputs)


def overflow(inputs: Inputs) -> list[object]:
    save_adapter(inputs.llama, {k: v * 1e4 for k, v in adapter_tensors().items()})
    return [*words(inputs, inputs.llama), "--tokenizer", inputs.base]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (reverse, "the vocabulary would shrink with adapter 2 (chinese-llama)"),
        (truncate, "the file starts as a zip archive, but its end is missing or damaged"),
        (set_a_trap, "the file asks to run code when it is read, which weights never need"),
        (forget_config, "the base model's folder has no configuration"),
        (mistype, "the adapter does not exist"),
        (swap_tokenizers, "tokenizer and embeddings do not belong together"),
        (fill_the_output, "the output folder holds a model already"),
        (overflow, "the merged value cannot be written in this dtype"),
    ],
)
def test_mistake_ends_with_exit_code_2_and_one_message(
    inputs: Inputs, mistake: Callable[[Inputs], list[object]], sentence: str
) -> None:
    arguments = mistake(inputs)
    before = tree(inputs.folder)
    told = run_merge(*arguments)
    assert (told.returncode, told.stdout) == (2, "")
    lines = told.stderr.splitlines()
    first, *facts = [line for line in lines if not line.startswith("merging: ")]
    assert first == f"error: {sentence}"
    assert all(line.startswith("  ") for line in facts)
    assert any(line.startswith("  remedy:   ") for line in facts)
    assert "Traceback" not in told.stderr
    assert tree(inputs.folder) == before


@pytest.mark.slow
def test_traceback_is_shown_when_asked_for(inputs: Inputs) -> None:
    told = run_merge(*reverse(inputs), "--verbose")
    assert told.returncode == 2
    assert "Traceback" in told.stderr
    assert told.stderr.splitlines()[-1].startswith(" ")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--base_model", "a"),
        ("--base_model", "a", "--lora_model"),
        ("--base_model", "a", "--lora_model", "b", "--output_type", "ggml"),
        ("--base_model", "a", "--lora_model", "b", "--num_shards", "two"),
        ("--base_model", "a", "--lora", "b"),
    ],
)
def test_wrong_usage_ends_with_exit_code_2(arguments: tuple[str, ...]) -> None:
    told = run_merge(*arguments)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("usage: ")
    assert "Traceback" not in told.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "lora", [["{0},", "{1}"], ["{0}", "--lora_model", "{1}"]], ids=["a, b", "repeated"]
)
def test_adapters_may_be_listed_as_people_do(inputs: Inputs, lora: list[str]) -> None:
    named = [word.format(inputs.llama, inputs.alpaca) for word in lora]
    out = ("--output_dir", inputs.out, "--dry_run")
    told = run_merge("--base_model", inputs.base, "--lora_model", *named, *out)
    assert told.returncode == 0, told.stderr
    assert f"adapter 1  {inputs.llama} " in told.stdout
    assert f"adapter 2  {inputs.alpaca} " in told.stdout


@pytest.mark.slow
def test_quiet_says_nothing_and_the_other_script_writes_hugging_face_shards(
    inputs: Inputs,
) -> None:
    told = run_merge(*words(inputs), "--quiet", script=MERGE_TO_HF)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
    assert (inputs.out / "pytorch_model.bin.index.json").is_file()


@pytest.fixture
def large(inputs: Inputs) -> list[object]:
    """Arguments of a merge that writes 200 MB, so that it can be stopped on the way."""
    hidden, intermediate = 512, 60_000
    wide = {"gate_proj": (intermediate, hidden), "up_proj": (intermediate, hidden)}
    shapes = {"mlp." + name: shape for name, shape in wide.items()}
    shapes["mlp.down_proj"] = (hidden, intermediate)
    shapes |= {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    row = random_tensor(1, 1)
    tensors = {
        f"model.layers.{layer}.{module}.weight": row.expand(shape).contiguous()
        for layer in range(1)
        for module, shape in shapes.items()
    }
    for norm in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"):
        tensors[f"model.{norm}.weight"] = row[0].expand(hidden).contiguous()
    for name in ("model.embed_tokens", "lm_head"):
        tensors[f"{name}.weight"] = row.expand(BASE_ROWS, hidden).contiguous()
    save_base(
        inputs.base,
        tensors,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=1,
        num_key_value_heads=4,
    )
    lora = {k: v for k, v in adapter_tensors(hidden=hidden).items() if "layers.0" in k}
    return words(inputs, save_adapter(inputs.folder / "only-q", lora))


def resume(inputs: Inputs, large: list[object], output_type: str) -> None:
    """Go on with an interrupted run, and compare with one that was not."""
    told = run_merge(*large, "--output_type", output_type, "--resume")
    assert told.returncode == 0, told.stderr
    assert "  note: resumed after " in told.stdout
    whole = inputs.folder / "whole"
    inputs.merge(inputs.folder / "only-q", output_dir=whole, output_type=output_type)
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in inputs.out.iterdir()} == names
    same, *_ = filecmp.cmpfiles(whole, inputs.out, names, shallow=False)
    assert set(same) == names


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize("output_type", ["pth", "huggingface"])
def test_interrupted_run_is_told_how_to_go_on_and_does(
    inputs: Inputs, large: list[object], output_type: str
) -> None:
    options = ("--output_type", output_type)
    with subprocess.Popen(
        command(*large, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=quick_environment(),
    ) as process:
        assert process.stderr is not None
        for tenth in (1, 2, 3, 4):
            assert process.stderr.readline().startswith(f"merging: {tenth}0 %")
        assert {path.name[0] for path in inputs.out.iterdir()} == {"."}  # no final name yet
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        out, told = process.communicate(timeout=60)
        assert time.monotonic() - started < 2
    assert (process.returncode, out) == (130, "")
    assert told.splitlines()[-1].startswith("interrupted: ")
    assert "--resume" in told
    assert "Traceback" not in told
    resume(inputs, large, output_type)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_disk_that_fills_up_on_the_way_is_told_and_can_be_gone_on_with(
    inputs: Inputs, large: list[object]
) -> None:
    """A limit on the size of files stands in for a full disk: writing fails in the same place."""
    limited = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:];"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150 << 20, 150 << 20));"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    python, script, *arguments = command(*large)
    told = subprocess.run(
        [python, "-c", limited, script, *arguments],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env=quick_environment(),
    )
    assert (told.returncode, told.stdout) == (2, "")
    assert "error: the disk is full: the result could not be written" in told.stderr
    assert f"file:     {inputs.out}" in told.stderr
    assert "--resume" in told.stderr
    assert "Traceback" not in told.stderr
    assert {path.name[0] for path in inputs.out.iterdir()} == {"."}
    resume(inputs, large, "pth")
