"""Many merges from one file: each is the single merge's, and none disturbs another."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from merge import merge_many
from merge.jobs.many_results import JobResult, State
from merge.messages import column_width
from merge.output.journal import JOURNAL_NAME
from tests.kit.files import tree
from tests.kit.many_merges import Many, make_many, states
from tests.kit.run import ROOT, run_python
from tests.kit.small_disk import fill
from tests.kit.stopped import contents

SCRIPT = ROOT / "scripts" / "merge_many.py"
# Ends like a killed process when the first job is done.
KILLED = """
import os, sys
from merge import merge_many
merge_many(sys.argv[1], on_job=lambda result: os._exit(9), together=1)
"""


@pytest.fixture
def many(tmp_path: Path) -> Many:
    return make_many(tmp_path)


def test_each_result_is_byte_for_byte_that_of_the_single_merge(many: Many) -> None:
    both = [many.lora(1), many.lora(3)]
    jobs = [
        many.job(1, "a"),
        many.job(2, "b", output_type="pth", num_shards=2, lora_weights=0.5),
        many.job(2, "c", safe_serialization=True, dtype="bfloat16"),
        many.job(3, "d") | {"lora_model": both, "lora_weights": [1, -0.5]},
        many.job(3, "e", output_type="gguf", outtype="f32"),
    ]
    defaults: dict[str, Any] = {"output_type": "hf", "rounding": "per_adapter"}
    report = merge_many(many.write(*jobs, **defaults))
    assert states(report.results) == ["done"] * 5
    jobs[1]["lora_weights"] = "0.5"
    for job in jobs:
        whole = many.single(job, **defaults)
        assert contents(Path(job["output_dir"])) == whole, job
    weights = "pytorch_model-00001-of-00001.bin"
    assert contents(many.out("a"))[weights] != contents(many.out("d"))[weights]


def test_none_in_a_job_takes_the_place_of_a_default(many: Many) -> None:
    merge_many(many.write(many.job(1, "a", output_type=None), output_type="huggingface"))
    assert contents(many.out("a")) == many.single(many.job(1, "a"))


def test_job_with_a_nan_fails_alone(many: Many) -> None:
    many.spoil(2)
    jobs = [many.job(n, name) for n, name in enumerate("abc", start=1)]
    told: list[JobResult] = []
    report = merge_many(many.write(*jobs), on_job=told.append, together=1)
    assert states(report.results) == ["done", "failed", "done"]
    assert tuple(told) == report.results
    assert [one.number for one in report.failures] == [2]
    assert "lora_B" in report.failures[0].text or "q_proj" in report.failures[0].text
    assert not many.out("b").exists()
    for job in (jobs[0], jobs[2]):
        assert contents(Path(job["output_dir"])) == many.single(job)


def test_full_disk_in_one_job_leaves_the_others_and_can_be_resumed(many: Many, disk: Path) -> None:
    jobs = [many.job(1, "a") | {"output_dir": str(disk / "a")}, many.job(2, "b")]
    file, filler = many.write(*jobs), disk / "filler"

    def progress(*_: int) -> None:
        if not filler.exists():
            fill(filler)

    report = merge_many(file, on_progress=progress)
    assert states(report.results) == ["failed", "done"]
    assert "the disk is full" in report.results[0].text
    filler.unlink()
    again = merge_many(file, resume=True)
    assert states(again.results) == ["done", "complete already"]
    for job in jobs:
        assert contents(Path(job["output_dir"])) == many.single(job)


def test_input_that_vanishes_before_its_turn_fails_that_job_alone(many: Many) -> None:
    file = many.write(*(many.job(n, name) for n, name in enumerate("abc", start=1)))
    gone = many.lora(2)
    report = merge_many(file, on_job=lambda _: shutil.rmtree(gone, ignore_errors=True), together=1)
    assert states(report.results) == ["done", "failed", "done"]
    assert not many.out("b").exists()


def test_resume_after_a_kill_between_jobs_runs_the_rest(many: Many) -> None:
    jobs = [many.job(n, name) for n, name in enumerate("abc", start=1)]
    file = many.write(*jobs)
    killed = run_python("-c", KILLED, file)
    assert killed.returncode == 9, killed.stderr
    first = tree(many.out("a"))
    assert first
    assert not many.out("b").exists()
    report = merge_many(file, resume=True)
    assert states(report.results) == ["complete already", "done", "done"]
    assert tree(many.out("a")) == first
    for job in jobs:
        assert contents(Path(job["output_dir"])) == many.single(job)


def test_interruption_keeps_finished_jobs_and_tells_of_the_rest(many: Many) -> None:
    jobs = [many.job(n, name, num_shards=2) for n, name in enumerate("abc", start=1)]
    file = many.write(*jobs)
    size = merge_many(file, dry_run=True).results[0].nbytes

    def stop(written: int, total: int) -> None:
        assert total == 3 * size
        if written > size + size // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        merge_many(file, on_progress=stop, together=1)
    rows = [line.split("  ") for line in str(caught.value).splitlines()[-3:]]
    assert [next(cell.strip() for cell in row[3:] if cell.strip()) for row in rows] == [
        "done",
        "interrupted",
        "not started",
    ]
    assert contents(many.out("a")) == many.single(jobs[0])
    assert (many.out("b") / JOURNAL_NAME).is_file()
    assert not many.out("c").exists()
    report = merge_many(file, resume=True)
    assert states(report.results) == ["complete already", "done", "done"]
    for job in jobs:
        assert contents(Path(job["output_dir"])) == many.single(job)


def test_dry_run_plans_every_job_and_writes_nothing(many: Many) -> None:
    file = many.write(many.job(1, "a"), many.job(2, "b"))
    before = tree(many.folder)
    done = run_python(SCRIPT, file, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Planned:") == 2
    assert tree(many.folder) == before


def test_table_and_exit_code_say_that_a_job_failed(many: Many) -> None:
    many.spoil(1)
    file = many.write(many.job(1, "a"), many.job(2, "b"))
    done = run_python(SCRIPT, file)
    assert done.returncode == 1
    rows = [line.split() for line in done.stdout.splitlines()[-3:]]
    assert rows[0] == ["job", "output", "state", "seconds", "size"]
    assert [(row[0], row[2]) for row in rows[1:]] == [("1", "failed"), ("2", "done")]
    assert "Traceback" not in done.stderr
    assert f"job 1, {many.out('a')}: failed" in done.stderr.splitlines()
    quiet = run_python(SCRIPT, file, "--resume", "--quiet")
    assert (quiet.returncode, quiet.stdout) == (1, "")
    assert "job 2" not in quiet.stderr
    verbose = run_python(SCRIPT, file, "--resume", "--verbose")
    assert "Traceback" in verbose.stderr


def test_verify_checks_the_result_of_its_job(many: Many) -> None:
    done = run_python(SCRIPT, many.write(many.job(1, "a"), many.job(2, "b", verify=True)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("arithmetic ") == 1


def test_result_in_which_verify_finds_a_fault_is_wrong(many: Many) -> None:
    file = many.write(many.job(1, "a", verify=True), many.job(2, "b"))
    merge_many(file)
    path = many.out("a") / "consolidated.00.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    report = merge_many(file, resume=True)
    assert states(report.results) == ["wrong", "complete already"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to one process")
def test_ctrl_c_ends_the_command_with_130(many: Many) -> None:
    code = (
        "import os, signal, sys\n"
        "from merge.jobs import run_group as jobs\n"
        "run = jobs._run\n"
        "def stopped(*args):\n"
        "    if args[0].number == 2:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return run(*args)\n"
        "jobs._run = stopped\n"
        "from merge.commands.merge_many import main\n"
        "sys.exit(main([sys.argv[1], '--together', '1']))\n"
    )
    file = many.write(*(many.job(n, name) for n, name in enumerate("abc", start=1)))
    done = run_python("-c", code, file)
    assert done.returncode == 130, done.stderr
    assert "not started" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert contents(many.out("a")) == many.single(many.job(1, "a"))


def test_command_answers_help_without_torch_or_yaml() -> None:
    code = (
        "import sys\n"
        "from merge.commands.merge_many import make_parser\n"
        "make_parser().format_help()\n"
        "print([name for name in ('torch', 'yaml', 'numpy') if name in sys.modules])\n"
    )
    done = run_python("-c", code)
    assert done.stdout.strip() == "[]", done.stderr


def test_everything_is_told_in_chinese(many: Many) -> None:
    """Progress, summaries, a check, a failure and the table, which keeps its columns."""
    many.spoil(2)
    jobs = [many.job(1, "a", verify=True), many.job(2, "b")]
    ended = run_python(SCRIPT, many.write(*jobs), "--lang", "zh")
    assert ended.returncode == 1
    told = (ended.stdout + ended.stderr).replace(str(many.folder), "")
    assert re.findall(r"[a-z]{2,} [a-z]{2,}", told.replace("base_model.model.model", "")) == []
    table = [line for line in ended.stdout.splitlines() if line][-3:]
    assert all(state in line for state, line in zip(("状态", "完成", "失败"), table, strict=True))
    assert len({column_width(line) for line in table}) == 1


def test_each_state_of_a_job_has_words() -> None:
    for state in get_args(State):
        assert JobResult(1, Path("out"), state).describe_state() == state
