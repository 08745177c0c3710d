"""Ctrl-C sent to the real command while it certainly writes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from merge import merge_lora
from merge.output.journal import JOURNAL_NAME
from tests.kit.files import Tensors
from tests.kit.models import (
    BASE_ROWS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    adapter_tensors,
    base_tensors,
    save_adapter,
    save_base,
)
from tests.kit.run import command, quick_environment, run_merge
from tests.kit.stopped import contents

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform == "win32", reason="Windows sends no signals to one process, and stops none"
    ),
]
WITHIN = 2.0
# The tiny base in every direction but the vocabulary, and with more layers: 128 MiB.
TIMES, MORE_LAYERS = 64, 8
WRITTEN = 8 << 20
ATTEMPTS = 5


def large_tensors() -> Tensors:
    """Random bits would do, but for those of NaN and infinity."""
    tensors = {}
    for name, tensor in base_tensors().items():
        shape = [size if size == BASE_ROWS else size * TIMES for size in tensor.shape]
        tensors[name] = torch.randn(shape).mul_(0.1).half()
    tensors["model.norm.weight"].abs_()
    for layer in range(LAYERS, MORE_LAYERS):
        for name in list(tensors):
            if ".layers.0." in name:
                tensors[name.replace(".0.", f".{layer}.")] = tensors[name].flip(0)
    return tensors


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": HIDDEN * TIMES, "intermediate_size": INTERMEDIATE * TIMES}
    save_base(folder / "base", large_tensors(), num_hidden_layers=MORE_LAYERS, **sizes)
    first = list(range(LAYERS))
    save_adapter(folder / "lora", adapter_tensors(hidden=HIDDEN * TIMES), layers_to_transform=first)
    return folder


def stopped_while_writing(inputs: Path, out: Path, whole: int) -> subprocess.Popen[str] | None:
    """A merge that is stopped, like by Ctrl-Z, in the midst of its one file; None if too late."""
    words = ("--base_model", inputs / "base", "--lora_model", inputs / "lora")
    process = subprocess.Popen(
        command(*words, "--output_dir", out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=quick_environment(),
    )
    partial = out / ".consolidated.00.pth.partial"
    while process.poll() is None:
        try:
            written = partial.stat().st_size
        except FileNotFoundError:
            written = 0
        if written >= WRITTEN:
            process.send_signal(signal.SIGSTOP)
            break
        time.sleep(0.001)
    if partial.exists() and WRITTEN <= partial.stat().st_size < whole - WRITTEN:
        return process
    process.kill()
    process.communicate()
    return None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_merge_that_writes_ends_at_once_and_can_be_gone_on_with(
    inputs: Path, tmp_path: Path, number: int, code: int
) -> None:
    merge_lora(inputs / "base", inputs / "lora", tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    size = len(whole["consolidated.00.pth"])
    assert size > 100 << 20
    found = (
        (out, stopped_while_writing(inputs, out, size))
        for out in (tmp_path / f"out{attempt}" for attempt in range(ATTEMPTS))
    )
    out, process = next((out, process) for out, process in found if process is not None)
    process.send_signal(number)
    started = time.monotonic()
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate(timeout=30)
    seconds = time.monotonic() - started
    assert process.returncode == code, told
    assert seconds < WITHIN
    last = told.splitlines()[-1]
    assert last.startswith("interrupted: what was written is kept; the same command with --resume")
    assert all(path.name.startswith(".") for path in out.iterdir())
    assert (out / JOURNAL_NAME).is_file()
    words = ("--base_model", inputs / "base", "--lora_model", inputs / "lora")
    resumed = run_merge(*words, "--output_dir", out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after" in resumed.stdout
    assert contents(out) == whole
