"""GGUF files, read and written beside llama.cpp's own ``gguf`` package."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge.errors import FormatError
from merge.formats import InputFile, TensorInfo, open_container
from merge.formats import gguf as container

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


def _values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _write(path: Path, tensors: dict[str, tuple[np.ndarray, object]], arch: str = "llama") -> Path:
    """Let the package write a file with a little metadata of every kind."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_uint32("a.number", 7)
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "中文")
    writer.add_array("a.texts", ["一", "two", ""])
    writer.add_array("a.numbers", [1, -2, 3])
    for name, (values, kind) in tensors.items():
        data = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


KINDS = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "Q8_0": torch.float32,
}


@pytest.mark.parametrize("name", KINDS)
def test_tensors_are_read_as_the_package_reads_them(tmp_path: Path, name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    path = _write(
        tmp_path / "m.gguf",
        {"odd": (_values(3), gguf.GGMLQuantizationType.F32), "w": (_values(70, 96, seed=1), kind)},
    )
    ours = open_container(path)["w"]
    theirs = next(t for t in gguf.GGUFReader(path).tensors if t.name == "w")
    expected = gguf.quants.dequantize(theirs.data, kind)
    assert ours.dtype == KINDS[name]
    assert ours.shape == (70, 96)
    np.testing.assert_array_equal(ours.read().float().numpy(), expected)
    np.testing.assert_array_equal(ours.read(33, 41).float().numpy(), expected[33:41])


def test_metadata_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.gguf", {"w": (_values(2, 32), gguf.GGMLQuantizationType.F16)})
    assert container.read(InputFile(path)).metadata == {
        "general.architecture": "llama",
        "a.number": 7,
        "a.float": 0.5,
        "a.bool": True,
        "a.text": "中文",
        "a.texts": ["一", "two", ""],
        "a.numbers": [1, -2, 3],
    }


def test_the_writer_puts_every_tensor_where_the_package_looks(tmp_path: Path) -> None:
    """The header is the package's; the data behind it are written here, unevenly cut."""
    values = {"a": _values(3), "b": _values(5, 32, seed=1), "c": _values(7, seed=2)}
    path = _write(
        tmp_path / "m.gguf", {n: (v, gguf.GGMLQuantizationType.F32) for n, v in values.items()}
    )
    whole = path.read_bytes()
    start = gguf.GGUFReader(path).data_offset
    with (tmp_path / "ours.gguf").open("wb") as stream:
        stream.write(whole[:start])
        infos = [TensorInfo(n, v.shape, torch.float32) for n, v in values.items()]
        writer = container.GgufWriter(stream, infos)
        for array in values.values():
            data = memoryview(array.tobytes())
            writer.write(data[:4])
            writer.write(data[4:])
        assert writer.is_complete
        writer.close()
    assert (tmp_path / "ours.gguf").read_bytes() == whole


def test_other_types_are_refused_by_name(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.gguf", {"w": (_values(2, 32), gguf.GGMLQuantizationType.Q4_0)})
    with pytest.raises(FormatError, match="Q4_0"):
        open_container(path)


def _with_list_of(data: bytes, count: int) -> bytes:
    """A file whose list of texts claims another length."""
    place = data.index(b"a.texts") + len("a.texts") + 8
    return data[:place] + struct.pack("<Q", count) + data[place + 8 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"GGUX" + d[4:], "not a weight file of a known format"),
        (lambda d: d[:4] + struct.pack("<I", 1) + d[8:], "version 1"),
        (lambda d: d[:4] + struct.pack(">I", 3) + d[8:], "big-endian"),
        (lambda d: d[:8] + struct.pack("<Q", 1 << 60) + d[16:], "not a whole GGUF file"),
        (lambda d: d[:16] + struct.pack("<Q", 1 << 60) + d[24:], "not a whole GGUF file"),
        (lambda d: d[:24] + struct.pack("<Q", 1 << 63) + d[32:], "not a whole GGUF file"),
        (lambda d: d[:-1], "ends before its tensors"),
        (lambda d: _with_list_of(d, 1 << 40), "a list of 1,099,511,627,776 values"),
        (lambda d: d[:60], "not a whole GGUF file"),
    ],
    ids=[
        "magic",
        "version",
        "byte order",
        "tensors",
        "keys",
        "key length",
        "data",
        "list",
        "header",
    ],
)
def test_broken_files_are_refused(tmp_path: Path, change: object, message: str) -> None:
    path = _write(tmp_path / "m.gguf", {"w": (_values(2, 32), gguf.GGMLQuantizationType.F16)})
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(FormatError, match=message):
        open_container(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    return _write(path, {"w": (_values(2, 32), gguf.GGMLQuantizationType.Q8_0)})


@settings(deadline=None)
@given(data=st.data())
def test_no_byte_of_a_header_breaks_the_reader(whole: Path, data: st.DataObject) -> None:
    """Whatever is wrong in a header, the file is read or refused."""
    content = bytearray(whole.read_bytes())
    for place in data.draw(st.lists(st.integers(0, 400), min_size=1, max_size=4)):
        content[place % len(content)] = data.draw(st.integers(0, 255))
    path = whole.with_name("fuzzed.gguf")
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        for tensor in open_container(path).values():
            tensor.read()
    except FormatError:
        pass
