"""``.bin`` and ``.pth`` from before torch 1.6: what this container alone can get wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merge.errors import FormatError
from merge.formats import open_container
from merge.formats.torch import legacy as torch_legacy
from tests.kit.containers import require_same, saved, values

STATE = {"b": values(6, 5, dtype=torch.float16), "a": values(4), "c": values(3, 2).T}


def legacy(path: Path, state: object = STATE) -> Path:
    return saved(path, state, zipped=False)


def test_first_bytes_tell_the_container_whatever_the_name(tmp_path: Path) -> None:
    for name in ("w.bin", "w.pth", "weights"):
        path = legacy(tmp_path / name)
        assert path.read_bytes().startswith(torch_legacy.MAGIC)
        require_same(open_container(path), STATE)


def test_several_storages_are_found_each_behind_its_count(tmp_path: Path) -> None:
    state = {f"w{number}": values(number + 1, 3) + number for number in range(12)}
    require_same(open_container(legacy(tmp_path / "w.bin", state)), state)


def test_storage_shared_by_two_names_lies_in_the_file_once(tmp_path: Path) -> None:
    whole = values(100, 30)
    state = {"embed": whole, "head": whole, "part": whole[10:20]}
    path = legacy(tmp_path / "w.bin", state)
    assert path.stat().st_size < 1.5 * whole.nbytes
    require_same(open_container(path), state)


def test_data_is_not_unpacked_or_copied(tmp_path: Path) -> None:
    path = legacy(tmp_path / "w.bin")
    open_container(path)  # no folder is given to unpack into
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.bin"]


@pytest.mark.parametrize("missing", [1, 5, 40])
def test_file_that_ends_early_is_refused_with_both_sizes(tmp_path: Path, missing: int) -> None:
    path = legacy(tmp_path / "w.bin")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(FormatError, match="ends before its tensors") as caught:
        open_container(path)
    assert caught.value.facts["file"] == str(path)
    assert caught.value.facts["found"] == f"{size - missing:,} bytes"


def test_storage_of_another_size_is_refused(tmp_path: Path) -> None:
    path = legacy(tmp_path / "w.bin", {"w": values(40)})
    count = (40).to_bytes(8, "little")
    content = path.read_bytes()
    assert content.count(count) == 1
    path.write_bytes(content.replace(count, (41).to_bytes(8, "little")))
    with pytest.raises(FormatError, match="another size") as caught:
        open_container(path)
    assert (caught.value.facts["expected"], caught.value.facts["found"]) == (
        "160 bytes",
        "164 bytes",
    )


def test_big_endian_file_is_refused(tmp_path: Path) -> None:
    path = legacy(tmp_path / "w.bin")
    content = path.read_bytes()
    true, false = b"little_endianq\x02\x88", b"little_endianq\x02\x89"  # as pickle writes them
    assert content.count(true) == 1
    path.write_bytes(content.replace(true, false))
    with pytest.raises(FormatError, match="big-endian"):
        open_container(path)
