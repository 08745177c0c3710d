"""Files that are no weights, and damage anywhere in those that are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from merge.errors import FormatError
from merge.formats import open_container
from merge.storage.offload import Offload
from tests.kit.containers import values

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 876543210\n"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "consolidated.00.pth"])
@pytest.mark.parametrize(
    ("content", "sentence", "found"),
    [
        (b"", "is empty", None),
        (LFS, "Git LFS pointer", f"{len(LFS)} bytes of text"),
        (b"<!DOCTYPE html>\n<html>Sign in</html>", "this is no", "<!DOCTYP"),
        (b"Entry not found", "this is no", "Entry no"),
        (b"PK", "this is no", "PK"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "this is no", "NUMPY"),
    ],
    ids=["empty", "lfs", "html", "not found", "two bytes", "numpy"],
)
def test_what_is_no_weight_file_is_refused(
    tmp_path: Path, name: str, content: bytes, sentence: str, found: str | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError, match=sentence) as caught:
        open_container(path)
    facts = caught.value.facts
    assert facts["file"] == str(path)
    assert facts["remedy"]
    if found and (path.suffix != ".safetensors" or content == LFS):
        assert found in facts["found"]


def torch_zip(path: Path) -> None:
    torch.save({"w": values(6, 5), "v": values(3, 4).T}, path)


def torch_legacy(path: Path) -> None:
    torch.save({"w": values(6, 5)}, path, _use_new_zipfile_serialization=False)


def safetensors(path: Path) -> None:
    save_file({"w": values(6, 5), "v": values(3)}, path)


writers = pytest.mark.parametrize("write", [torch_zip, torch_legacy, safetensors])


@writers
def test_file_cut_off_anywhere_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "w.bin"
    write(path)
    content = path.read_bytes()
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(FormatError) as caught:
            open_container(path)
        assert caught.value.facts["file"] == str(path), length


@writers
@given(data=st.data())
def test_damage_anywhere_is_refused_or_harmless(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, write: Callable[[Path], None]
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "w.bin"
    write(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with Offload(None, folder) as offload:
        try:
            tensors = open_container(path, offload)
            for tensor in tensors.values():
                tensor.read()
        except FormatError as error:
            assert error.facts["file"] == str(path)  # noqa: PT017
