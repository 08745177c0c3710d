"""Links that somebody has put where a run writes: nothing is ever written through them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from merge.errors import OutputError
from merge.output.journal import JOURNAL_NAME
from merge.storage.lock import LOCK_NAME
from tests.kit.stopped import Merging, contents

WEIGHTS = ".consolidated.00.pth.partial"


@pytest.fixture(autouse=True)
def links(tmp_path: Path) -> None:
    try:
        (tmp_path / "link").symlink_to(tmp_path / "nothing")
    except OSError:
        pytest.skip("this user may make no links here")


def require_right(merging: Merging) -> None:
    assert contents(merging.out) == merging.whole()
    assert not any(path.is_symlink() for path in merging.out.iterdir())


@pytest.mark.parametrize("name", [WEIGHTS, ".params.json.partial", JOURNAL_NAME])
@pytest.mark.parametrize("exists", [True, False])
def test_link_in_place_of_a_leftover_is_named_and_replaced(
    one: Merging, name: str, exists: bool
) -> None:
    victim = one.folder / "victim"
    if exists:
        victim.write_bytes(b"precious")
    for option in ("overwrite", "resume"):
        shutil.rmtree(one.out, ignore_errors=True)
        one.out.mkdir()
        (one.out / name).symlink_to(victim)
        with pytest.raises(OutputError, match="an earlier run was interrupted here") as caught:
            one.merge()
        assert name in caught.value.facts["found"]
        one.merge(**{option: True})
        require_right(one)
        assert victim.exists() == exists
        assert not exists or victim.read_bytes() == b"precious"


@pytest.mark.parametrize("io", ["direct", "buffered"])
def test_link_that_comes_while_the_run_writes_is_replaced(one: Merging, io: str) -> None:
    victims = [one.folder / "first", one.folder / "second"]

    def progress(*_: int) -> None:
        for victim, name in zip(victims, (WEIGHTS, ".params.json.partial"), strict=True):
            if not os.path.lexists(one.out / name):
                (one.out / name).symlink_to(victim)

    one.merge(io=io, on_progress=progress)
    require_right(one)
    assert not any(victim.exists() for victim in victims)


@pytest.mark.parametrize("name", [WEIGHTS, JOURNAL_NAME])
def test_interrupted_run_does_not_go_on_behind_a_link(one: Merging, name: str) -> None:
    """What it leads to has the right bytes, but is somebody else's."""
    one.stop(one.nbytes // 2)
    elsewhere = (one.out / name).rename(one.folder / "elsewhere")
    (one.out / name).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    one.merge(resume=True)
    require_right(one)
    assert elsewhere.read_bytes() == before


@pytest.mark.parametrize("exists", [True, False])
def test_lock_that_is_a_link_is_refused(one: Merging, exists: bool) -> None:
    victim = one.folder / "victim"
    if exists:
        victim.write_bytes(b"precious")
    one.out.mkdir()
    (one.out / LOCK_NAME).symlink_to(victim)
    with pytest.raises(OutputError, match="is a link, which no run creates") as caught:
        one.merge(overwrite=True)
    assert str(victim) in caught.value.facts["found"]
    assert victim.exists() == exists
    assert not exists or victim.read_bytes() == b"precious"
    (one.out / LOCK_NAME).unlink()
    one.merge()
    require_right(one)
