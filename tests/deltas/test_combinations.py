"""Generated combinations of adapters, one or two in order, against PEFT's own merge."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from merge import merge_lora
from tests.kit.adapters import LINEAR, logits_of, logits_with_peft, make_lora, merge_with_peft
from tests.kit.files import load_weights
from tests.kit.llamas import make_base

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings(
        "ignore:The following:RuntimeWarning"
    ),  # patterns that match nothing
]

EXACT: dict[str, Any] = {"output_type": "huggingface", "dtype": "float32"}
TARGETS = [*LINEAR, "embed_tokens", "lm_head"]


def patterns(names: list[str], largest: int) -> st.SearchStrategy[dict[str, int]]:
    """Patterns in the order that PEFT's files have: sorted, so that the first match is the same."""
    drawn = st.dictionaries(st.sampled_from(names), st.integers(1, largest), max_size=2)
    return drawn.map(lambda chosen: dict(sorted(chosen.items())))


@st.composite
def adapters(draw: st.DrawFn) -> dict[str, Any]:
    """Settings that PEFT accepts together."""
    targets = draw(st.lists(st.sampled_from(TARGETS), min_size=1, max_size=4, unique=True))
    free = [name for name in ("norm", "embed_tokens", "lm_head") if name not in targets]
    saved = draw(st.lists(st.sampled_from(free), max_size=2, unique=True))
    chosen: dict[str, Any] = {
        "target_modules": targets,
        "modules_to_save": saved or None,
        "r": draw(st.integers(1, 9)),
        "lora_alpha": draw(st.sampled_from([1, 4, 12.5])),
        "use_rslora": draw(st.booleans()),
        "use_dora": draw(st.booleans()),
        "rank_pattern": draw(patterns([*targets, r"layers\.1\..*"], 5)),
        "alpha_pattern": draw(patterns([*targets, ".*_proj"], 20)),
        "dtype": draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
    }
    sides = [name for name in ("embed_tokens", "lm_head") if name not in (*targets, *saved)]
    if sides and draw(st.booleans()):
        indices = st.lists(st.integers(0, 100), min_size=1, max_size=4, unique=True)
        chosen["trainable_token_indices"] = draw(
            st.dictionaries(st.sampled_from(sides), indices, min_size=1)
        )
    return chosen


def is_made_by_peft(adapter: dict[str, Any], tied: bool) -> bool:
    """PEFT ties trained rows of the embeddings to the head of tied models, but fails in the forward
    pass when that head is trained whole or has a DoRA.
    """
    if not tied or "embed_tokens" not in (adapter.get("trainable_token_indices") or {}):
        return True
    dora = adapter["use_dora"] and "lm_head" in adapter["target_modules"]
    return not dora and "lm_head" not in (adapter["modules_to_save"] or ())


@settings(
    max_examples=25,
    phases=[Phase.generate],
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    chosen=st.lists(adapters(), min_size=1, max_size=2),
    tied=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_any_combination_merges_as_peft_does(
    chosen: list[dict[str, Any]], tied: bool, dtype: torch.dtype
) -> None:
    assume(all(is_made_by_peft(one, tied) for one in chosen))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_base(folder / "base", dtype=dtype, tie_word_embeddings=tied)
        saved = [
            make_lora(folder / f"lora{number}", base, seed=number, **one)
            for number, one in enumerate(chosen)
        ]
        merge_lora(base, saved, folder / "out", **EXACT)
        if tied:  # there PEFT's merge changes both sides, its own forward pass only one
            *before, last = saved
            if before:
                merge_lora(base, before, folder / "before", **EXACT)
            expected = logits_with_peft(folder / "before" if before else base, last)
            torch.testing.assert_close(logits_of(folder / "out"), expected, rtol=1e-3, atol=1e-3)
            return
        reference = merge_with_peft(base, saved)
        merged = load_weights(folder / "out")
        assert merged.keys() == reference.keys()
        for tensor_name, tensor in reference.items():
            torch.testing.assert_close(
                merged[tensor_name], tensor, rtol=1e-4, atol=1e-5, msg=tensor_name
            )
