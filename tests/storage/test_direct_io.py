"""Reading and writing past the page cache: the same bytes, wherever they begin and end."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from merge import merge_lora
from merge.settings import IO_MODES, IoMode
from merge.storage.direct_io import READ_BYTES
from merge.storage.input_file import InputFile
from merge.storage.output_stream import create_stream
from tests.kit.adapters import make_adapter
from tests.kit.llamas import make_base

MIB = 1 << 20


@pytest.fixture(scope="module")
def content() -> bytes:
    """Twenty MiB and a bit that no range of can be taken for another."""
    return random.Random(0).randbytes(20 * MIB + 12345)


@pytest.fixture
def cold(tmp_path: Path, content: bytes) -> Path:
    """The content in a file that the page cache does not hold, where that can be had."""
    path = tmp_path / "input"
    path.write_bytes(content)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def ranges() -> Iterator[tuple[int, int]]:
    """Beginnings and lengths around pages, requests, and the end of the file."""
    end = 20 * MIB + 12345
    yield from [(0, end), (0, 4096), (1, MIB), (4095, READ_BYTES + 1), (64, 8 * MIB)]
    yield from [(end - 300_000, 300_000), (end - 1, 1), (end, 0)]
    rng = random.Random(1)
    for _ in range(30):
        start = rng.randrange(end)
        yield start, rng.randrange(end - start)


@pytest.mark.parametrize("io", IO_MODES)
def test_every_range_reads_the_same(cold: Path, content: bytes, io: IoMode) -> None:
    file = InputFile(cold, io)
    for start, length in ranges():
        buffer = bytearray(length)
        file.read_into(memoryview(buffer), start)
        assert buffer == content[start : start + length], (start, length)
    file.close()


@pytest.mark.parametrize("io", IO_MODES)
@pytest.mark.parametrize("length", [0, 1, 4096, 5000, MIB, MIB + 1, 3 * MIB, 7 * MIB + 999])
def test_a_stream_arrives_whole(tmp_path: Path, content: bytes, io: IoMode, length: int) -> None:
    path = tmp_path / "output"
    rng = random.Random(length)
    with create_stream(path, io, MIB) as stream:
        done = 0
        while done < length:
            step = min(length - done, rng.choice([1, 100, 4096, 70_000, 3 * MIB]))
            # headers come as bytes, tensors as memory that may be written
            part = content[done : done + step]
            stream.write(part if rng.random() < 0.5 else memoryview(bytearray(part)))
            done += step
        stream.flush()
        os.fsync(stream.fileno())
        assert path.stat().st_size == length
    assert path.read_bytes() == content[:length]


def test_a_file_is_written_over_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(b"x" * (2 * MIB))
    with create_stream(path, "auto", MIB) as stream:
        stream.write(b"short")
    assert path.read_bytes() == b"short"


@pytest.mark.parametrize("shards", [1, 2])
def test_a_merge_gives_the_same_bytes_either_way(tmp_path: Path, shards: int) -> None:
    base = make_base(
        tmp_path / "base",
        vocab_size=1001,
        hidden_size=768,
        intermediate_size=904,
        num_hidden_layers=1,
        max_shard_size="10GB",
    )
    adapter = make_adapter(tmp_path / "lora", base, rows=1100)
    outputs = []
    for io in IO_MODES:
        out = tmp_path / io
        merge_lora(base, adapter, out, num_shards=shards, io=io)
        outputs.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert all(output == outputs[0] for output in outputs)


def test_memory_of_a_read_is_filled_in_place(cold: Path, content: bytes) -> None:
    out = torch.zeros(3 * MIB, dtype=torch.uint8)
    InputFile(cold).read_into(memoryview(out.numpy())[100:], 77)
    assert bytes(out.numpy()[:100]) == bytes(100)
    assert bytes(out.numpy()[100:]) == content[77 : 77 + 3 * MIB - 100]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as Linux counts it")
def test_a_file_that_is_whole_keeps_no_memory(tmp_path: Path) -> None:
    def shared_kib() -> int:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("RssShmem:")[1].split()[0])

    before = shared_kib()
    streams = [create_stream(tmp_path / f"{number}", "auto", 4 << 20) for number in range(4)]
    for stream in streams:
        for _ in range(9):
            stream.write(bytes(1 << 20))
    assert shared_kib() - before >= 4 * 2 * 4096
    for stream in streams:
        stream.flush()
        stream.close()
    assert shared_kib() - before < 4096
    assert len({stream.hexdigest() for stream in streams}) == 1
