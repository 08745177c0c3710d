"""Two runs on one output folder: the second is refused, and a dead one is no hindrance."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from merge.errors import OutputError
from merge.output.staged_folder import StagedFolder, lock_folder
from merge.storage.lock import LOCK_NAME, FolderLock, require_unlocked
from merge.storage.offload import Offload

HOLD = """
import sys, time
from pathlib import Path
from merge.storage.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_run_is_refused_and_told_which_process_writes(tmp_path: Path) -> None:
    with lock_folder(tmp_path), StagedFolder(tmp_path) as staged:
        staged.write("a", b"first")
        for second in (
            lambda: lock_folder(tmp_path).__enter__(),
            lambda: require_unlocked(tmp_path),
        ):
            with pytest.raises(OutputError, match="another run is writing") as caught:
                second()
            assert caught.value.facts["found"] == f"process {os.getpid()}"
            assert caught.value.facts["file"] == str(tmp_path)
            assert "--output_dir" in caught.value.facts["remedy"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with lock_folder(tmp_path), StagedFolder(tmp_path) as staged:
        staged.write("a", b"third")
    assert (tmp_path / "a").read_bytes() == b"third"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows kills no process by a signal")
def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OutputError) as caught:
            FolderLock(tmp_path).__enter__()
        assert caught.value.facts["found"] == f"process {process.pid}"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / LOCK_NAME).is_file()
    require_unlocked(tmp_path)
    with FolderLock(tmp_path):
        assert (tmp_path / LOCK_NAME).read_text(encoding="utf-8") == str(os.getpid())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows kills no process by a signal")
def test_what_a_killed_process_unpacked_is_removed_by_the_next(tmp_path: Path) -> None:
    text = HOLD.replace("FolderLock(Path(sys.argv[1]))", "Offload(None, Path(sys.argv[1])) as o")
    text = text.replace(
        "merge.storage.lock import FolderLock", "merge.storage.offload import Offload"
    )
    text = text.replace('print("held"', "print(o.ensure_folder().name")
    (tmp_path / ".offload-mine").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path)], stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        theirs = tmp_path / process.stdout.readline().strip()
        (theirs / "unpacked").write_text("large", encoding="utf-8")
        with Offload(None, tmp_path / "out") as offload:
            ours = offload.ensure_folder()
            assert theirs.is_dir()
        process.send_signal(signal.SIGKILL)
        process.wait()
    with Offload(None, tmp_path / "out") as offload:
        assert offload.ensure_folder() != ours
        assert not theirs.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".offload-mine"]


def test_folder_that_was_made_for_a_run_that_wrote_nothing_goes_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), lock_folder(tmp_path / "a" / "b"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_folder_that_goes_while_somebody_waits_for_it_is_made_again(tmp_path: Path) -> None:
    """As when another run had made it, and ends without a result."""
    lock = FolderLock(tmp_path / "gone")
    with lock:
        assert [path.name for path in tmp_path.rglob("*")] == ["gone", LOCK_NAME]
