"""Several adapters on a tied base: the same as merging one after the other, whatever unties it."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import merge_lora, verify_merge
from tests.kit.adapters import logits_of, logits_with_peft, make_lora
from tests.kit.files import load_weights
from tests.kit.llamas import make_base

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

EXACT: dict[str, Any] = {"output_type": "huggingface", "dtype": "float32"}
ADAPTERS: dict[str, dict[str, Any]] = {
    "saved and kept tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": [3, 4]},
    "embedding LoRA": {"target_modules": ["embed_tokens", "q_proj"]},
    "tokens under a LoRA": {"trainable_token_indices": [4, 9], "target_modules": ["lm_head"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tied") / "base", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: make_lora(folder / name, base, seed=seed, **settings)
        for seed, (name, settings) in enumerate(ADAPTERS.items())
    }


@pytest.mark.parametrize(("first", "second"), [*permutations(ADAPTERS, 2)])
def test_a_chain_is_one_merge_after_the_other(
    tmp_path: Path, base: Path, adapters: dict[str, Path], first: str, second: str
) -> None:
    chain = [adapters[first], adapters[second]]
    merge_lora(base, chain, tmp_path / "out", **EXACT)
    assert not verify_merge(tmp_path / "out").faults
    merge_lora(base, chain[0], tmp_path / "first", **EXACT)
    merge_lora(tmp_path / "first", chain[1], tmp_path / "stepwise", **EXACT)
    together, stepwise = load_weights(tmp_path / "out"), load_weights(tmp_path / "stepwise")
    assert together.keys() == stepwise.keys()
    for name, tensor in stepwise.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    expected = logits_with_peft(tmp_path / "first", chain[1])
    torch.testing.assert_close(logits_of(tmp_path / "out"), expected, rtol=1e-4, atol=1e-4)


def test_rows_go_to_the_embeddings_alone_once_the_model_is_untied(
    tmp_path: Path, base: Path, adapters: dict[str, Path]
) -> None:
    chain = [adapters["embedding LoRA"], adapters["tokens"]]
    merge_lora(base, chain, tmp_path / "out", **EXACT)
    old, new = load_weights(base), load_weights(tmp_path / "out")
    assert torch.equal(new["lm_head.weight"], old["model.embed_tokens.weight"].float())
