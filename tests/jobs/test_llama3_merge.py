"""Chinese LoRA adapters on Llama 3: from Meta's folder and from Hugging Face's, into both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from merge.jobs.convert_checkpoint import convert_checkpoint
from merge.jobs.merge_lora import merge_lora
from merge.jobs.verify_merge import verify_merge
from tests.kit.adapters import make_adapter, make_lora, merge_with_peft
from tests.kit.files import Tensors, load_weights
from tests.kit.llama3_models import llama3_params, make_llama3


class Models(NamedTuple):
    """A base in both layouts, and an adapter as Llama-3-Chinese's: whole vocabulary, r 64."""

    meta: Path
    hf: Path
    adapter: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Models:
    folder = tmp_path_factory.mktemp("llama3")
    meta = make_llama3(folder / "meta", real_data)
    convert_checkpoint(meta, folder / "hf", safe_serialization=True)
    settings = {"r": 64, "lora_alpha": 128, "dtype": torch.bfloat16, "std": 0.05}
    adapter = make_adapter(folder / "lora", folder / "hf", **settings)  # type: ignore[arg-type]
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (adapter / name).write_bytes((folder / "hf" / name).read_bytes())
    return Models(meta, folder / "hf", adapter)


def require_close(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_merges_from_either_layout_as_peft_does(
    tmp_path: Path, models: Models, layout: str
) -> None:
    base = getattr(models, layout)
    out = tmp_path / "out"
    merge_lora(base, models.adapter, out, output_type="huggingface", dtype="float32")
    require_close(load_weights(out), merge_with_peft(models.hf, [models.adapter]))
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert (config["vocab_size"], config["rope_theta"]) == (128_256, 500_000.0)
    assert (config["bos_token_id"], config["eos_token_id"]) == (128_000, 128_001)
    tokenizer = (models.hf / "tokenizer.json").read_bytes()
    assert (out / "tokenizer.json").read_bytes() == tokenizer
    assert not verify_merge(out).faults


@pytest.mark.parametrize("count", [1, 2])
def test_merges_into_metas_layout(tmp_path: Path, models: Models, count: int) -> None:
    out = tmp_path / "out"
    merge_lora(models.hf, models.adapter, out, num_shards=count, dtype="bfloat16")
    assert json.loads((out / "params.json").read_text()) == llama3_params("3")
    file = (models.meta / "tokenizer.model").read_bytes()
    assert (out / "tokenizer.model").read_bytes() == file
    shards = [torch.load(path, weights_only=True) for path in sorted(out.glob("*.pth"))]
    embeddings = [shard["tok_embeddings.weight"] for shard in shards]
    assert [len(part) for part in embeddings] == [128_256 // count] * count
    assert not verify_merge(out).faults
    convert_checkpoint(out, tmp_path / "hf")
    expected = merge_with_peft(models.hf, [models.adapter])
    found = load_weights(tmp_path / "hf")
    assert torch.equal(torch.cat(embeddings), found["model.embed_tokens.weight"])
    rounded = {name: tensor.bfloat16() for name, tensor in expected.items()}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, rounded[name], rtol=0.008, atol=1e-6, msg=name)


def test_tied_llama_3_2_stays_tied(tmp_path: Path, real_data: Path) -> None:
    meta = make_llama3(tmp_path / "meta", real_data, "3.2")
    convert_checkpoint(meta, tmp_path / "hf", safe_serialization=True)
    adapter = make_lora(tmp_path / "lora", tmp_path / "hf")
    merge_lora(meta, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    expected = merge_with_peft(tmp_path / "hf", [adapter])
    expected.pop("lm_head.weight")
    require_close(load_weights(tmp_path / "out"), expected)
    merge_lora(meta, adapter, tmp_path / "pth", dtype="bfloat16")
    (shard,) = [torch.load(path, weights_only=True) for path in (tmp_path / "pth").glob("*.pth")]
    assert torch.equal(shard["output.weight"], shard["tok_embeddings.weight"])
    assert json.loads((tmp_path / "pth" / "params.json").read_text()) == llama3_params("3.2")
