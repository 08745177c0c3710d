"""Positioned reads from several threads, and a tensor's bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from merge.errors import FormatError
from merge.formats import InputFile
from merge.storage.input_file import view_as_bytes
from tests.kit.containers import values


class TakingTurns(InputFile):
    """Reads as on Windows, where a file has one place at which it is read."""

    positioned = False


kinds = pytest.mark.parametrize("kind", [InputFile, TakingTurns])


@kinds
def test_threads_do_not_disturb_each_other(tmp_path: Path, kind: type[InputFile]) -> None:
    content = bytes(values(1 << 18, dtype=torch.uint8).numpy())
    (tmp_path / "w").write_bytes(content)
    file = kind(tmp_path / "w")
    places = [(start * 7919 % (len(content) - 999), start % 999) for start in range(400)]
    with ThreadPoolExecutor(8) as pool:
        for (start, count), data in zip(
            places, pool.map(lambda place: file.read(*place), places), strict=True
        ):
            assert data == content[start : start + count]
    file.close()


@kinds
def test_reading_beyond_the_end_tells_both_sizes(tmp_path: Path, kind: type[InputFile]) -> None:
    (tmp_path / "w").write_bytes(bytes(100))
    file = kind(tmp_path / "w")
    with pytest.raises(FormatError, match="ends before") as caught:
        file.read(90, 20)
    assert caught.value.facts["expected"] == "at least 110 bytes"
    assert caught.value.facts["found"] == "100 bytes"


@kinds
def test_closed_file_is_opened_again(tmp_path: Path, kind: type[InputFile]) -> None:
    (tmp_path / "w").write_bytes(b"0123456789")
    file = kind(tmp_path / "w")
    assert file.read(2, 3) == b"234"
    file.close()
    file.close()
    assert file.read(7, 3) == b"789"
    assert file.size == 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_bytes_of_a_tensor_are_its_memory(dtype: torch.dtype) -> None:
    tensor = values(3, 4, dtype=dtype)
    memory = view_as_bytes(tensor)
    assert memory.nbytes == tensor.nbytes
    memory[:] = bytes(len(memory))
    assert not tensor.float().any()
