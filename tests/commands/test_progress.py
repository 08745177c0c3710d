"""Progress on a terminal and elsewhere: what is done, how far, how fast, how long."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from merge import merge_lora
from tests.kit.inputs import Inputs, make_inputs
from tests.kit.llama_cpp import skip_without_quantizer
from tests.kit.run import ROOT, quick_environment, run_merge, run_python
from tests.kit.s3_server import BUCKET, serve_bucket

_TWO = """
import time
from merge.commands.progress import progress_bar
with progress_bar(False, "checking the base") as first, progress_bar(False, "merging") as second:
    for show in (first, second):
        for step in range(1, 21):
            time.sleep(0.03)
            show(step * 50_000_000, 1_000_000_000)
        show(1_000_000_000, 1_000_000_000)
"""


def test_elsewhere_each_tenth_is_a_line_with_rate_and_time_left() -> None:
    lines = run_python("-c", _TWO).stderr.splitlines()
    assert len(lines) == 20
    assert [line.partition(":")[0] for line in lines] == [
        *["checking the base"] * 10,
        *["merging"] * 10,
    ]
    told = re.compile(r"merging: 90 % \(900\.0 MB of 1\.0 GB, [\d.]+ [kMG]?B/s, 0:\d\d left\)")
    assert told.fullmatch(lines[-2])


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return make_inputs(tmp_path)


@pytest.mark.parametrize(
    ("language", "work"), [("en", "hashing, merging: "), ("zh", "计算哈希、合并：")]
)
def test_what_an_interrupted_run_has_left_is_hashed(
    inputs: Inputs, language: str, work: str
) -> None:
    def stop(written: int, total: int) -> None:
        if 2 * written > total:
            raise KeyboardInterrupt

    how = {"output_type": "huggingface", "max_shard_size": "4KB"}
    with pytest.raises(KeyboardInterrupt):
        merge_lora(inputs.base, inputs.llama, inputs.out, on_progress=stop, **how)  # type: ignore[arg-type]
    words = ("--base_model", inputs.base, "--lora_model", inputs.llama, "--lang", language)
    options = [word for name, value in how.items() for word in (f"--{name}", value)]
    ended = run_merge(*words, "--output_dir", inputs.out, *options, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert all(line.startswith(work) for line in ended.stderr.splitlines()), ended.stderr
    again = run_merge(*words, "--output_dir", inputs.out, *options, "--overwrite")
    assert again.stderr.startswith(work.rpartition("、" if language == "zh" else ", ")[2])


def test_quantizing_is_named(inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    from merge.commands.convert_checkpoint import main

    skip_without_quantizer()
    words = ["--input", inputs.base, "--output", inputs.out, "--output_type", "gguf"]
    assert main([str(word) for word in (*words, "--outtype", "q4_k_m")]) == 0
    assert capsys.readouterr().err.startswith("converting, quantizing: ")


def test_uploading_is_named(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from merge.commands.merge_lora import main

    words = ["--base_model", str(inputs.base), "--lora_model", str(inputs.llama)]
    with serve_bucket(monkeypatch):
        assert main([*words, "--output_dir", f"s3://{BUCKET}/result"]) == 0
    assert capsys.readouterr().err.startswith("merging, uploading: ")


@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal")
def test_on_a_terminal_the_second_bar_begins_when_the_first_has_ended() -> None:
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = quick_environment(TERM="dumb")
    process = subprocess.Popen(
        [sys.executable, "-c", _TWO], cwd=ROOT, env=environment, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    first, second = [line for line in shown.decode().split("\n") if line.strip()]
    last = [line.split("\r")[-1 if not line.endswith("\r") else -2] for line in (first, second)]
    assert last[0].startswith("checking the base: 100%")
    assert last[1].startswith("merging: 100%")
    assert "merging" not in first
    assert all("B/s" in line for line in last)
