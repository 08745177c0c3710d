"""The base of the rotary frequencies, wherever ``config.json`` says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from transformers import LlamaConfig

from merge import merge_lora, verify_merge
from merge.errors import LayoutError
from tests.kit.files import write_json
from tests.kit.models import save_adapter, save_base

LINEAR = {"rope_type": "linear", "factor": 2.0}
SPELLINGS: dict[str, dict[str, Any]] = {
    "in rope_scaling": {"rope_scaling": {**LINEAR, "rope_theta": 500000.0}},
    "in rope_scaling that scales nothing": {
        "rope_scaling": {"rope_type": "default", "rope_theta": 500000.0}
    },
    "in rope_parameters": {"rope_parameters": {**LINEAR, "rope_theta": 500000.0}},
    "at the top": {"rope_theta": 500000.0, "rope_scaling": LINEAR},
    "twice the same": {"rope_theta": 5e5, "rope_scaling": {**LINEAR, "rope_theta": 500000}},
}


@pytest.fixture(params=SPELLINGS.values(), ids=SPELLINGS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_base(tmp_path / "base", **request.param)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "lora")


def rotary(folder: Path) -> dict[str, Any]:
    """What transformers 5 makes of a folder's configuration."""
    return dict(LlamaConfig.from_pretrained(folder).rope_parameters)


def test_hugging_face_output_has_what_transformers_reads_of_the_base(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    merge_lora(base, lora, out, output_type="huggingface")
    expected = rotary(base)
    assert expected["rope_theta"] == 500000.0
    found = rotary(out)
    assert {key: found[key] for key in expected} == expected
    assert not verify_merge(out).faults


def test_gguf_output_has_the_base(base: Path, lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge_lora(base, lora, out, output_type="gguf")
    field = GGUFReader(next(out.glob("*.gguf"))).get_field("llama.rope.freq_base")
    assert field is not None
    assert field.contents() == 500000.0
    assert not verify_merge(out).faults


def test_params_json_has_the_base(lora: Path, tmp_path: Path) -> None:
    scaling = SPELLINGS["in rope_scaling that scales nothing"]
    base = save_base(tmp_path / "base", **scaling)
    merge_lora(base, lora, tmp_path / "out")
    params = json.loads((tmp_path / "out" / "params.json").read_text(encoding="utf-8"))
    assert params["rope_theta"] == 500000.0


def test_verification_calls_a_result_with_the_default_base_wrong(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    merge_lora(base, lora, out, output_type="huggingface")
    (out / "merge_manifest.json").unlink()
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    write_json(out / "config.json", config | {"rope_theta": 10000.0})
    faults = verify_merge(out, base_model=base, lora_model=lora).faults
    assert any("rope_theta" in str(fault) for fault in faults)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_two_bases_are_refused_with_both(lora: Path, tmp_path: Path, key: str) -> None:
    nested = {key: {**LINEAR, "rope_theta": 500000.0}}
    base = save_base(tmp_path / "base", rope_theta=10000.0, **nested)
    with pytest.raises(LayoutError, match="two bases") as caught:
        merge_lora(base, lora, tmp_path / "out")
    assert f"{key}.rope_theta 500000" in caught.value.facts["found"]
    assert "rope_theta 10000" in caught.value.facts["found"]
