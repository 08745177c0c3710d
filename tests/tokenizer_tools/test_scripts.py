"""The scripts as a person runs them: from any folder, quick to answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.run import ROOT

NAMES = [
    "merge_tokenizers",
    "train_chinese_tokenizer",
    "extend_llama3_tokenizer",
    "compare_tokenizers",
]


@pytest.mark.parametrize("name", NAMES)
def test_help_answers_from_any_folder_and_loads_nothing_heavy(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / f"{name}.py"), "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, check=True, text=True, encoding="utf-8"
    )
    assert f"usage: {name}.py" in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    heavy = {"torch", "transformers", "matplotlib", "sentencepiece", "numpy", "google.protobuf"}
    assert not heavy & loaded


def test_an_unknown_option_ends_with_exit_code_2(tmp_path: Path) -> None:
    for name in NAMES:
        command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), "--nonsense"]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 2
