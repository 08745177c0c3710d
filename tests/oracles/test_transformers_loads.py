"""What transformers 5 and 4.46 say of the merged folder: every key there, logits as under PEFT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from merge import merge_lora
from tests.kit.adapters import make_adapter
from tests.kit.llamas import make_base
from tests.kit.transformers_446 import needs_transformers_446, run_in_transformers_446

IDS = [[1, 5, 9, 120, 33, 77, 149, 2]]

LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM
model, info = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], torch_dtype=torch.float32, output_loading_info=True)
logits = model(torch.tensor(json.loads(sys.argv[2]))).logits
config = model.config
print(json.dumps({
    "info": {key: sorted(map(str, value)) for key, value in info.items()},
    "logits": logits.tolist(),
    "rope_theta": config.rope_theta,
    "dtype": str(config.torch_dtype),
    "vocab_size": config.vocab_size,
}))
"""


@pytest.fixture(scope="module", params=[False, True], ids=["bin", "safetensors"])
def merged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A merged model in shards, and the logits of base and adapter under PEFT."""
    folder = tmp_path_factory.mktemp("merged")
    rope = {"rope_theta": 500.0, "rope_type": "default"}
    base = make_base(folder / "base", num_key_value_heads=4, rope_parameters=rope)
    adapter = make_adapter(folder / "lora", base, rows=150)
    settings = {"safe_serialization": request.param, "max_shard_size": "100KB"}
    merge_lora(
        base, adapter, folder / "out", output_type="huggingface", dtype="float32", **settings
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(150, mean_resizing=False)
    with torch.no_grad():
        logits = PeftModel.from_pretrained(model, adapter)(torch.tensor(IDS)).logits
    return folder / "out", logits


def test_transformers_5_loads_every_key_and_gives_pefts_logits(merged: Any) -> None:
    folder, expected = merged
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.vocab_size == 150
    with torch.no_grad():
        logits = model(torch.tensor(IDS)).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@needs_transformers_446
def test_transformers_4_46_loads_every_key_and_gives_pefts_logits(merged: Any) -> None:
    folder, expected = merged
    found = run_in_transformers_446(LOAD, folder, IDS)
    assert not any(found["info"].values()), found["info"]
    assert found["rope_theta"] == 500.0
    assert found["dtype"] == "torch.float32"
    assert found["vocab_size"] == 150
    logits = torch.tensor(found["logits"])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
