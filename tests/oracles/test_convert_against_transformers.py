"""The conversion against transformers' own script of that name, as 4.46 has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merge.jobs.convert_checkpoint import convert_checkpoint
from tests.kit.files import load_weights
from tests.kit.meta_models import ROWS, hf_tensors, meta_tensors, params, save_meta, split
from tests.kit.transformers_446 import needs_transformers_446, run_in_transformers_446

THEIRS = """
import json, sys
from transformers.models.llama.convert_llama_weights_to_hf import write_model
write_model(sys.argv[2], sys.argv[1], num_shards=int(sys.argv[3]), vocab_size=int(sys.argv[4]),
            llama_version=sys.argv[5])
print(json.dumps("done"))
"""
# What only the library that wrote a configuration can know, and how it names its own defaults.
NOT_COMPARED = {"transformers_version", "head_dim", "pad_token_id", "torch_dtype"}


CASES = [(1, 8, "1"), (1, 4, "2"), (2, 8, "1"), (2, 4, "2"), (4, 8, "1"), (4, 4, "3")]


@needs_transformers_446
@pytest.mark.parametrize(("count", "kv_heads", "version"), CASES)
def test_every_tensor_and_number_is_theirs(
    tmp_path: Path, count: int, kv_heads: int, version: str
) -> None:
    """Theirs always rounds to bfloat16; ours does when asked, and else keeps every bit."""
    by_rows = version == "3"
    changes: dict[str, Any] = {"rope_theta": 500000.0} if by_rows else {}
    tensors = meta_tensors(kv_heads)
    meta = save_meta(tmp_path / "meta", split(tensors, count, by_rows), params(kv_heads, **changes))
    run_in_transformers_446(THEIRS, meta, tmp_path / "theirs", count, ROWS, version)
    length = {"1": 2048, "2": 4096, "3": 8192}[version]
    for dtype in ("bfloat16", "auto"):
        convert_checkpoint(meta, tmp_path / dtype, dtype=dtype, context_length=length)
    theirs = load_file(tmp_path / "theirs/model.safetensors")
    ours = load_weights(tmp_path / "bfloat16")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == torch.bfloat16, name
        assert torch.equal(tensor, theirs[name]), name
    exact = hf_tensors(tensors, kv_heads)
    for name, tensor in load_weights(tmp_path / "auto").items():
        assert torch.equal(tensor, exact[name]), name
    configs = [
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for folder in (tmp_path / "bfloat16", tmp_path / "theirs")
    ]
    if by_rows:  # Llama 3's own tokens, which the tokenizer here does not have
        configs[1] |= {"bos_token_id": 1, "eos_token_id": 2}
    ours_config, theirs_config = (
        {key: value for key, value in config.items() if key not in NOT_COMPARED}
        for config in configs
    )
    assert ours_config == theirs_config
