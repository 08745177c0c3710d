"""What the product is multiplied by: numbers that PEFT takes, and those that nothing can hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import merge_lora, verify_merge
from merge.errors import AdapterError
from tests.kit.adapters import make_lora, merge_with_peft
from tests.kit.files import load_weights
from tests.kit.llamas import make_base
from tests.kit.models import save_adapter as save_bare
from tests.kit.models import save_base

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
UNUSUAL: dict[str, dict[str, Any]] = {
    "negative": {"lora_alpha": -4},
    "negative for some": {"alpha_pattern": {"layers.0.*q_proj": -3, "q_proj": 2.5}},
    "five groups": {"alpha_pattern": {"(m)(o)(d)(e)(l)[.].*_proj": 7}},
    "from the first letter on": {"alpha_pattern": {"^model.layers.[01].self_attn.q_proj$": 5}},
}


@pytest.mark.parametrize("settings", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_alphas_are_merged_as_peft_does(tmp_path: Path, settings: dict[str, Any]) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_lora(tmp_path / "lora", base, **settings)
    out = tmp_path / "out"
    merge_lora(base, adapter, out, output_type="huggingface", dtype="float32")
    merged = load_weights(out)
    for name, expected in merge_with_peft(base, [adapter]).items():
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-5, msg=name)


NEVER_TRAINED: dict[str, dict[str, Any]] = {
    "zero, as verl's merger writes it": {"lora_alpha": 0},
    "zero by a pattern": {"alpha_pattern": {"q_proj": 0}},
    "beyond all reason": {"lora_alpha": 2e8},
    "beyond all reason, negative": {"alpha_pattern": {"q_proj": -2e8}},
}


@pytest.mark.parametrize("fields", NEVER_TRAINED.values(), ids=NEVER_TRAINED)
def test_scaling_that_no_training_had_is_refused_by_merge_and_verification(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    base, adapter = save_base(tmp_path / "base"), save_bare(tmp_path / "lora")
    merge_lora(base, adapter, tmp_path / "out")
    save_bare(adapter, **fields)
    with pytest.raises(AdapterError, match="scaling that no training had") as caught:
        merge_lora(base, adapter, tmp_path / "other")
    assert {"file", "tensor", "expected", "found", "remedy"} <= caught.value.facts.keys()
    assert not (tmp_path / "other").exists()
    with pytest.raises(AdapterError, match="scaling"):
        verify_merge(tmp_path / "out", base_model=base, lora_model=adapter)


TOO_MUCH: dict[str, tuple[dict[str, Any], str | None]] = {
    "by the user's weight": ({}, "1e40"),
    "by a negative weight": ({}, "-1e39"),
    "by alpha": ({"lora_alpha": 3e38, "use_rslora": True}, "3"),
}


@pytest.mark.parametrize(("fields", "weight"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_scaling_beyond_float32_is_refused(
    tmp_path: Path, fields: dict[str, Any], weight: str | None
) -> None:
    base, adapter = save_base(tmp_path / "base"), save_bare(tmp_path / "lora", **fields)
    with pytest.raises(AdapterError, match="more than float32 holds") as caught:
        merge_lora(base, adapter, tmp_path / "out", lora_weights=weight)
    assert {"file", "tensor", "expected", "found", "remedy"} <= caught.value.facts.keys()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_alpha": "16"},
        {"lora_alpha": True},
        {"lora_alpha": 10**400},
        {"r": 0},
        {"r": -2},
        {"r": 2.5},
        {"rank_pattern": {"q_proj": 0}},
        {"alpha_pattern": {"q_proj": None}},
        {"alpha_pattern": {"(": 1}},
        {"alpha_pattern": {"(?<=a)b": 1}},
        {"alpha_pattern": {"a" * 999 + "*": 1}},
        {"alpha_pattern": {f"{n}" + "a*" * 200: 1 for n in range(10)}},
    ],
    ids=lambda fields: json.dumps(fields)[:40],
)
def test_what_is_no_scaling_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    base, adapter = save_base(tmp_path / "base"), save_bare(tmp_path / "lora", **fields)
    with pytest.raises(AdapterError) as caught:
        merge_lora(base, adapter, tmp_path / "out")
    assert next(iter(fields)) in str(caught.value)
    assert {"file", "expected", "found", "remedy"} <= caught.value.facts.keys()
