"""LoRA on experts that transformers 5 fuses: onto files that hold them fused, or each by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from merge import merge_lora, verify_merge
from merge.errors import AdapterError
from tests.kit.adapters import load, make_lora, merge_with_peft
from tests.kit.files import Tensors, load_weights
from tests.kit.peft_methods import make_method, merge_method_with_peft
from tests.kit.tokenizer_models import write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ON_EXPERTS: dict[str, Any] = {"target_modules": [], "target_parameters": EXPERTS}
# By the class in transformers: what says how many experts there are, and how large.
HELD_APART: dict[str, dict[str, int]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {
        "num_experts": 4,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 32,
    },
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 48},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "both stacks": {},
    "one stack": {"target_parameters": EXPERTS[1:]},
    "beside attention": {"target_modules": ["q_proj", "o_proj"], "modules_to_save": ["norm"]},
    "rsLoRA": {"use_rslora": True, "r": 3},
}


def make_experts(folder: Path, name: str, **changes: Any) -> Path:
    """A tiny model with four experts in each of its two layers."""
    sizes = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")
    config = config(vocab_size=101, max_position_embeddings=64, **sizes | changes)
    getattr(transformers, f"{name}ForCausalLM")(config).half().save_pretrained(folder)
    write_tokenizer(folder, 101)
    return folder


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experts(tmp_path_factory.mktemp("mixtral") / "base", "Mixtral", num_local_experts=4)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, mixtral: Path) -> Path:
    return make_method(tmp_path_factory.mktemp("lora") / "lora", mixtral, "LORA", **ON_EXPERTS)


def merge_and_save_with_peft(base: Path, adapter: Path, folder: Path) -> Tensors:
    """PEFT's merge in float32 as transformers saves it, which takes the stacks apart again."""
    model = load(base)
    merged = merge_with_peft(base, [adapter])
    assert any(name.endswith("experts.gate_up_proj") for name in merged)
    model.load_state_dict(merged)
    model.save_pretrained(folder)
    return load_weights(folder)


@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("name", HELD_APART)
def test_experts_held_apart_merge_as_peft_merges_the_stack(
    tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    base = make_experts(tmp_path / "base", name, **HELD_APART[name])
    adapter = make_lora(tmp_path / "lora", base, lora_alpha=7, **ON_EXPERTS | settings)
    expected = merge_and_save_with_peft(base, adapter, tmp_path / "peft")
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    found, plain = load_weights(tmp_path / "out"), load_weights(base)
    assert found.keys() == expected.keys() == plain.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-6, msg=key)
    changed = [n for n in found if ".experts." in n and not torch.equal(found[n], plain[n].float())]
    assert len(changed) == 2 * 4 * (1 if settings.get("target_parameters") else 3)
    checked = verify_merge(tmp_path / "out")
    assert not checked.faults
    assert not checked.unchecked


def test_expert_is_held_against_its_own_factors(tmp_path: Path, mixtral: Path, lora: Path) -> None:
    merge_lora(mixtral, lora, tmp_path / "out", output_type="huggingface", safe_serialization=True)
    (tmp_path / "out" / "merge_manifest.json").unlink()  # whose digests would tell it too
    assert not verify_merge(tmp_path / "out", base_model=mixtral, lora_model=lora).faults
    path = next((tmp_path / "out").glob("*.safetensors"))
    tensors = load_file(path)
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    tensors[name] = load_weights(mixtral)[name].clone()
    save_file(tensors, path, {"format": "pt"})
    (fault,) = verify_merge(tmp_path / "out", base_model=mixtral, lora_model=lora).faults
    assert name in fault.facts["tensor"]


def test_without_peft_the_experts_are_named_as_not_checked(
    tmp_path: Path, mixtral: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_lora(mixtral, lora, tmp_path / "out", output_type="huggingface")
    monkeypatch.setattr("merge.verification.by_peft.find_spec", lambda name: None)
    checked = verify_merge(tmp_path / "out")
    assert not checked.faults
    assert any("experts" in line and "not installed" in line for line in checked.unchecked)


def test_lora_before_and_after_it(tmp_path: Path, mixtral: Path, lora: Path) -> None:
    before, after = (
        make_lora(tmp_path / name, mixtral, target_modules=["q_proj"], seed=seed)
        for name, seed in (("before", 4), ("after", 5))
    )
    merge_lora(mixtral, [before, lora, after], tmp_path / "out", output_type="huggingface")
    merge_lora(mixtral, lora, tmp_path / "one", output_type="huggingface")
    found, alone = load_weights(tmp_path / "out"), load_weights(tmp_path / "one")
    experts = [name for name in found if ".experts." in name]
    assert len(experts) == 24
    assert all(torch.equal(found[name], alone[name]) for name in experts)
    assert not verify_merge(tmp_path / "out").faults


def test_files_that_hold_the_stacks(tmp_path: Path) -> None:
    base = make_experts(tmp_path / "base", "GptOss", num_local_experts=4)
    adapter = make_method(tmp_path / "adapter", base, "LORA", **ON_EXPERTS)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    found = load_weights(tmp_path / "out")
    expected = merge_method_with_peft(base, adapter, torch.float16)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert not verify_merge(tmp_path / "out").faults


@pytest.mark.parametrize("spoiled", ["one expert is not there", "other names"])
def test_experts_that_are_no_whole_stack_are_refused(
    tmp_path: Path, lora: Path, spoiled: str
) -> None:
    base = make_experts(tmp_path / "base", "Mixtral", num_local_experts=4)
    path = base / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if ".experts.3." in name]:
        tensor = tensors.pop(name)
        if spoiled == "other names":
            tensors[name.replace(".w", ".v")] = tensor
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(AdapterError, match="each expert by itself") as caught:
        merge_lora(base, lora, tmp_path / "out", output_type="huggingface")
    assert caught.value.facts["remedy"]
    assert not (tmp_path / "out").exists()


def test_adapter_of_more_experts_is_refused(tmp_path: Path, lora: Path) -> None:
    base = make_experts(tmp_path / "base", "Mixtral", num_local_experts=2)
    with pytest.raises(AdapterError, match="PEFT cannot merge"):
        merge_lora(base, lora, tmp_path / "out", output_type="huggingface")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"num_local_experts": 4}), "utf-8")
    with pytest.raises(AdapterError, match="each expert by itself"):
        merge_lora(base, lora, tmp_path / "out", output_type="huggingface")
