"""A disk that fills up at the worst moments. A limit on the size of files stands in for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from merge.errors import OutputError
from merge.output.staged_folder import StagedFolder, lock_folder
from merge.settings import IoMode
from tests.kit.stopped import limited_file_size

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no limit on the size of files"
)
LIMIT = 1 << 16


def write(folder: Path, *sizes: int, io: IoMode) -> None:
    with lock_folder(folder), StagedFolder(folder) as staged:
        for number, size in enumerate(sizes):
            staged.create(f"{number}.bin", io, 1 << 14).write(bytes(size))


@pytest.fixture(params=["buffered", "direct"])
def io(request: pytest.FixtureRequest) -> IoMode:
    mode: IoMode = request.param
    return mode


@pytest.mark.parametrize("sizes", [(LIMIT + 1,), (LIMIT, LIMIT + 9), (10, LIMIT << 2, 10)])
def test_nothing_stays_when_a_write_fails(
    tmp_path: Path, sizes: tuple[int, ...], io: IoMode
) -> None:
    out = tmp_path / "made" / "here"
    with limited_file_size(LIMIT), pytest.raises(OutputError, match="the disk is full") as caught:
        write(out, *sizes, io=io)
    assert caught.value.facts["file"] == str(out)
    assert caught.value.facts["found"] == "File too large"
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_when_what_is_buffered_fails_once_more_on_closing(
    tmp_path: Path, io: IoMode
) -> None:
    def fail_with_a_full_buffer() -> None:
        out = tmp_path / "out"
        with lock_folder(out), StagedFolder(out) as staged:
            stream = staged.create("0.bin", io)
            stream.write(bytes(LIMIT))
            stream.write(bytes(100))  # stays in the buffer
            raise InterruptedError

    with limited_file_size(LIMIT), pytest.raises(InterruptedError):
        fail_with_a_full_buffer()
    assert list(tmp_path.iterdir()) == []


def test_earlier_files_stay_when_the_last_flush_fails(tmp_path: Path, io: IoMode) -> None:
    (tmp_path / "0.bin").write_bytes(b"earlier")
    with limited_file_size(LIMIT), pytest.raises(OutputError, match="the disk is full") as caught:
        write(tmp_path, 10, LIMIT + 100, io=io)
    assert caught.value.facts["file"] == str(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"0.bin": b"earlier"}
