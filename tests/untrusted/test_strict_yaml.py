"""YAML files: what PyYAML reads and JSON says, and a refusal of what can be read in two ways."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from merge.errors import FormatError
from merge.untrusted.strict_yaml import LARGEST_YAML, read_yaml
from tests.kit.refusals import refused

JOBS = """\
base_model: llama-7b-hf   # of all
jobs:
  - lora_model: [a, "b c"]
    output_dir: 中文
    num_shards: 2
    safe_serialization: true
    tokenizer: null
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "jobs.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_plain_files_are_read_as_pyyaml_reads_them(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, JOBS)) == yaml.safe_load(JOBS)
    assert read_yaml(write(tmp_path, "\ufeff" + JOBS)) == yaml.safe_load(JOBS)


def test_json_is_read_as_json(tmp_path: Path) -> None:
    text = json.dumps(yaml.safe_load(JOBS), indent=2)
    assert read_yaml(write(tmp_path, text)) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: 'a' appears twice"),
        ("x: {a: 1, a: 1}", "line 1: 'a' appears twice"),
        ("a: &one 1\nb: 2", "line 1: anchors and aliases"),
        ("a: *one", "line 1: anchors and aliases"),
        ("<<: {a: 1}", "line 1: a key is not text"),
        ("1: 2", "line 1: a key is not text"),
        ("? [1]\n: 2", "line 1: a key is not text"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: tags"),
        ("a: !!bool maybe", "line 1: tags"),
        ("a: 1\n---\nb: 2", "line 2: expected a single document"),
        ("a: 2026-13-45", "month must be in 1..12"),
        ("a: " + "1" * 5000, "Exceeds the limit (4300"),
        ("a: \x01", "special characters are not allowed"),
        ("a: [1\nb: 2", "line 2: "),
        ("a: " + "[" * 30, "line 1: nested more than"),
        ("- a", "list"),
        ("", "nothing"),
    ],
)
def test_what_is_not_one_plain_mapping_is_refused(tmp_path: Path, text: str, found: str) -> None:
    path = write(tmp_path, text)
    assert found in refused(lambda: read_yaml(path), file=path).facts["found"]


@pytest.mark.parametrize("start", ["[{", "- ", "? ", "{a: "])
def test_deep_nesting_ends_at_once(tmp_path: Path, start: str) -> None:
    path = write(tmp_path, start * (LARGEST_YAML // len(start)))
    started = time.monotonic()
    refused(lambda: read_yaml(path), file=path)
    assert time.monotonic() - started < 2


def test_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path, "a: " + "x" * LARGEST_YAML)
    assert f"at most {LARGEST_YAML:,} bytes" in refused(lambda: read_yaml(path)).facts["expected"]


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_bytes("a: 中文".encode("gbk"))
    with pytest.raises(FormatError, match="not valid YAML"):
        read_yaml(path)
