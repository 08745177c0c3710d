"""Adapters as several PEFT releases wrote them, against the logits that PEFT gave with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from merge import merge_lora

# A plain float16 merge that rounds after each stage reaches 0.005 to 0.015 here.
TOLERANCE = 0.02


@pytest.mark.parametrize("release", ["0.2.0", "0.5.0", "0.21.2"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("rounding", ["once", "per_adapter"])
def test_logits_of_both_stages(
    tmp_path: Path, real_data: Path, release: str, stage: int, rounding: str
) -> None:
    folder = real_data / "adapters" / f"peft-{release}"
    chain = [folder / "chinese_llama_lora", folder / "chinese_alpaca_lora"][:stage]
    base = real_data / "stories260K_zh_base_hf"
    merge_lora(base, chain, tmp_path / "out", output_type="huggingface", rounding=rounding)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    reference = np.load(folder / f"ref_stage{stage}.npz")
    for number in range(3):
        ids = torch.from_numpy(reference[f"ids{number}"]).long().view(1, -1)
        expected = torch.from_numpy(reference[f"l{number}"])
        with torch.no_grad():
            logits = model(ids).logits.view(expected.shape)
        assert float((logits - expected).abs().max()) < TOLERANCE


def test_the_untrained_copy_is_left_aside(tmp_path: Path, real_data: Path) -> None:
    adapter = real_data / "adapters/peft-0.21.2/chinese_llama_lora"
    report = merge_lora(real_data / "stories260K_zh_base_hf", adapter, tmp_path / "out")
    assert sorted(report.job.adapters[0].ignored) == [
        "lm_head.original_module.weight",
        "model.embed_tokens.original_module.weight",
    ]
