"""What a person sees: help at once, progress, a summary, and a rehearsal that writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.adapters import make_adapter
from tests.kit.llamas import make_base
from tests.kit.run import ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def run(script: Path, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_imports_nothing_heavy(script: Path) -> None:
    """Half a second is the promise; what would break it is an import, so that is what is tested."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(script)!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit as exit:\n"
        "    assert exit.code == 0, exit.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'sentencepiece', 'huggingface_hub'}\n"
        "sys.exit(' '.join(sorted(heavy & sys.modules.keys())) or None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, f"imports {done.stderr}"
    assert "usage:" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="Windows does not count the time of children")
def test_help_costs_less_than_half_a_second_of_processor_time() -> None:
    script = ROOT / "scripts/merge_llama_with_chinese_lora.py"
    seconds = []
    for _ in range(3):
        before = os.times()
        assert run(script, "--help").returncode == 0
        after = os.times()
        seconds.append(after.children_user + after.children_system)
        seconds[-1] -= before.children_user + before.children_system
    assert min(seconds) < 0.5


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    base = make_base(folder / "base")
    return base, make_adapter(folder / "lora", base, rows=151)


def test_progress_is_a_line_for_each_tenth_and_a_summary_follows(
    tmp_path: Path, inputs: tuple[Path, Path]
) -> None:
    base, adapter = inputs
    script = ROOT / "scripts/merge_llama_with_chinese_lora.py"
    done = run(
        script, "--base_model", base, "--lora_model", adapter, "--output_dir", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 10
    assert all(line.startswith("merging: ") for line in lines)
    assert "100 %" in lines[-1]
    for said in ("added to 14 tensors", "replaced 2", "grown from 101 to 151 rows", "took"):
        assert said in done.stdout


@pytest.mark.parametrize("output_type", ["pth", "hf"])
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    tmp_path: Path, inputs: tuple[Path, Path], output_type: str
) -> None:
    base, adapter = inputs
    done = run(
        ROOT / "scripts/merge_llama_with_chinese_lora.py",
        *("--base_model", base, "--lora_model", adapter, "--output_type", output_type),
        *("--output_dir", tmp_path / "out", "--dry_run"),
    )
    assert done.returncode == 0, done.stderr
    assert "nothing was written" in done.stdout
    assert list(tmp_path.iterdir()) == []
