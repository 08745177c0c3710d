"""Runs on one folder that overlap while the first has not yet written a byte."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from merge import merge_lora
from merge.errors import OutputError
from merge.output.journal import JOURNAL_NAME
from merge.output.staged_folder import lock_folder
from merge.storage.lock import LOCK_NAME
from tests.kit.files import tree
from tests.kit.models import LLAMA_ROWS, adapter_tensors, base_tensors, save_adapter, save_base
from tests.kit.run import ROOT, quick_environment, run_merge
from tests.kit.stopped import Merging, contents
from tests.kit.tokenizer_models import tokenizer_model

# A job that stops where it plans, says so, and goes on when it is told to.
PLANNING = """
import sys
from merge.plan import placement as plan
import merge.commands.{module} as command

def waiting(*arguments):
    print("planning", flush=True)
    sys.stdin.readline()
    return planned(*arguments)

planned, plan.plan_output = plan.plan_output, waiting
sys.exit(command.main(sys.argv[1:]))
"""
JOBS = {
    "merge_lora": ("--base_model", "base", "--lora_model", "llama", "--output_type", "pth"),
    "convert_checkpoint": ("--input", "base"),
    "apply_delta": ("--base_model", "base", "--delta_model", "delta"),
    "make_delta": ("--base_model", "base", "--target", "other"),
    "resize_vocabulary": ("--base_model", "base", "--tokenizer", "larger", "--init", "normal"),
}
# A process that imports torch takes seconds, so the fast tests are of the merge alone.
every_job = pytest.mark.parametrize(
    "job", [pytest.param(job, marks=[pytest.mark.slow][: job != "merge_lora"]) for job in JOBS]
)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    save_base(tmp_path / "base")
    save_base(tmp_path / "other", {k: v * 1.5 for k, v in base_tensors().items()})
    save_base(tmp_path / "delta", {k: v * -0.5 for k, v in base_tensors().items()})
    save_adapter(tmp_path / "llama", adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    (tmp_path / "larger").mkdir()
    (tmp_path / "larger" / "tokenizer.model").write_bytes(tokenizer_model(60))
    return tmp_path


@contextmanager
def planning(job: str, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A job in a process of its own, which is planning until it gets a line."""
    words = [*JOBS[job], "--output_dir", "out", "--quiet", *options]
    with subprocess.Popen(
        [sys.executable, "-c", PLANNING.format(module=job), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=folder,
        env=quick_environment(PYTHONPATH=str(ROOT)),
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line == "planning\n", process.communicate()
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Let it go on; return exit code and message."""
    told = process.communicate("go\n", timeout=60)[1]
    return process.returncode, told


@every_job
def test_second_run_is_refused_while_the_first_plans(inputs: Path, job: str) -> None:
    out = inputs / "out"
    with planning(job, inputs) as first:
        for option in ("verify_base", "overwrite", "resume", "dry_run"):
            with pytest.raises(OutputError, match="another run is writing") as caught:
                merge_lora(inputs / "base", inputs / "llama", out, **{option: True})
            assert caught.value.facts["found"] == f"process {first.pid}"
            assert [path.name for path in out.iterdir()] == [LOCK_NAME]
        assert ended(first) == (0, "")
    assert (out / "merge_manifest.json").is_file()
    assert not list(out.glob(".*"))


def test_run_that_begins_before_another_ends_does_not_replace_its_result(inputs: Path) -> None:
    """Both begin in an empty folder; that the first has ended does not make it empty again."""
    out = inputs / "out"
    with planning("merge_lora", inputs) as first:
        early = run_merge(*JOBS["merge_lora"], "--output_dir", "out", cwd=inputs)
        assert early.returncode == 2
        assert early.stderr.startswith("error: another run is writing to the output folder")
        assert ended(first) == (0, "")
    before = tree(out)
    late = run_merge(*JOBS["merge_lora"], "--output_dir", "out", cwd=inputs)
    assert late.returncode == 2
    assert "the output folder holds a model already" in late.stderr
    assert tree(out) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows kills no process by a signal")
def test_run_that_was_killed_while_it_planned_is_no_hindrance(inputs: Path) -> None:
    out = inputs / "out"
    with planning("merge_lora", inputs) as first:
        first.kill()
        first.wait()
    assert [path.name for path in out.iterdir()] == [LOCK_NAME]
    assert run_merge(*JOBS["merge_lora"], "--output_dir", "out", cwd=inputs).returncode == 0
    assert not list(out.glob(".*"))


def test_leftovers_are_safe_from_a_run_that_came_before_them(one: Merging) -> None:
    """The second run is planning when the first, begun before it, is interrupted: it is refused."""
    refused = []

    def progress(written: int, total: int) -> None:
        if not refused:
            words = ("--base_model", one.base, "--lora_model", one.adapter)
            refused.append(run_merge(*words, "--output_type", "pth", "--output_dir", one.out))
        if written > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="--resume"):
        one.merge(on_progress=progress)
    assert refused[0].returncode == 2
    assert (one.out / JOURNAL_NAME).is_file()
    one.merge(resume=True)
    assert contents(one.out) == one.whole()


@every_job
def test_dry_run_makes_nothing_and_keeps_nobody_out(inputs: Path, job: str) -> None:
    with planning(job, inputs, "--dry_run") as first:
        assert not (inputs / "out").exists()
        with lock_folder(inputs / "out"):
            pass
        assert ended(first) == (0, "")
    assert not (inputs / "out").exists()
