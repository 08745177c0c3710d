"""``.bin`` and ``.pth`` of today: torch.save is the oracle of the reader, torch.load and zipfile of
the writer."""

from __future__ import annotations

import hashlib
import io
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from merge.errors import FormatError
from merge.formats import TensorInfo, open_container
from merge.formats.torch.archive import TorchZipWriter
from merge.storage.offload import Offload
from tests.kit.containers import INFOS, place_tensors, require_same, saved, values
from tests.kit.files import tree


def recompress(path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Pack an archive again, as file managers and some upload tools do."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_archive_is_unpacked_and_nothing_remains(tmp_path: Path, method: int) -> None:
    state = {"w": values(40, 30), "t": values(30, 40).T}
    path = recompress(saved(tmp_path / "w.bin", state), method)
    before = tree(tmp_path)
    with Offload(tmp_path / "deep" / "offload", tmp_path) as offload:
        require_same(open_container(path, offload), state)
        assert (tmp_path / "deep" / "offload").is_dir()
    assert tree(tmp_path) == before


def test_two_compressed_files_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    states = [{"w": values(40, 30) + number} for number in range(2)]
    for number, state in enumerate(states):
        (tmp_path / str(number)).mkdir()
        recompress(saved(tmp_path / str(number) / "adapter_model.bin", state))
    with Offload(None, tmp_path) as offload:
        opened = [
            open_container(tmp_path / str(number) / "adapter_model.bin", offload)
            for number in range(2)
        ]
        for tensors, state in zip(opened, states, strict=True):
            require_same(tensors, state)


def test_compressed_archive_needs_room_to_be_unpacked(tmp_path: Path) -> None:
    path = recompress(saved(tmp_path / "w.bin", {"w": values(40, 30)}))
    with pytest.raises(FormatError, match="compressed") as caught:
        open_container(path)
    assert "--offload_dir" in caught.value.facts["remedy"]


@pytest.mark.parametrize("record", ["data.pkl", "data/0"])
def test_damaged_compressed_record_is_named(tmp_path: Path, record: str) -> None:
    path = recompress(saved(tmp_path / "w.bin", {"w": values(40, 30)}))
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith(record))
    content = bytearray(path.read_bytes())
    first = info.header_offset + 30 + len(info.filename)
    content[first : first + 8] = b"\xff" * 8
    path.write_bytes(content)
    with Offload(None, tmp_path) as offload, pytest.raises(FormatError) as caught:
        open_container(path, offload)
    assert record in caught.value.facts["found"]


def rewritten_pickle(path: Path, old: bytes, new: bytes) -> Path:
    """Change the pickle inside an archive and nothing else."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            changed = data.replace(old, new) if name.endswith("data.pkl") else data
            assert changed != data or not name.endswith("data.pkl")
            archive.writestr(name, changed)
    return path


def test_tensor_that_reaches_outside_its_storage_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.bin", {"w": values(4, 3), "secret": values(99)})
    shape, longer = b"K\x04K\x03\x86", b"K\x40K\x03\x86"  # (4, 3) and (64, 3) as pickle says it
    with pytest.raises(FormatError) as caught:
        open_container(rewritten_pickle(path, shape, longer))
    assert caught.value.facts["file"] == str(path)


def test_archive_without_the_data_of_a_tensor_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.bin", {"w": values(4, 3)})
    with zipfile.ZipFile(path) as archive:
        records = {i.filename: archive.read(i) for i in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            if not name.endswith("data/0"):
                archive.writestr(name, data)
    with pytest.raises(FormatError, match="lacks the data") as caught:
        open_container(path)
    assert caught.value.facts["expected"].endswith("data/0")


def test_big_endian_archive_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.bin", {"w": values(4, 3)})
    content = path.read_bytes().replace(b"little", b"bigbig")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:  # its CRC is checked, so pack it again
        names = [i.filename for i in archive.infolist()]
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in names}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, b"big" if name.endswith("byteorder") else data)
    with pytest.raises(FormatError, match="big-endian"):
        open_container(path)


def test_zip_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llama-7b/config.json", "{}")
    with pytest.raises(FormatError, match="not a torch checkpoint"):
        open_container(path)


# The writer.


def written(path: Path, infos: Sequence[TensorInfo] = INFOS, piece: int = 1 << 20) -> Path:
    with path.open("wb") as stream:
        place_tensors(TorchZipWriter(stream, infos), piece)
    return path


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_was_written(tmp_path: Path, mmap: bool) -> None:
    state = torch.load(written(tmp_path / "w.pth"), weights_only=True, mmap=mmap)
    assert list(state) == [info.name for info in INFOS]
    for info in INFOS:
        tensor = state[info.name]
        assert tensor.dtype == info.dtype
        assert torch.equal(tensor, values(*info.shape, dtype=info.dtype))
        assert tensor.is_contiguous()
        assert tensor.storage_offset() == 0
        assert tensor.untyped_storage().nbytes() == info.nbytes  # its own, and no byte more
        assert (tensor.device.type, tensor.requires_grad) == ("cpu", False)
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)


def test_zipfile_finds_every_checksum_right(tmp_path: Path) -> None:
    path = written(tmp_path / "w.pth")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    words = [sys.executable, "-m", "zipfile", "-t", str(path)]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout.strip()) == (0, "Done testing")


def test_data_of_every_record_begins_on_a_64_byte_boundary(tmp_path: Path) -> None:
    path = written(tmp_path / "w.pth")
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            header = content[info.header_offset : info.header_offset + 30]
            lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]
            first = info.header_offset + 30 + sum(lengths)
            assert first % 64 == 0, info.filename
            assert content[first : first + info.file_size] == archive.read(info)


def test_records_are_those_that_torch_itself_writes(tmp_path: Path) -> None:
    torch.save({"w": values(2)}, tmp_path / "torch.pth")
    written(tmp_path / "ours.pth", INFOS[:1])
    records = {}
    for name in ("torch", "ours"):
        with zipfile.ZipFile(tmp_path / f"{name}.pth") as archive:
            roots = {info.filename.split("/")[0] for info in archive.infolist()}
            assert len(roots) == 1
            records[name] = {
                info.filename.split("/", 1)[1]: archive.read(info) for info in archive.infolist()
            }
    for name in ("byteorder", "version"):
        assert records["ours"][name] == records["torch"][name]
    assert set(records["ours"]) == {"data.pkl", "byteorder", "data/0", "version"}


def test_pickle_names_torch_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(written(tmp_path / "w.pth")) as archive:
        pickled = archive.read("archive/data.pkl")
    called = {arg for op, arg, _ in pickletools.genops(pickled) if op.name == "GLOBAL"}
    assert called == {
        "collections OrderedDict",
        "torch BFloat16Storage",
        "torch FloatStorage",
        "torch HalfStorage",
        "torch._utils _rebuild_tensor_v2",
    }


def test_bytes_are_the_frozen_ones_however_they_are_handed_over(tmp_path: Path) -> None:
    digests = {
        hashlib.sha256(written(tmp_path / "w.pth", piece=piece).read_bytes()).hexdigest()
        for piece in (1, 7, 1 << 20)
    }
    assert digests == {"bd291633eb033fb2e71266d1e4a8ea60e16b3ce7c780e2a8445f92145777d13f"}


class Discarding(io.RawIOBase):
    """Counts what is written, and keeps the headers: writes of a few bytes."""

    def __init__(self) -> None:
        self.count = 0
        self.small: dict[int, bytes] = {}

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        if len(data) < 4096:
            self.small[self.count] = bytes(data)
        self.count += len(data)
        return len(data)


@pytest.mark.slow
def test_record_beyond_4_gib_says_its_size() -> None:
    gib = 5
    stream = Discarding()
    infos = [
        TensorInfo("large", (gib, 1 << 29), torch.float16),
        TensorInfo("small", (3,), torch.float16),
    ]
    writer = TorchZipWriter(_as_binary(stream), infos)
    block = memoryview(bytearray(1 << 24))
    for _ in range(gib * 64):
        writer.write(block)
    writer.write(memoryview(b"abcdef"))
    writer.close()
    assert stream.count > gib << 30
    # The end of the file alone: zipfile reads the sizes from its directory.
    sparse = Sparse(stream)
    with zipfile.ZipFile(sparse) as archive:  # type: ignore[arg-type]
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        assert sizes["archive/data/0"] == gib << 30
        assert archive.read("archive/data/1") == b"abcdef"


def _as_binary(stream: io.RawIOBase) -> BinaryIO:
    return stream  # type: ignore[return-value]


class Sparse(io.RawIOBase):
    """Reads back what ``Discarding`` kept; all else are zeros."""

    def __init__(self, kept: Discarding) -> None:
        self._kept = kept
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._kept.count}[whence]
        return self._at

    def read(self, count: int = -1) -> bytes:
        stop = self._kept.count if count < 0 else min(self._kept.count, self._at + count)
        assert stop - self._at < 1 << 24, "a test reads no data"
        content = bytearray(stop - self._at)
        for first, piece in self._kept.small.items():
            low, high = max(first, self._at), min(first + len(piece), stop)
            if low < high:
                content[low - self._at : high - self._at] = piece[low - first : high - first]
        self._at = stop
        return bytes(content)


def test_writer_refuses_data_that_crosses_tensors(tmp_path: Path) -> None:
    with (tmp_path / "w.pth").open("wb") as stream:
        writer = TorchZipWriter(stream, INFOS)
        with pytest.raises(AssertionError, match="crosses"):
            writer.write(memoryview(bytes(INFOS[0].nbytes + 2)))
