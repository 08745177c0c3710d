"""The parts of the harness against what the system itself says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import cache, sink
from benchmarks.measure import direct_copy_command, measure

LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")


@pytest.mark.parametrize("size", [0, 1, 4096, (8 << 20) + 1, 24 << 20])
def test_direct_copy_is_a_copy(tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(size))
    target.mkdir()
    command = direct_copy_command([source], target)
    told = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert told.stdout.strip() in ("direct", "buffered")
    assert (target / "source").read_bytes() == source.read_bytes()


def test_direct_copy_falls_back_where_there_is_no_o_direct(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"bytes")
    (tmp_path / "target").mkdir()
    code = (
        "import os, runpy, sys\n"
        "vars(os).pop('O_DIRECT', None)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    words = direct_copy_command([source], tmp_path / "target")
    command = [words[0], "-c", code, *words[2:]]
    told = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert told.stdout.strip() == "buffered"
    assert (tmp_path / "target" / "source").read_bytes() == b"bytes"


@LINUX_ONLY
def test_cache_is_filled_and_emptied(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * (8 << 20))
    cache.drop([path])
    if cache.share([path]) != 0:
        pytest.skip("this file system keeps its files in memory")
    cache.read([path])
    assert cache.share([path]) == 1
    cache.drop([path])
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.read(2 << 20)
    share = cache.share([path])
    assert share is not None
    assert 0.25 <= share < 0.9


@LINUX_ONLY
def test_memory_and_processor_of_children_count(tmp_path: Path) -> None:
    child = "import time; held = b'x' * (60 << 20); time.sleep(0.5)"
    parent = (
        "import subprocess, sys\n"
        f"both = [subprocess.Popen([sys.executable, '-c', {child!r}]) for _ in range(2)]\n"
        "[one.wait() for one in both]"
    )
    usage = measure([sys.executable, "-c", parent], tmp_path / "log", tmp_path / "out")
    assert usage.exit_code == 0
    assert usage.peak_rss is not None
    assert usage.peak_rss >= 120 << 20


def test_measured_commands_see_no_setting_of_the_harness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    code = "import os; print({'OMP_NUM_THREADS', 'PYTHONDONTWRITEBYTECODE'} & {*os.environ})"
    measure([sys.executable, "-c", code], tmp_path / "log", tmp_path / "out")
    assert (tmp_path / "log").read_text(encoding="utf-8").strip() == "set()"


@LINUX_ONLY
def test_sink_takes_what_the_memory_would_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "KEPT_BYTES", 1 << 20)
    folder = tmp_path / "out"
    folder.mkdir()
    code = (
        "import os, shutil, sys, time\n"
        "file = open(sys.argv[1] + '/data', 'wb')\n"
        "for _ in range(8):\n"
        "    file.write(b'x' * (1 << 20))\n"
        "file.flush()\n"
        "end = time.monotonic() + 20\n"
        "while os.stat(file.name).st_blocks * 512 > 1 << 20 and time.monotonic() < end:\n"
        "    time.sleep(0.05)\n"
        "content = open(file.name, 'rb').read()\n"
        "print(len(content), content.count(b'x'), content[-(1 << 20):].count(b'x'))\n"
        "print(shutil.disk_usage(sys.argv[1]).free)\n"
    )
    command = sink.wrapped([sys.executable, "-c", code, str(folder)], folder)
    if subprocess.run(sink.wrapped(["true"], folder), capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount in a namespace of his own")
    watching = sink.Sink(folder)
    usage = measure(command, tmp_path / "log", folder, watching)
    told = (tmp_path / "log").read_text(encoding="utf-8").split()
    assert (usage.exit_code, watching.error) == (0, None)
    assert list(map(int, told[:3])) == [8 << 20, 1 << 20, 1 << 20]
    assert int(told[3]) > 500 << 30
    assert [*watching.sizes.values()] == [8 << 20]
    assert list(folder.iterdir()) == []
