"""Merges over one base side by side: the base is read once, and none disturbs another."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from merge import merge_many
from merge.errors import UsageError
from merge.jobs.job_groups import divide_into_groups, plan_job
from merge.jobs.jobs_file import read_jobs
from merge.output.journal import JOURNAL_NAME
from tests.kit.adapters import make_lora
from tests.kit.llamas import make_base
from tests.kit.many_merges import Many, make_many, states
from tests.kit.models import save_base
from tests.kit.run import run_python
from tests.kit.stopped import contents

LAYOUTS: list[dict[str, Any]] = [
    {"output_type": "huggingface", "max_shard_size": "4KB", "safe_serialization": True},
    {"output_type": "pth", "num_shards": 2, "dtype": "float32"},
    {"output_type": "gguf", "outtype": "f16"},
]
# Ends like a killed process, or by a signal to itself, when so much is written. One job at a time
# reports progress, so none goes on before the main thread has seen the signal.
STOPPED = """
import os, signal, sys, time
from merge import merge_many
from merge.interruption import raise_if_interrupted
is_stopped = []
def stop(written, total):
    if written > total * 3 // 5 and not is_stopped:
        is_stopped.append(True)
        {stop}
        while True:
            raise_if_interrupted()
            time.sleep(0.01)
try:
    merge_many(sys.argv[1], on_progress=stop, together=int(sys.argv[2]))
except KeyboardInterrupt as interruption:
    print(interruption)
"""
READ = """
import shutil
import sys
from merge import merge_many
def count():
    with open("/proc/self/io") as lines:
        return int(next(line for line in lines if line.startswith("rchar")).split()[1])
merge_many(sys.argv[1], dry_run=True)
before = count()
assert not merge_many(sys.argv[1], together=int(sys.argv[2])).failures
print(count() - before)
"""


@pytest.fixture
def many(tmp_path: Path) -> Many:
    return make_many(tmp_path)


def make_jobs(many: Many) -> list[dict[str, Any]]:
    return [many.job(n, name, **LAYOUTS[n - 1]) for n, name in enumerate("abc", start=1)]


def divide(many: Many, *jobs: dict[str, Any], most: int = 10, **defaults: Any) -> list[list[int]]:
    requests = read_jobs(many.write(*jobs, **defaults))
    planned = [plan_job(request, resume=False, on_verify=None) for request in requests]
    return [[job.request.number for job in group] for group in divide_into_groups(planned, most)]


def test_each_layout_is_byte_for_byte_that_of_the_single_merge(many: Many) -> None:
    jobs = [*make_jobs(many), many.job(2, "d", num_shards=1), many.job(1, "e", verify=True)]
    assert divide(many, *jobs) == [[1, 2, 3, 4, 5]]
    told: list[int] = []
    report = merge_many(many.write(*jobs), on_job=lambda result: told.append(result.number))
    assert states(report.results) == ["done"] * 5
    assert sorted(told) == [1, 2, 3, 4, 5]
    assert "arithmetic " in report.results[4].text
    del jobs[4]["verify"]
    for job in jobs:
        assert contents(Path(job["output_dir"])) == many.single(job), job


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a process has read")
def test_base_is_read_once_for_all(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2}
    base = make_base(tmp_path / "base", vocab_size=4000, max_shard_size="1GB", **sizes)
    nbytes = sum(path.stat().st_size for path in base.glob("*.bin"))
    for number in (1, 2, 3, 4):
        make_lora(tmp_path / f"lora{number}", base, seed=number, std=0.02)
    many = Many(tmp_path)
    read = {}
    for together in (1, 4):
        jobs = [many.job(n, f"{together} {n}", output_type="hf") for n in (1, 2, 3, 4)]
        done = run_python("-c", READ, many.write(*jobs), str(together))
        assert done.returncode == 0, done.stderr
        read[together] = int(done.stdout)
    assert 3 * nbytes <= read[1] - read[4] < 3.1 * nbytes, (read, nbytes)
    for n in (1, 2, 3, 4):
        assert contents(many.out(f"1 {n}")) == contents(many.out(f"4 {n}"))


def test_job_with_a_nan_in_the_middle_fails_alone(many: Many) -> None:
    many.spoil(2)
    jobs = [many.job(n, name) for n, name in enumerate("abc", start=1)]
    report = merge_many(many.write(*jobs))
    assert states(report.results) == ["done", "failed", "done"]
    assert "lora_B" in report.failures[0].text or "q_proj" in report.failures[0].text
    assert not many.out("b").exists()
    for job in (jobs[0], jobs[2]):
        assert contents(Path(job["output_dir"])) == many.single(job)


def test_every_job_tells_of_a_nan_in_the_base(many: Many) -> None:
    many.spoil_base()
    report = merge_many(many.write(*make_jobs(many)))
    assert states(report.results) == ["failed"] * 3
    for result in report.results:
        assert "input_layernorm" in result.text
    assert not many.out("a").exists()


@pytest.mark.parametrize("stop", ["os._exit(9)", "os.kill(os.getpid(), signal.SIGINT)"])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to one process")
def test_stopped_group_is_resumed_whether_together_or_not(many: Many, stop: str) -> None:
    jobs = [*make_jobs(many), many.job(2, "d", num_shards=1)]
    file = many.write(*jobs)
    for together in (1, 4):
        done = run_python("-c", STOPPED.format(stop=stop), file, "4")
        if "kill" in stop:
            assert done.returncode == 0, done.stderr
            rows = done.stdout.splitlines()[-4:]
            ended = [row for row in rows if "interrupted" in row]
            assert ended, done.stdout
            assert all("done" in row for row in rows if row not in ended), done.stdout
        else:
            assert done.returncode == 9, done.stderr
        assert (many.out("b") / JOURNAL_NAME).is_file()
        report = merge_many(file, resume=True, together=together)
        assert states(report.results) == ["done"] * 4
        assert any("resumed after" in result.text for result in report.results)
        for job in jobs:
            assert contents(Path(job["output_dir"])) == many.single(job)
            shutil.rmtree(job["output_dir"])


def test_interruption_of_one_job_ends_all(many: Many) -> None:
    file = many.write(*make_jobs(many))

    def stop(written: int, total: int) -> None:
        if written > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        merge_many(file, on_progress=stop)
    rows = str(caught.value).splitlines()[-3:]
    assert all("interrupted" in row for row in rows), rows
    assert states(merge_many(file, resume=True).results) == ["done"] * 3


def test_jobs_that_read_or_run_otherwise_are_in_groups_of_their_own(many: Many) -> None:
    save_base(many.folder / "other")
    jobs = [many.job(1, name) for name in "abcdef"]
    jobs[1]["base_model"] = str(many.folder / "other")
    jobs[3]["io"] = "buffered"
    jobs[4]["base_model"] = str(many.folder / "other")
    assert divide(many, *jobs) == [[1, 3, 6], [2, 5], [4]]
    assert divide(many, *jobs, most=2) == [[1, 3], [2, 5], [4], [6]]
    assert divide(many, *jobs, most=1) == [[1], [2], [3], [4], [5], [6]]
    assert states(merge_many(many.write(*jobs)).results) == ["done"] * 6


def test_as_many_run_together_as_memory_has_room_for(many: Many) -> None:
    """A thread takes 8 MiB, files 16 MiB and from the ninth on 2 MiB each; blocks are small."""
    jobs, numbers = [many.job(1, name) for name in "abcdefghi"], list(range(1, 10))
    assert divide(many, *jobs, num_workers=1, max_memory="28MB") == [numbers]
    assert divide(many, *jobs, num_workers=1, max_memory="26MB") == [numbers[:8], [9]]
    assert divide(many, *jobs, num_workers=1, max_memory="20MB") == [[n] for n in numbers]


def test_number_of_jobs_that_is_none_is_refused(many: Many) -> None:
    with pytest.raises(UsageError, match="--together is too small"):
        merge_many(many.write(many.job(1, "a")), together=0)
