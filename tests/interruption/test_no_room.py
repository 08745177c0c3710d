"""A disk that is really full: a small file system of its own, where root may mount one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from merge.errors import OutputError
from merge.output.journal import JOURNAL_NAME
from tests.kit.small_disk import fill
from tests.kit.stopped import Merging, contents


@pytest.mark.parametrize("share", [0.4, 0.8, 1.0])
def test_run_goes_on_when_there_is_room_again(merging: Merging, disk: Path, share: float) -> None:
    limit, filler, out = int(share * merging.nbytes), disk / "filler", disk / "out"

    def progress(written: int, _: int) -> None:
        if written >= limit and not filler.exists():
            fill(filler)

    whole = merging.whole()
    with pytest.raises(OutputError, match="the disk is full") as caught:
        merging.merge(output_dir=out, on_progress=progress)
    assert caught.value.facts["file"] == str(out)
    assert caught.value.facts["found"] == os.strerror(errno.ENOSPC)
    assert "what was written is kept" in caught.value.facts["remedy"]
    assert all(path.name.startswith(".") for path in out.iterdir())
    assert (out / JOURNAL_NAME).is_file()
    filler.unlink()
    report = merging.merge(output_dir=out, resume=True)
    assert contents(out) == whole
    assert "resumed after" in report.notes[0]


def test_earlier_result_stays_when_there_is_no_room_for_the_next(one: Merging, disk: Path) -> None:
    out, filler = disk / "out", disk / "filler"
    one.merge(output_dir=out, lora_weights="0.5")
    earlier = contents(out)

    def progress(*_: int) -> None:
        if not filler.exists():
            fill(filler)

    with pytest.raises(OutputError, match="the disk is full"):
        one.merge(output_dir=out, overwrite=True, on_progress=progress)
    assert {name: data for name, data in contents(out).items() if name in earlier} == earlier
    filler.unlink()
    one.merge(output_dir=out, overwrite=True)
    assert contents(out) == one.whole()
