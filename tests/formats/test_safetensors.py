"""safetensors: the library is the oracle of the reader, and reads what the writer wrote."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from merge.errors import FormatError
from merge.formats import TensorInfo, open_container
from merge.formats.safetensors import SafetensorsWriter
from tests.kit.containers import (
    FLOATS,
    INFOS,
    INTEGERS,
    ONE_BYTE_FLOATS,
    any_span,
    any_tensor,
    place_tensors,
    require_equal,
    values,
)


def saved(path: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file(state, path, metadata={"format": "pt", "note": "left alone"})
    return path


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, *ONE_BYTE_FLOATS], ids=str)
def test_every_dtype_reads_as_the_library_wrote_it(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"w": values(7, 5, dtype=dtype), "v": values(3, dtype=dtype)}
    tensors = open_container(saved(tmp_path / "w.safetensors", state))
    assert set(tensors) == set(state)
    for name, tensor in state.items():
        require_equal(tensors[name], tensor)


def test_scalars_and_empty_tensors_keep_their_shape(tmp_path: Path) -> None:
    state = {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "after": values(2, 3)}
    tensors = open_container(saved(tmp_path / "w.safetensors", state))
    for name, tensor in state.items():
        require_equal(tensors[name], tensor)


def test_first_bytes_tell_the_container_whatever_the_name(tmp_path: Path) -> None:
    state = {"w": values(4, 3)}
    require_equal(open_container(saved(tmp_path / "pytorch_model.bin", state))["w"], state["w"])


@given(data=st.data())
def test_any_rows_equal_the_slice(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensor = data.draw(any_tensor())
    path = saved(
        tmp_path_factory.mktemp("any") / "w.safetensors", {"before": values(3), "w": tensor}
    )
    start, stop = data.draw(any_span(len(tensor)))
    assert torch.equal(open_container(path)["w"].read(start, stop), tensor[start:stop])


def with_header(path: Path, header: object, data: bytes = bytes(24)) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2, 3), end: int = 24) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"w": entry(end=16)},
        {"w": entry(shape=(2, 4))},
        {"w": entry(end=4000)},
        {"w": entry(), "v": entry()},
        {"w": entry(dtype="F23")},
        {"w": {}},
        [],
    ],
    ids=["short", "shape", "beyond the end", "overlap", "dtype", "no entry", "list"],
)
def test_header_that_contradicts_itself_is_refused(tmp_path: Path, header: object) -> None:
    path = with_header(tmp_path / "w.safetensors", header)
    with pytest.raises(FormatError, match="not a whole safetensors") as caught:
        open_container(path)
    assert caught.value.facts["file"] == str(path)
    assert f"{path.stat().st_size:,} bytes" in caught.value.facts["found"]


@pytest.mark.parametrize("kept", [4, 8, 30, -1])
def test_file_that_ends_early_is_refused_with_its_size(tmp_path: Path, kept: int) -> None:
    path = saved(tmp_path / "w.safetensors", {"w": values(4, 3)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FormatError) as caught:
        open_container(path)
    assert f"{path.stat().st_size:,} bytes" in caught.value.facts["found"]
    assert "fetch" in caught.value.facts["remedy"]


def test_dtype_that_nobody_merges_is_named(tmp_path: Path) -> None:
    path = with_header(tmp_path / "w.safetensors", {"w": entry(dtype="C64", shape=(3,))})
    with pytest.raises(FormatError, match="dtype") as caught:
        open_container(path)
    assert (caught.value.facts["tensor"], caught.value.facts["found"]) == ("w", "C64")


# The writer.


def written(path: Path, piece: int = 1 << 20) -> Path:
    with path.open("wb") as stream:
        place_tensors(SafetensorsWriter(stream, INFOS), piece)
    return path


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    path = written(tmp_path / "w.safetensors")
    state = load_file(path)
    assert set(state) == {info.name for info in INFOS}
    for info in INFOS:
        assert state[info.name].dtype == info.dtype
        assert torch.equal(state[info.name], values(*info.shape, dtype=info.dtype))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # without it transformers refuses the file


def test_data_begins_aligned_and_follows_the_order_given(tmp_path: Path) -> None:
    content = written(tmp_path / "w.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert (8 + length) % 8 == 0
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    offsets = [entry["data_offsets"] for entry in header.values()]
    assert list(header) == [info.name for info in INFOS]
    assert [0, *(stop for _, stop in offsets)] == [
        *(start for start, _ in offsets),
        len(content) - 8 - length,
    ]


def test_bytes_are_the_frozen_ones_however_they_are_handed_over(tmp_path: Path) -> None:
    digests = {
        hashlib.sha256(written(tmp_path / "w", piece).read_bytes()).hexdigest()
        for piece in (1, 7, 1 << 20)
    }
    assert digests == {"4708201f58457bb9277562c11576e2d6816f46f0121ab9aadbf0c99891b39b71"}


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, *ONE_BYTE_FLOATS], ids=str)
def test_every_dtype_is_written_under_the_name_that_the_library_knows(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    with (tmp_path / "w.safetensors").open("wb") as stream:
        place_tensors(SafetensorsWriter(stream, [TensorInfo("w", (3, 5), dtype)]))
    state = load_file(tmp_path / "w.safetensors")
    assert state["w"].dtype == dtype
    assert torch.equal(state["w"].float(), values(3, 5, dtype=dtype).float())
