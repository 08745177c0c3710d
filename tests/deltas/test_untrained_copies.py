"""Copies of the base that adapters hold untrained: they take nothing from earlier adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from merge import merge_lora, verify_merge
from merge.errors import AdapterError
from tests.kit.adapters import make_lora, merge_with_peft
from tests.kit.files import load_weights
from tests.kit.llamas import make_base

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

EXACT: dict[str, Any] = {"output_type": "huggingface", "dtype": "float32"}
# The first adapter, the second one, and what makes the second one's file hold copies of the base.
COPIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "a Trainer's checkpoint": ({}, {"target_modules": ["v_proj"]}, {"raw": True}),
    "a checkpoint of the same layers": ({}, {}, {"raw": True}),
    "embeddings under a LoRA": (
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens"]},
        {"save_embedding_layers": True},
    ),
    "embeddings that were not trained": (
        {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
        {},
        {"save_embedding_layers": True},
    ),
    "a norm that was trained first": ({"modules_to_save": ["norm"]}, {}, {"raw": True}),
    "a layer that was trained whole first": (
        {"modules_to_save": ["mlp"], "target_modules": ["q_proj"]},
        {},
        {"raw": True},
    ),
}


@pytest.fixture(scope="module", params=[torch.float16, torch.float32], ids=["half", "full"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("copies") / "base", dtype=request.param)


@pytest.mark.parametrize(("first", "second", "copying"), COPIES.values(), ids=COPIES)
def test_an_untrained_copy_takes_nothing_from_the_adapter_before(
    tmp_path: Path,
    base: Path,
    first: dict[str, Any],
    second: dict[str, Any],
    copying: dict[str, Any],
) -> None:
    before = make_lora(tmp_path / "first", base, **first)
    plain = make_lora(tmp_path / "plain", base, seed=2, **second)
    copies = make_lora(tmp_path / "copies", base, seed=2, **second | copying)
    merge_lora(base, [before, copies], tmp_path / "out", **EXACT)
    assert not verify_merge(tmp_path / "out").faults
    merged = load_weights(tmp_path / "out")
    for name, tensor in merge_with_peft(base, [before, plain]).items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_a_copy_of_what_the_adapter_before_made(tmp_path: Path, base: Path) -> None:
    before = make_lora(tmp_path / "first", base)
    merge_lora(base, before, tmp_path / "middle", output_type="huggingface")
    after = make_lora(tmp_path / "second", tmp_path / "middle", seed=2, raw=True)
    merge_lora(base, [before, after], tmp_path / "out", **EXACT)
    assert not verify_merge(tmp_path / "out").faults
    merge_lora(tmp_path / "middle", after, tmp_path / "stepwise", **EXACT)
    merged, stepwise = load_weights(tmp_path / "out"), load_weights(tmp_path / "stepwise")
    for name, tensor in stepwise.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_a_copy_of_another_model_is_refused(tmp_path: Path, base: Path) -> None:
    other = make_base(tmp_path / "other", seed=5)
    before = make_lora(tmp_path / "first", base)
    after = make_lora(tmp_path / "second", other, raw=True)
    merge_lora(base, after, tmp_path / "alone", dry_run=True)
    with pytest.raises(AdapterError, match="it is of another model") as caught:
        merge_lora(base, [before, after], tmp_path / "out", **EXACT)
    assert caught.value.facts["tensor"] == "model.layers.0.self_attn.q_proj.weight"
    assert not (tmp_path / "out").exists()


def test_a_copy_with_fewer_rows_leaves_the_others(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    before = make_lora(tmp_path / "first", base, target_modules=["embed_tokens", "lm_head"])
    sides = {"target_modules": ["embed_tokens", "lm_head"], "save_embedding_layers": True}
    after = make_lora(tmp_path / "second", base, seed=2, rows=96, **sides)
    (after / "tokenizer.model").unlink()
    kept = {**EXACT, "vocab_mismatch": "keep_base_rows"}
    merge_lora(base, before, tmp_path / "middle", **EXACT)
    merge_lora(base, [before, after], tmp_path / "out", **kept)
    merged, middle = load_weights(tmp_path / "out"), load_weights(tmp_path / "middle")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(merged[name][96:], middle[name][96:])
        assert not torch.allclose(merged[name][:96], middle[name][:96])
