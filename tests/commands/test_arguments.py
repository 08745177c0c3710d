"""Values of options that mean nothing, and the spellings that people use for those that do."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from merge import MergeError, merge_lora
from merge.errors import UsageError
from merge.plan.inputs import split_list
from merge.sizes import parse_size
from tests.kit.files import tree
from tests.kit.inputs import Inputs


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_shard_size", "ten"),
        ("max_shard_size", ""),
        ("max_shard_size", "10XB"),
        ("max_shard_size", "-5"),
        ("max_shard_size", "1e999GB"),
        ("max_shard_size", "0"),
        ("max_memory", "much"),
        ("max_memory", 0),
        ("num_workers", 0),
        ("num_workers", -1),
        ("num_shards", 0),
        ("dtype", "int8"),
        ("dtype", "fp16"),
        ("output_type", "ggml"),
        ("rounding", "twice"),
    ],
)
def test_value_that_means_nothing_is_named(inputs: Inputs, option: str, value: object) -> None:
    before = tree(inputs.folder)
    with pytest.raises(UsageError, match=f"--{option}") as caught:
        inputs.merge(**{option: value})
    assert str(value) in str(caught.value)
    assert tree(inputs.folder) == before


@pytest.mark.parametrize("size", ["5000", "5KB", "5kb", "5K", "5KiB", "5 kB", "0.005MB"])
def test_every_spelling_of_a_size_makes_shards(inputs: Inputs, size: str) -> None:
    inputs.merge(output_type="huggingface", max_shard_size=size)
    shards = list(inputs.out.glob("pytorch_model-*.bin"))
    assert len(shards) > 1
    assert parse_size(size) in (5000, 5120)


@pytest.mark.parametrize("value", ["", ",", " , "])
def test_no_adapter_at_all(inputs: Inputs, value: str) -> None:
    with pytest.raises(MergeError, match="no adapter is named") as caught:
        merge_lora(inputs.base, value, inputs.out)
    assert "--lora_model" in caught.value.facts["expected"]


@pytest.mark.parametrize(
    "values",
    [["a,b"], ["a, b"], ["a,", "b"], ["a", "b"], ["a", ",b"], [" a ,b, "], ["a,b,"]],
)
def test_every_spelling_of_two_adapters(values: list[str]) -> None:
    assert split_list(values) == ["a", "b"]


def test_home_folder_and_relative_paths_are_understood(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs.folder)
    merge_lora("llama-7b-hf", "./chinese-llama", "relative")
    monkeypatch.setenv("HOME", str(inputs.folder))
    monkeypatch.setenv("USERPROFILE", str(inputs.folder))
    merge_lora("~/llama-7b-hf", "~/chinese-llama", "~/merged")
    files = [path / "consolidated.00.pth" for path in (Path("relative"), inputs.out)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_copy_of_an_adapter_under_another_name_is_refused(inputs: Inputs) -> None:
    copy = inputs.llama.with_name("copy")
    shutil.copytree(inputs.llama, copy)
    before = tree(inputs.folder)
    with pytest.raises(UsageError, match="in two folders") as caught:
        merge_lora(inputs.base, [inputs.llama, copy], inputs.folder / "out")
    assert "same bytes" in caught.value.facts["found"]
    assert tree(inputs.folder) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a home for every name")
@pytest.mark.parametrize("option", ["base_model", "lora_model", "output_dir", "tokenizer"])
def test_home_of_nobody_is_told(inputs: Inputs, option: str) -> None:
    before = tree(inputs.folder)
    named: dict[str, Any] = {
        "base_model": inputs.base,
        "lora_model": inputs.llama,
        "output_dir": inputs.out,
    }
    with pytest.raises(UsageError, match="no home folder") as caught:
        merge_lora(**named | {option: "~nobody-of-this-name/model"})
    assert caught.value.facts["file"] == "~nobody-of-this-name/model"
    assert tree(inputs.folder) == before
