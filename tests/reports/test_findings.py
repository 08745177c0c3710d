"""Findings: each is made when its condition holds in a real merge, and not otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import merge_lora
from merge.reports.finding_texts import describe_finding
from merge.reports.findings import find_findings
from tests.kit.files import Tensors
from tests.kit.models import (
    BASE_ROWS,
    HIDDEN,
    PREFIX,
    adapter_tensors,
    base_tensors,
    random_tensor,
    save_adapter,
    save_base,
)
from tests.kit.reported import make_lora, make_reported, read_report
from tests.kit.tokenizer_models import tokenizer_model

EMBEDDINGS = "model.embed_tokens.weight"
ROWS = BASE_ROWS + 100


def report_on(
    folder: Path, adapter: Tensors, base: Tensors | None = None, **options: Any
) -> dict[str, Any]:
    """Merge one adapter with a report."""
    save_base(folder / "base", base)
    rows = adapter.get(PREFIX + EMBEDDINGS)
    save_adapter(folder / "lora", adapter, pieces=None if rows is None else len(rows))
    given = {"base_model": folder / "base", "lora_model": folder / "lora", **options}
    merge_lora(**given, output_dir=folder / "out", output_type="huggingface", report=True)
    return read_report(folder / "out")


def codes(report: Mapping[str, Any]) -> list[str]:
    return [finding["code"] for finding in report["findings"]]


def scaled(adapter: Tensors, factor: float, part: str = "lora_B") -> Tensors:
    return {
        name: tensor.float().mul(factor).to(tensor.dtype if factor > 1e-3 else torch.float32)
        if part in name
        else tensor
        for name, tensor in adapter.items()
    }


def test_ordinary_merge_has_no_findings(tmp_path: Path) -> None:
    assert codes(make_reported(tmp_path).merge()) == []


def test_adapter_of_zeros_adds_nothing(tmp_path: Path) -> None:
    report = report_on(tmp_path, scaled(adapter_tensors(), 0.0))
    assert report["findings"] == [
        {"code": "adapter_adds_nothing", "values": {"adapter": 1, "name": "lora"}}
    ]


def test_second_adapter_of_a_chain_is_named(tmp_path: Path) -> None:
    reported = make_reported(tmp_path)
    idle = scaled({n: t for n, t in make_lora(2, 1, 1).items() if "lora_" in n}, 0.0)
    save_adapter(tmp_path / "idle", idle)
    report = reported.merge(lora_model=[*reported.inputs["lora_model"], tmp_path / "idle"])
    assert [one["values"]["adapter"] for one in report["findings"]] == [3]


def grown(new: torch.Tensor) -> Tensors:
    """An adapter whose embeddings have ``new`` rows after rows of very different lengths."""
    lengths = torch.linspace(0.2, 3.0, BASE_ROWS)[:, None]
    whole = torch.cat([random_tensor(BASE_ROWS, HIDDEN, seed=1) * lengths, new]).half()
    return {
        **adapter_tensors(),
        **{PREFIX + name: whole for name in (EMBEDDINGS, "lm_head.weight")},
    }


@pytest.mark.parametrize(
    ("new", "found"),
    [
        (random_tensor(100, HIDDEN, seed=3), True),
        (random_tensor(1, HIDDEN, seed=3).expand(100, HIDDEN), True),
        (torch.zeros(100, HIDDEN).half(), True),
        (random_tensor(100, HIDDEN, seed=3) * torch.linspace(0.3, 4, 100)[:, None], False),
    ],
    ids=["random", "equal", "zeros", "of different lengths"],
)
def test_new_rows_as_alike_as_random_ones_look_untrained(
    tmp_path: Path, new: torch.Tensor, found: bool
) -> None:
    report = report_on(tmp_path, grown(new))
    assert codes(report) == ["new_rows_untrained"] * (2 * found)
    for one in report["findings"]:
        assert one["values"]["rows"] == 100


def test_rows_that_the_merge_fills_are_told(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.model").write_bytes(tokenizer_model(ROWS))
    report = report_on(tmp_path, adapter_tensors(), tokenizer=tokenizer, new_token_init="mean")
    assert report["findings"] == [
        {"code": "new_rows_filled", "values": {"rows": 100, "init": "mean"}}
    ]
    assert report["vocabulary"]["new_pieces"] == 100


def test_layer_that_changed_far_more_than_the_others_stands_out() -> None:
    values = [0.01, 0.011, 0.009, 0.01, 0.05]
    heat_map = {
        "layers": list(range(5)),
        "modules": ["mlp.down_proj", "mlp.up_proj"],
        "total": [[value, 0.01] for value in values],
        "by_adapter": [],
    }
    report = {
        "kind": "merge",
        "inputs": {"adapters": []},
        "tensors": [],
        "heat_map": heat_map,
        "changes": {"lost": None, "change": 1.0},
        "vocabulary": {"norms": {}},
    }
    found = find_findings(report)
    assert [one["code"] for one in found] == ["outlier_layers"]
    assert found[0]["values"]["layers"] == [4]
    assert found[0]["values"]["ratio"] == pytest.approx(5.0)


def test_change_below_the_digits_of_the_type_is_lost(tmp_path: Path) -> None:
    report = report_on(tmp_path, scaled(adapter_tensors(), 1e-4), dtype="bfloat16")
    (found,) = report["findings"]
    assert found["code"] == "rounding_loss"
    assert found["values"]["dtype"] == "bfloat16"
    assert found["values"]["share"] > 0.5
    assert codes(report_on(tmp_path / "x", scaled(adapter_tensors(), 1e-4), dtype="float32")) == []


def test_values_near_the_limit_of_float16_are_told(tmp_path: Path) -> None:
    base = base_tensors()
    base["model.layers.0.self_attn.q_proj.weight"][3, 5] = 40000
    report = report_on(tmp_path, adapter_tensors(), base)
    (found,) = report["findings"]
    assert found["code"] == "near_float16_limit"
    assert found["values"]["largest"] == pytest.approx(40000, abs=32)


def test_nan_that_is_allowed_is_a_finding(tmp_path: Path) -> None:
    base = base_tensors()
    base["model.layers.0.self_attn.q_proj.weight"][3, 5] = torch.nan
    report = report_on(tmp_path, adapter_tensors(), base, allow_nonfinite=True)
    assert "nonfinite_values" in codes(report)


@pytest.mark.parametrize(
    "finding",
    [
        {"code": "adapter_adds_nothing", "values": {"adapter": 1, "name": "50 % off %s"}},
        {"code": "nothing_changed", "values": {}},
        {"code": "unusual_order", "values": {"order": ["a", "b"], "adapter": None, "below": None}},
        {"code": "unusual_order", "values": {"order": ["a", "b"], "adapter": "a", "below": "c"}},
        {"code": "nonfinite_values", "values": {"tensors": 2, "names": ["a", "b"]}},
        {"code": "of a later release", "values": {"one": 1}},
    ],
    ids=lambda finding: str(finding["code"]),
)
def test_every_code_has_words(finding: dict[str, Any]) -> None:
    text = describe_finding(finding)
    assert text.title
    assert text.meaning
    for value in finding["values"].values():
        if isinstance(value, str):
            assert value in f"{text.title} {text.meaning}"
