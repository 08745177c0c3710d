"""Zip archives that expand without end, lead out of their folder, or contradict themselves."""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from merge.formats import open_container
from merge.storage.offload import Offload
from merge.storage.zipped_adapter import find_adapter_folder, unpack
from tests.kit.models import adapter_tensors, save_adapter, save_base
from tests.kit.refusals import MIB, refused

MANY = 300 * MIB


def repacked(path: Path) -> Path:
    """The archive as Python packs it."""
    with zipfile.ZipFile(path) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def opened(path: Path) -> object:
    with Offload(None, path.parent) as offload:
        return open_container(path, offload)


def zeros(archive: zipfile.ZipFile, name: str, nbytes: int) -> None:
    """A deflated record of zeros, without making them."""
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    block = bytes(MIB)
    with archive.open(info, "w", force_zip64=True) as sink:
        for _ in range(nbytes // MIB):
            sink.write(block)


def test_weights_that_expand_without_end_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    torch.save({"w": torch.empty(1)}, path)
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("w/data.pkl")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", pickled)
        zeros(archive, "w/data/0", MANY)
    assert path.stat().st_size < 2 * MIB
    error = refused(lambda: opened(path), mib=50)
    assert "expand" in error.sentence
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.bin"]


def test_pickle_that_expands_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        zeros(archive, "w/data.pkl", 40 * MIB)
    error = refused(lambda: opened(path), mib=50)
    assert "data.pkl" in error.facts["found"]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_size_that_a_record_announces_is_its_bound(tmp_path: Path, method: int) -> None:
    """Its directory says 100 bytes; a few hundred expand to 64 MB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("w/data.pkl", bytes(64 * MIB))
    content = buffer.getvalue().replace((64 * MIB).to_bytes(4, "little"), b"d\0\0\0")
    path = tmp_path / "w.bin"
    path.write_bytes(content)
    refused(lambda: opened(path), file=path, mib=200)


def test_records_on_one_place_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    torch.save({"w": torch.ones(9), "v": torch.zeros(9)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        first, second = (archive.getinfo(f"w/data/{n}").header_offset for n in (0, 1))
    end = content.rindex(second.to_bytes(4, "little") + b"w/data/1")
    content[end : end + 4] = first.to_bytes(4, "little")
    path.write_bytes(content)
    assert "contradicts" in refused(lambda: opened(path)).sentence


def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    torch.save({"w": torch.ones(9)}, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("w/data/0", bytes(36))
    assert "w/data/0" in refused(lambda: opened(path)).facts["found"]


@pytest.mark.parametrize(("offset", "value"), [(12, 0x7FFFFFFF), (16, 0x7FFFFFFF), (16, 0)])
def test_directory_is_not_believed(tmp_path: Path, offset: int, value: int) -> None:
    path = tmp_path / "w.bin"
    torch.save({"w": torch.ones(9)}, path)
    repacked(path)  # torch writes sizes in 64 bits too
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06") + offset
    content[end : end + 4] = value.to_bytes(4, "little")
    path.write_bytes(content)
    refused(lambda: opened(path), file=path, mib=20)


def test_directory_of_many_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(70):
            archive.writestr(f"{number:065000}", b"")
    error = refused(lambda: opened(path), mib=20)
    assert "directory" in error.facts["found"]


def test_pickle_with_another_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    torch.save({"weight": torch.ones(9)}, path)
    content = path.read_bytes().replace(b"weight", b"weighs", 1)
    path.write_bytes(content)
    assert "CRC-32" in refused(lambda: opened(path)).facts["found"]
    assert zlib.crc32(b"weight") != zlib.crc32(b"weighs")


@pytest.mark.parametrize("step", [1, 3, 100])
def test_flipped_bit_is_found_when_the_tensor_has_passed(tmp_path: Path, step: int) -> None:
    """In whatever order its rows are read."""
    path = tmp_path / "w.bin"
    torch.save({"v": torch.ones(4), "w": torch.arange(1000.0).view(100, 10)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 1234] ^= 4
    path.write_bytes(content)
    tensors = open_container(path)
    assert torch.equal(tensors["v"].read(), torch.ones(4))
    read = tensors["w"].reader()
    starts = [*range(0, 100, 2 * step), *range(step, 100, 2 * step)]

    def whole() -> None:
        for start in starts:
            stop = min(start + step, 100)
            read(start, stop, torch.empty(stop - start, 10))

    error = refused(whole)
    assert error.facts["tensor"] == "w"
    assert "CRC-32" in error.facts["expected"]


def test_archive_without_checksums_is_read(tmp_path: Path) -> None:
    """As torch writes when it is told to; Python's zipfile refuses these."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(5)}, tmp_path / "w.bin")
    finally:
        torch.serialization.set_crc32_options(before)
    tensors = open_container(tmp_path / "w.bin")
    assert torch.equal(tensors["w"].read(), torch.arange(5))


# A zipped adapter.

NAMES = {
    "climbs": "../evil.json",
    "climbs from inside": "chinese/../../evil.json",
    "absolute": "/tmp/evil.json",
    "of a drive": "C:/evil.json",
    "of a drive, relative": "C:evil.json",
    "backslashes": "..\\..\\evil.json",
    "dots at the end": "chinese/..",
    "double": "chinese/./adapter_config.json",
}


def zipped(folder: Path, name: str, data: bytes = b"{}", mode: int = 0o100644) -> Path:
    adapter = save_adapter(folder / "adapter", adapter_tensors())
    path = folder / "adapter.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in adapter.iterdir():
            archive.write(file, f"chinese/{file.name}")
        info = zipfile.ZipInfo(name)
        info.filename = name  # zipfile would mend it
        info.external_attr = mode << 16
        archive.writestr(info, data)
    return path


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path, name)
    before = sorted(tmp_path.rglob("*"))
    error = refused(lambda: find_adapter_folder(path))
    assert name.split("/")[-1] in error.facts["found"].replace("\\\\", "\\")
    assert sorted(tmp_path.rglob("*")) == before


def test_link_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path, "chinese/tokenizer.model", b"/etc/passwd", stat.S_IFLNK | 0o777)
    assert "a link" in refused(lambda: find_adapter_folder(path)).facts["found"]


def test_adapter_that_expands_without_end_is_not_unpacked(tmp_path: Path) -> None:
    from merge import merge_lora

    base = save_base(tmp_path / "base")
    path = zipped(tmp_path, "chinese/README.md")
    with zipfile.ZipFile(path, "a") as archive:
        zeros(archive, "chinese/optimizer.bin", MANY)
    error = refused(lambda: merge_lora(base, path, tmp_path / "out"), mib=50)
    assert "expand" in error.sentence
    assert not (tmp_path / "out").exists()


def test_ordinary_archive_is_unpacked(tmp_path: Path) -> None:
    path = zipped(tmp_path, "chinese/README.md")
    inside = find_adapter_folder(path)
    assert inside == "chinese"
    with Offload(None, tmp_path) as offload:
        names = sorted(file.name for file in unpack(path, inside, offload).iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.bin"]
