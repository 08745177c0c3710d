"""The harness, run as a user runs it, on a merge that stands in for the real one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.case import CP, DIRECT
from benchmarks.job import SCRIPT, program
from benchmarks.measure import measure
from tests.kit.run import ROOT

SAFETENSORS = ("--safe_serialization", "--container", "safetensors")
STAND_IN = Path(__file__).with_name("plain_merge.py")


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, so that the tiny models are made once."""
    return tmp_path_factory.mktemp("benchmark-output")


def bench(work_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [*program("run"), "--verify"]
    words += ["--work_dir", str(work_dir), "--script", str(STAND_IN), *options]
    return subprocess.run(words, capture_output=True, encoding="utf-8", check=False, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "exactness"),
    [
        (("--num_shards", "2", "--runs", "2", "--script", str(SCRIPT)), r"\d+ ulp away.*9\d\.\d+%"),
        (("--output_type", "huggingface", *SAFETENSORS, "--chain"), r"0 ulp away.*100\.0+%"),
    ],
    ids=["the project's own", "a stand-in in float64"],
)
def test_tiny_merge_is_measured_and_verified(
    work_dir: Path, options: tuple[str, ...], exactness: str
) -> None:
    told = bench(work_dir, *options)
    assert (told.returncode, told.stderr) == (0, "")
    path = Path(told.stdout.splitlines()[-1].removeprefix("all figures: "))
    [record] = results.read(path).values()
    runs = 2 if "--runs" in options else 1
    order = [sample["step"] for sample in record["samples"]]
    assert order == [CP, DIRECT, "merge"] * runs + [CP, DIRECT]
    assert record["verified"] == {"merge": True}
    assert re.search(f"at most {exactness} of", record["comparison"]["merge"], re.DOTALL)
    assert all(sample["cached"] in (None, 1.0) for sample in record["samples"])
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert not (work_dir / "output").exists()


@pytest.mark.slow
def test_wrong_result_ends_with_exit_code_1(work_dir: Path) -> None:
    told = bench(work_dir, "--", "--forget", "model.norm.weight")
    assert told.returncode == 1
    assert "DIFFERENT: the weights are incomplete" in told.stdout
    assert "tensor: norm.weight" in told.stdout


@pytest.mark.slow
def test_failed_merge_shows_what_it_said(work_dir: Path) -> None:
    told = bench(work_dir, "--", "--no_such_option")
    assert told.returncode == 1
    assert "unrecognized arguments: --no_such_option" in told.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/io, which only Linux has")
def test_written_bytes_and_peak_memory_are_those_of_the_process(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os\n"
        "file = os.open('out/data', os.O_CREAT | os.O_WRONLY)\n"
        "for _ in range(2):\n"
        "    os.pwrite(file, b'x' * (50 << 20), 0)\n"
        "    os.fsync(file)\n",  # so that the second time is not absorbed by the page cache
        encoding="utf-8",
    )
    (tmp_path / "out").mkdir()
    small = [sys.executable, "-c", HARNESS, str(ROOT), str(tmp_path)]
    told = subprocess.run(small, capture_output=True, encoding="utf-8", check=True, cwd=tmp_path)
    written, peak = map(int, told.stdout.split())
    if written == 0:
        pytest.skip("this file system keeps no account of what a process writes")
    assert 100 << 20 <= written <= 101 << 20
    assert 50 << 20 <= peak <= 80 << 20


HARNESS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from benchmarks.measure import measure
folder = Path(sys.argv[2])
usage = measure([sys.executable, "program.py"], folder / "log", folder / "out")
print(usage.written, usage.peak_rss)
"""


def test_exit_code_of_the_process_is_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    assert measure(command, tmp_path / "log", tmp_path).exit_code == 3
