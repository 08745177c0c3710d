"""Headers, indexes, configurations and links that say what cannot be."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from merge.errors import FormatError, LayoutError, UsageError
from merge.formats import open_container
from merge.plan.places import resolve
from tests.kit.files import write_json
from tests.kit.inputs import Inputs
from tests.kit.models import LLAMA_ROWS, adapter_tensors, base_config, save_adapter
from tests.kit.refusals import refused, require_one_message

GOOD = '{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'


def header(folder: Path, text: str, length: int | None = None) -> Path:
    path = folder / "w.safetensors"
    content = text.encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", length or len(content)) + content + bytes(24))
    return path


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 1 << 40, (16 << 20) + 1, 25, 1 << 20])
def test_length_of_a_header_is_not_believed(tmp_path: Path, length: int) -> None:
    path = header(tmp_path, "{" + " " * 16, length)
    refused(lambda: open_container(path), file=path, mib=20)


HEADERS = {
    "overlap": GOOD[:-1] + "," + GOOD[1:].replace('"w"', '"v"'),
    "gap": GOOD.replace("[0,24]", "[4,28]"),
    "backwards": GOOD.replace("[0,24]", "[24,0]"),
    "beyond the end": GOOD.replace("[2,3]", "[20,3]").replace("24]", "240]"),
    "negative offset": GOOD.replace("[0,24]", "[-24,0]"),
    "negative shape": GOOD.replace("[2,3]", "[-2,-3]"),
    "huge shape": GOOD.replace("[2,3]", f"[{1 << 62},{1 << 62}]"),
    "shape beyond 64 bits": GOOD.replace("[2,3]", f"[{1 << 70}]"),
    "shape of halves": GOOD.replace("[2,3]", "[2.5,3]"),
    "dtype unknown": GOOD.replace("F32", "F23"),
    "dtype of another kind": GOOD.replace('"F32"', "32"),
    "name twice": GOOD[:-1] + "," + GOOD[1:],
    "field twice": GOOD.replace('"shape"', '"dtype":"F16","shape"'),
    "no object": "[" * 24,
    "nested": "{" + '"a":{' * 5000,
    "metadata of another kind": '{"__metadata__":{"a":1},' + GOOD[1:],
    "not UTF-8": GOOD.replace("w", "\ud800"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_header_that_contradicts_itself(tmp_path: Path, name: str) -> None:
    path = header(tmp_path, HEADERS[name])
    assert isinstance(refused(lambda: open_container(path), file=path, mib=20), FormatError)


def test_names_of_tensors_stay_on_their_line(inputs: Inputs) -> None:
    name = "w\nerror: all is well\x1b]0;\x07\u2028\u202etxet"
    tensors = {name: torch.ones(2), **adapter_tensors()}
    (inputs.llama / "adapter_model.bin").unlink()
    (inputs.llama / "adapter_model.safetensors").write_bytes(save(tensors))
    with pytest.raises(Exception, match="tensor") as caught:
        inputs.merge(inputs.llama, dry_run=True)
    require_one_message(caught.value)  # type: ignore[arg-type]
    assert r"w\nerror: all is well\x1b]0;\x07\u2028\u202etxet" in str(caught.value)


DOCUMENTS = {
    "NaN": '{"hidden_size": NaN}',
    "infinity": '{"rope_theta": -Infinity}',
    "beyond float64": '{"rope_theta": 1e999}',
    "endless number": '{"hidden_size": ' + "9" * 10_000 + "}",
    "name twice": '{"hidden_size": 1, "hidden_size": 2}',
    "name twice, deep": '{"a": [{"b": 1, "b": 2}]}',
    "nested arrays": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "nested objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "two hundred levels": '{"a": ' + "[" * 200 + "]" * 200 + "}",
    "half a character": r'{"model_type": "\ud800"}',
    "comment": '{"a": 1} // no',
    "two documents": "{}{}",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_that_json_does_not_allow(inputs: Inputs, name: str) -> None:
    path = inputs.base / "config.json"
    path.write_text(DOCUMENTS[name], encoding="utf-8")
    error = refused(lambda: inputs.merge(dry_run=True))
    assert error.facts["file"] == str(path)


def test_document_that_is_no_utf8(inputs: Inputs) -> None:
    (inputs.base / "config.json").write_bytes(b'{"model_type": "\xff\xfe"}')
    assert inputs.refused(FormatError).facts["file"].endswith("config.json")


def test_document_of_gigabytes_is_not_read(inputs: Inputs) -> None:
    path = inputs.base / "config.json"
    with path.open("wb") as stream:
        stream.truncate(5 << 30)
    assert "far larger" in refused(lambda: inputs.merge(dry_run=True), mib=100).sentence


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 10**300},
        {"hidden_size": 10**300},
        {"num_attention_heads": 10**6},
        {"num_key_value_heads": -2},
        {"num_key_value_heads": "2"},
        {"num_key_value_heads": [2]},
        {"head_dim": 1.5},
        {"head_dim": -4},
        {"rope_theta": "10000"},
        {"rope_theta": -1},
        {"rope_theta": [1]},
        {"rope_scaling": [1]},
        {"rope_scaling": "linear"},
        {"rope_parameters": 7},
        {"rope_parameters": {"rope_theta": {"a": 1}}},
    ],
    ids=str,
)
def test_configuration_with_numbers_that_are_none(inputs: Inputs, fields: dict[str, Any]) -> None:
    write_json(inputs.base / "config.json", base_config(**fields))
    error = refused(lambda: inputs.merge(dry_run=True))
    assert isinstance(error, LayoutError)


@pytest.mark.parametrize("value", ["0", [], {}, 1.5, True, -1, 10**30])
def test_padding_id_that_is_none_is_replaced(inputs: Inputs, value: object) -> None:
    write_json(inputs.base / "config.json", base_config(pad_token_id=value))
    inputs.merge(output_type="huggingface")
    config = json.loads((inputs.out / "config.json").read_text(encoding="utf-8"))
    assert isinstance(config["pad_token_id"], int)
    assert 0 <= config["pad_token_id"] < config["vocab_size"]


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("r", 10**400, "1" + "0" * 79),
        ("lora_alpha", 10**400, "1" + "0" * 79),
        ("lora_alpha", True, "True"),
        ("modules_to_save", 5, "5"),
        ("modules_to_save", {"a": 1}, "{'a': 1}"),
        ("modules_to_save", [None], "[None]"),
        ("alpha_pattern", {"x*" * 50_000: 4}, "more than 4000 characters of expressions"),
        ("alpha_pattern", {"(" * 5000: 4}, "more than 4000 characters of expressions"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_adapter_configuration_that_costs_or_says_nothing(
    inputs: Inputs, field: str, value: object, found: str
) -> None:
    save_adapter(inputs.llama, **{field: value})
    error = refused(lambda: inputs.merge(inputs.llama, dry_run=True))
    assert error.facts["file"] == str(inputs.llama / "adapter_config.json")
    assert f'"{field}"' in error.facts["expected"]
    assert error.facts["found"] == found


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(.|.)" * 30, ".*" * 30 + "x", "x" * 100_000, ".?" * 40 + "X"]
)
def test_pattern_that_would_keep_re_busy_is_matched_all_the_same(
    inputs: Inputs, pattern: str
) -> None:
    """And with the right answer: none of these is the name of a module or its end."""
    tensors = adapter_tensors(LLAMA_ROWS)
    save_adapter(inputs.llama, tensors, pieces=LLAMA_ROWS, alpha_pattern={pattern: 8})
    inputs.merge(inputs.llama)
    save_adapter(inputs.llama, tensors, pieces=LLAMA_ROWS)
    inputs.merge(inputs.llama, output_dir=inputs.folder / "without")
    name = "consolidated.00.pth"
    assert (inputs.out / name).read_bytes() == (inputs.folder / "without" / name).read_bytes()


OUTSIDE = (
    "../secret.bin",
    "/etc/passwd",
    "a/../../b.bin",
    "C:x.bin",
    "..",
    "a\\b",
    "",
    "\0",
    "x" * 999,
)


@pytest.mark.parametrize("file", [*OUTSIDE, "x" * 999, None, 7, ["w.bin"]], ids=repr)
def test_index_names_only_files_beside_it(inputs: Inputs, file: object) -> None:
    write_json(inputs.base / "pytorch_model.bin.index.json", {"weight_map": {"w": file}})
    error = refused(lambda: inputs.merge(dry_run=True))
    assert error.facts["file"].endswith("index.json")


# Links out of the Hub's cache.


def snapshot(cache: Path) -> Path:
    """The adapter as the Hub's cache keeps it: a link to a blob for each file."""
    repository = cache / "models--zh--chinese-llama"
    folder = repository / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    made = save_adapter(cache / "made", adapter_tensors())
    for number, path in enumerate(made.iterdir()):
        path.rename(repository / "blobs" / f"{number}")
        (folder / path.name).symlink_to(f"../../blobs/{number}")
    return folder


needs_links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")


@needs_links
def test_links_to_blobs_are_followed(tmp_path: Path) -> None:
    folder = snapshot(tmp_path)
    assert resolve(str(folder), "adapter") == folder


@needs_links
@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../../../made", "../../../../x", "tokenizer.model"]
)
def test_link_out_of_a_snapshot_is_refused(tmp_path: Path, target: str) -> None:
    folder = snapshot(tmp_path)
    (folder / "tokenizer.model").symlink_to(target)
    error = refused(lambda: resolve(str(folder), "adapter"))
    assert error.facts["file"] == str(folder / "tokenizer.model")
    assert not isinstance(error, UsageError)
    assert error.facts["found"] == target


@needs_links
def test_links_in_an_ordinary_folder_are_their_owners(tmp_path: Path) -> None:
    made = save_adapter(tmp_path / "big disk", adapter_tensors())
    (tmp_path / "adapter").mkdir()
    for path in made.iterdir():
        (tmp_path / "adapter" / path.name).symlink_to(path)
    assert resolve(str(tmp_path / "adapter"), "adapter") == tmp_path / "adapter"
