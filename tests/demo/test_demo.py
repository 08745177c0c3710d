"""The demo as a user runs it: one process, an exit code, and what it says at the end."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.run import ROOT

PROMPT, CONTINUATION = "如果你今天去那个村庄，", "还能看见那棵柳树。"


def run_demo(output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "demo" / "run.py"), "--output_dir", str(output)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_the_asked_line_is_in_the_text_that_the_adapter_learns() -> None:
    lines = (ROOT / "demo" / "chinese.txt").read_text(encoding="utf-8").splitlines()
    assert PROMPT + CONTINUATION in lines


@pytest.mark.slow
def test_the_demo_merges_agrees_with_peft_and_continues_the_line_rightly(tmp_path: Path) -> None:
    output = tmp_path / "new folder"
    done = run_demo(output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    said = {
        label: line.removeprefix(label).split()[0]
        for line in done.stdout.splitlines()
        for label in ("the line", "base goes on", "merged goes on", "llama.cpp goes on")
        if line.startswith(label)
    }
    assert (said["the line"], said["merged goes on"]) == (PROMPT, CONTINUATION)
    assert said["base goes on"] != CONTINUATION
    expected = CONTINUATION if importlib.util.find_spec("llama_cpp") else "(not"
    assert said["llama.cpp goes on"] == expected
    assert (output / "pth" / "consolidated.00.pth").is_file()
    assert (output / "hf" / "config.json").is_file()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("mine", encoding="utf-8")
    done = run_demo(tmp_path)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert list(tmp_path.iterdir()) == [letter]
