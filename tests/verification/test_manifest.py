"""A manifest is read as what it must be, or refused in one message."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from merge import merge_lora, verify_merge
from merge.commands.verify_merge import main
from merge.errors import FormatError
from tests.kit.content_digests import OF_BLOCKS, WHOLE, hash_whole
from tests.kit.files import load_weights
from tests.kit.models import save_adapter, save_base
from tests.kit.spoiled_results import manifest, spoil, vouch

Place = tuple[str | int, ...]
TENSOR = ("tensors", "lm_head.weight")
ADAPTER = ("inputs", "adapters", 0)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    base, lora = save_base(folder / "base"), save_adapter(folder / "lora")
    merge_lora(base, lora, folder / "out", output_type="huggingface")
    return folder / "out"


@pytest.fixture
def out(merged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(merged, tmp_path / "out"))


def put(folder: Path, said: Any, place: Place, value: object) -> None:
    """Write the manifest with another value in one place."""
    said = inner = copy.deepcopy(said)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (folder / "merge_manifest.json").write_text(json.dumps(said), encoding="utf-8")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((*ADAPTER, "weight"), None),
        ((*ADAPTER, "weight"), "x"),
        ((*ADAPTER, "weight"), []),
        ((*ADAPTER, "weight"), 10**400),
        ((*ADAPTER, "files"), None),
        ((*ADAPTER, "files"), 7),
        ((*ADAPTER, "files"), "x"),
        ((*ADAPTER, "files"), [1]),
        ((*ADAPTER, "source"), ""),
        (("inputs", "base_model", "source"), "a\0b"),
        (("inputs", "base_model", "source"), "x" * 5000),
        (("dtype",), "x"),
        (("dtype",), None),
        (("rounding",), "xyz"),
        (("vocab_mismatch",), "xyz"),
        (("new_token_init",), 1),
        (("pad_to_multiple_of",), 0),
        ((*TENSOR, "shape"), 5),
        ((*TENSOR, "shape"), None),
        ((*TENSOR, "shape"), [-1]),
        ((*TENSOR, OF_BLOCKS), "short"),
        (("files", "x" * 300), {"bytes": 1, "sha256": "0" * 64}),
        (("files", ".."), {"bytes": 1, "sha256": "0" * 64}),
        (("files", "a\0b"), {"bytes": 1, "sha256": "0" * 64}),
        (("files", "config.json"), {"bytes": True, "sha256": "0" * 64}),
    ],
    ids=lambda value: str(value)[:40].replace("\0", "0"),
)
def test_a_value_that_cannot_be_is_refused_by_its_place(
    out: Path, capsys: pytest.CaptureFixture[str], place: Place, value: object
) -> None:
    put(out, manifest(out), place, value)
    for more in ([], ["--files_only"]):
        assert main(["--output_dir", str(out), *more]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: the manifest is not one of this program")
        assert str(place[0]) in said.partition("expected:")[2].partition("\n")[0]


def _places(value: Any, here: Place = ()) -> Iterator[Place]:
    if here:
        yield here
    if isinstance(value, dict):
        for key in list(value)[:3]:
            yield from _places(value[key], (*here, key))
    elif isinstance(value, list) and value:
        yield from _places(value[0], (*here, 0))


@pytest.mark.parametrize(
    "value", [None, -1, "x", [], [1], {}, {"a": 1}, True, "a\nb", 1.5], ids=str
)
def test_no_value_anywhere_ends_in_anything_but_a_message(out: Path, value: object) -> None:
    said = manifest(out)
    for place in _places(said):
        put(out, said, place, value)
        try:
            verify_merge(out, files_only=True)
        except FormatError:
            continue


def test_digests_that_the_manifest_lacks_are_not_said_to_be_checked(out: Path) -> None:
    said = manifest(out)
    for entry in said["tensors"].values():
        entry[OF_BLOCKS] = None
    (out / "merge_manifest.json").write_text(json.dumps(said), encoding="utf-8")
    found = verify_merge(out, files_only=True)
    assert not [line for line in found.checked if line.startswith("content")]
    assert found.unchecked == ("content of 21 tensors: the manifest has no digest of it",)


def write_as_earlier_release(out: Path) -> None:
    """Put digests of whole tensors into the manifest, as releases did that had no others."""
    said = manifest(out)
    base = Path(said["inputs"]["base_model"]["source"])
    for entries, folder in (
        (said["tensors"], out),
        (said["inputs"]["base_model"]["tensors"], base),
    ):
        weights = load_weights(folder)
        for name, entry in entries.items():
            was_read = entry.pop(OF_BLOCKS) is not None
            entry[WHOLE] = hash_whole(weights[name]) if was_read else None
    (out / "merge_manifest.json").write_text(json.dumps(said), encoding="utf-8")


def test_digests_of_an_earlier_release_are_still_checked(out: Path) -> None:
    write_as_earlier_release(out)
    assert not verify_merge(out, files_only=True).faults
    whole = verify_merge(out)
    assert not whole.faults
    assert any(line == "content    21 tensors by their digests" for line in whole.checked)


def test_content_that_an_earlier_release_did_not_write_is_found(out: Path) -> None:
    write_as_earlier_release(out)
    spoil(out, lambda tensors: tensors["model.norm.weight"].add_(1))
    vouch(out, contents=False)
    (fault,) = verify_merge(out, files_only=True).faults
    assert "other content" in str(fault)
    assert "model.norm.weight" in str(fault)


def test_another_base_than_an_earlier_release_merged_is_found(out: Path, tmp_path: Path) -> None:
    write_as_earlier_release(out)
    said = manifest(out)
    base = Path(said["inputs"]["base_model"]["source"])
    other = Path(shutil.copytree(base, tmp_path / "other"))
    spoil(other, lambda tensors: tensors["model.norm.weight"].add_(1))
    faults = verify_merge(out, base_model=other).faults
    assert any("the base is not the one that was merged" in str(fault) for fault in faults)
