"""Which paths a browser may name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from merge.errors import UsageError
from merge.webui.root import Root


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A root with a model, beside a folder that is not for the page."""
    for name in ("root/model", "root/deep/model", "outside/model", "rooted"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("root/model", "outside/model"):
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


def link(source: Path, target: Path) -> None:
    try:
        source.symlink_to(target)
    except OSError:
        pytest.skip("this user may not make links")


@pytest.mark.parametrize("name", ["model", "./model", "deep/../model", " model "])
def test_a_path_below_the_root_is_taken_as_an_absolute_one(place: Path, name: str) -> None:
    root = Root((place / "root").resolve())
    assert Path(root.find_input(name)) == (place / "root" / "model").resolve()


def test_an_absolute_path_below_the_root_is_taken(place: Path) -> None:
    root = Root((place / "root").resolve())
    assert root.find_input(str(place / "root" / "model")) == str((place / "root/model").resolve())


@pytest.mark.parametrize(
    "name",
    [
        *("../outside/model", "model/../../outside/model", "..", "/etc", "/proc/self", "~", ""),
        *("\0", "model\0", "http://127.0.0.1/x", "hf://owner/name", "file:///etc", "../rooted"),
        *("a" * 5000, "owner/name", "//server/share"),
    ],
)
def test_any_other_path_is_refused(place: Path, name: str) -> None:
    root = Root((place / "root").resolve())
    with pytest.raises(UsageError):
        root.find_input(name)


def test_an_absolute_path_outside_is_refused(place: Path) -> None:
    root = Root((place / "root").resolve())
    for find in (root.find_input, root.find_output):
        with pytest.raises(UsageError, match="may not use"):
            find(str(place / "outside" / "model"))


def test_a_link_out_of_the_root_is_refused_as_input_and_output(place: Path) -> None:
    link(place / "root" / "away", place / "outside")
    root = Root((place / "root").resolve())
    for name in ("away", "away/model", "away/new"):
        for find in (root.find_input, root.find_output):
            with pytest.raises(UsageError, match="may not use"):
                find(name)


@pytest.mark.parametrize("name", ["weights.bin", "deep/weights.bin"])
def test_a_folder_with_a_link_out_of_the_root_is_refused(place: Path, name: str) -> None:
    (place / "root/model/deep").mkdir()
    link(place / "root" / "model" / name, place / "outside" / "model" / "config.json")
    root = Root((place / "root").resolve())
    for find in (root.find_input, root.find_output):
        with pytest.raises(UsageError, match="a link leads out"):
            find("model")


def test_a_link_within_the_root_is_followed(place: Path) -> None:
    link(place / "root" / "other", place / "root" / "model")
    assert Path(Root((place / "root").resolve()).find_input("other")).name == "model"


def test_links_in_a_circle_are_refused(place: Path) -> None:
    link(place / "root" / "a", place / "root" / "b")
    link(place / "root" / "b", place / "root" / "a")
    with pytest.raises(UsageError):
        Root((place / "root").resolve()).find_input("a/model")


def test_a_hub_id_is_taken_only_where_downloads_are_allowed(place: Path) -> None:
    folder = (place / "root").resolve()
    assert Root(folder, allow_downloads=True).find_input("owner/name") == "owner/name"
    for name in ("../owner", "owner/../..", "name", "hf://owner/name", "~/name", "./owner/name"):
        with pytest.raises(UsageError):
            Root(folder, allow_downloads=True).find_input(name)


def test_an_output_folder_need_not_be_there(place: Path) -> None:
    root = Root((place / "root").resolve())
    assert root.find_output("new/one") == (place / "root" / "new" / "one").resolve()
    assert not (place / "root" / "new").exists()


def test_models_and_adapters_below_the_root_are_listed_and_links_are_not(place: Path) -> None:
    (place / "root/deep/model/adapter_config.json").write_text("{}")
    (place / "root/deep/a.gguf").write_bytes(b"")
    (place / "root/.hidden").mkdir()
    (place / "root/.hidden/config.json").write_text("{}")
    if os.name != "nt":
        link(place / "root" / "away", place / "outside")
    models, adapters = Root((place / "root").resolve()).list_models()
    assert models == ["deep/a.gguf", "model"]
    assert adapters == ["deep/model"]
