"""``--json``: one object on standard output, with the keys that the page lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import convert_checkpoint, merge_lora
from merge.jobs.merge_lora import verify_result
from tests.kit.files import load_weights, save_tensors
from tests.kit.inputs import Inputs
from tests.kit.models import LLAMA_ROWS, adapter_tensors, save_adapter
from tests.kit.run import ROOT, run_python

_TEXT = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
PAGE = re.sub(r"^```.*?^```$", "", _TEXT, flags=re.MULTILINE | re.DOTALL)
# Of what these keys hold, the keys are names: of files, tensors, layouts.
_BY_NAME = ("files", "documents", "other_shapes", "refused")
_COMMANDS = {
    "merge": "merge_llama_with_chinese_lora.py",
    "convert": "convert_checkpoint.py",
    "inspect": "inspect_adapter.py",
    "verify": "verify_merge.py",
    "compare": "compare_checkpoints.py",
}


def run_json(command: str, *words: object) -> tuple[int, dict[str, Any]]:
    """Exit code, and the object; nothing else may be on standard output."""
    done = run_python(ROOT / "scripts" / _COMMANDS[command], *words, "--json")
    assert "Traceback" not in done.stderr
    answer = json.loads(done.stdout)
    assert answer["format"] == 1
    return done.returncode, answer


def list_keys(value: object) -> Iterator[str]:
    """Every key of an object that has a meaning of its own."""
    if isinstance(value, list):
        for item in value:
            yield from list_keys(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            below = item.values() if key in _BY_NAME and isinstance(item, dict) else [item]
            for one in below:
                yield from list_keys(one)


def require_documented(answer: dict[str, Any]) -> None:
    """Every key stands on the page, in backticks, alone or after a dot."""
    known = {part for quoted in re.findall(r"`([^`]+)`", PAGE) for part in quoted.split(".")}
    assert set(list_keys(answer)) - known == set()


def test_a_planned_merge_is_what_is_then_written(inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--base_model", inputs.base, "--lora_model", inputs.llama, "--output_dir", out)
    code, planned = run_json("merge", *words, "--dry_run", "--output_type", "hf")
    assert (code, planned["dry_run"], out.exists()) == (0, True, False)
    require_documented(planned)
    assert planned["inputs"]["lora_model"] == [str(inputs.llama)]
    code, written = run_json("merge", *words, "--output_type", "hf")
    assert (code, written["dry_run"]) == (0, False)
    assert written["files"] == planned["files"]
    assert written["documents"] == planned["documents"]
    for name, size in written["documents"].items():
        assert (out / name).stat().st_size == size
    weights = load_weights(out)
    assert sum(one["tensors"] for one in written["files"].values()) == len(weights)
    assert written["tensor_bytes"] == sum(tensor.nbytes for tensor in weights.values())


def test_a_merge_can_be_checked_in_one_go(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merge.commands.merge_lora import main

    words = ["--base_model", inputs.base, "--lora_model", inputs.llama, "--output_type", "hf"]
    code, found = run_json("merge", *words, "--output_dir", tmp_path / "right", "--verify")
    assert (code, found["verification"]["ok"]) == (0, True)
    require_documented(found)
    code, found = run_json("merge", *words, "--output_dir", tmp_path / "unchecked")
    assert (code, found["verification"]) == (0, None)

    def spoil_and_check(*args: Any, **options: Any) -> Any:
        config = tmp_path / "wrong" / "config.json"
        config.write_bytes(config.read_bytes() + b" ")
        return verify_result(*args, **options)

    monkeypatch.setattr("merge.jobs.merge_lora.verify_result", spoil_and_check)
    more = ["--output_dir", tmp_path / "wrong", "--verify", "--json", "--quiet"]
    assert main([str(word) for word in (*words, *more)]) == 1


def test_a_check_lists_its_faults(inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge_lora(inputs.base, inputs.llama, out, output_type="huggingface", safe_serialization=True)
    code, right = run_json("verify", "--output_dir", out)
    assert (code, right["ok"], right["faults"]) == (0, True, [])
    assert right["elements"] >= right["identical"] > 0
    require_documented(right)
    (out / "config.json").write_bytes((out / "config.json").read_bytes() + b" ")
    code, wrong = run_json("verify", "--output_dir", out)
    assert (code, wrong["ok"]) == (1, False)
    assert {fault["kind"] for fault in wrong["faults"]} == {"verification"}
    assert any(fault["file"].endswith("config.json") for fault in wrong["faults"])
    require_documented(wrong)


def test_a_comparison_counts_what_differs(inputs: Inputs, tmp_path: Path) -> None:
    convert_checkpoint(inputs.base, tmp_path / "a", safe_serialization=True)
    convert_checkpoint(inputs.base, tmp_path / "b", safe_serialization=True)
    code, same = run_json("compare", tmp_path / "a", tmp_path / "b")
    assert (code, same["same"], same["different"]) == (0, True, [])
    tensors = load_weights(tmp_path / "b")
    name = "model.norm.weight"
    tensors[name][:3] = torch.nextafter(tensors[name][:3], torch.tensor(9, dtype=torch.float16))
    (file,) = (tmp_path / "b").glob("*.safetensors")
    save_tensors(file, tensors)
    code, other = run_json("compare", tmp_path / "a", tmp_path / "b")
    assert (code, other["same"]) == (1, False)
    (found,) = other["different"]
    assert (found["name"], found["differing"], found["max_ulp"]) == (name, 3, 1)
    assert other["identical"] == same["identical"] - 1
    require_documented(other)
    code, _ = run_json("compare", tmp_path / "a", tmp_path / "b", "--max_ulp", 1)
    assert code == 0


def test_an_adapter_is_described_and_what_refuses_it(inputs: Inputs, tmp_path: Path) -> None:
    code, found = run_json("inspect", inputs.llama, "--base_model", inputs.base)
    assert (code, found["refused"]) == (0, None)
    assert found["adapter"]["sha256"]
    assert found["fits"]["output_types"] == ["pth", "huggingface"]
    config = json.loads((inputs.llama / "adapter_config.json").read_text())
    assert {one["rank"] for one in found["adapter"]["modules"]} == {config["r"]}
    require_documented(found)
    wide = save_adapter(tmp_path / "wide", adapter_tensors(LLAMA_ROWS, 32), pieces=LLAMA_ROWS)
    code, found = run_json("inspect", wide, "--base_model", inputs.base)
    assert code == 1
    assert found["refused"]["message"]
    assert found["adapter"]["modules"]
    require_documented(found)


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        (("--input", "no", "--output", "out"), "usage", "does not exist"),
        (("--input", "no", "--output", "out", "--num_shards", "x"), "usage", "--num_shards"),
        (("--output", "out"), "usage", "required: --input"),
        (("--input", ".", "--output", "out"), "layout", "no configuration"),
    ],
)
def test_a_mistake_is_an_object_too(words: tuple[str, ...], kind: str, told: str) -> None:
    code, found = run_json("convert", *words)
    assert code == 2
    assert found["error"]["kind"] == kind
    assert told in found["error"]["message"]
    assert set(found["error"]) == {
        *("kind", "message", "file", "tensor", "expected", "found", "remedy", "see"),
    }
    require_documented(found)


@pytest.mark.parametrize("words", [("--output", "out"), ("--input", "no", "--output", "out")])
def test_the_language_changes_nothing(words: tuple[str, ...]) -> None:
    english, chinese = (run_json("convert", *words, "--lang", one) for one in ("en", "zh"))
    assert chinese == english
