"""Every refusal in the registry, on what PEFT itself made where PEFT can make it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.config import (
    ArrowConfig,
    BdLoraConfig,
    KasaConfig,
    MontecloraConfig,
    VeloraConfig,
)
from transformers import LlamaForCausalLM

from merge import merge_lora
from merge.deltas.refusals import REFUSED
from merge.errors import AdapterError
from tests.kit.adapters import load, make_lora, merge_with_peft
from tests.kit.files import load_weights
from tests.kit.llamas import make_base

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
ON_Q = {"r": 2, "target_modules": ["q_proj"]}
TOKENS = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
# By name in the registry: the configuration class and its settings, for kinds that PEFT makes here.
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "AdaLoRA": (
        "AdaLoraConfig",
        {"init_r": 2, "total_step": 9, "tinit": 1, "tfinal": 2, "target_modules": ["q_proj"]},
    ),
    "IA³": ("IA3Config", {"target_modules": ["k_proj"], "feedforward_modules": []}),
    "VeRA": ("VeraConfig", ON_Q),
    "LoHa": ("LoHaConfig", ON_Q),
    "LoKr": ("LoKrConfig", ON_Q),
    "prefix tuning": ("PrefixTuningConfig", TOKENS),
    "prompt tuning": ("PromptTuningConfig", TOKENS),
    "p-tuning": ("PromptEncoderConfig", TOKENS),
    "any other peft_type": ("FourierFTConfig", {"n_frequency": 10, "target_modules": ["q_proj"]}),
    "PiSSA": ("LoraConfig", LORA | {"init_lora_weights": "pissa_niter_4"}),
    "OLoRA": ("LoraConfig", LORA | {"init_lora_weights": "olora"}),
    # PEFT's own step before it, over data, changes the base; what is saved says no more than this.
    "LoRA-GA": ("LoraConfig", LORA | {"init_lora_weights": "lora_ga"}),
    "QALoRA": ("LoraConfig", LORA | {"use_qalora": True}),
    "BD-LoRA": (
        "LoraConfig",
        LORA | {"use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=[])},
    ),
    "KaSA": ("LoraConfig", LORA | {"kasa_config": KasaConfig()}),
    "VeLoRA": ("LoraConfig", LORA | {"velora_config": VeloraConfig()}),
    "MonteCLoRA": ("LoraConfig", LORA | {"monteclora_config": MontecloraConfig()}),
    "layer replication": ("LoraConfig", LORA | {"layer_replication": [(0, 2), (0, 2)]}),
    "target_parameters": (
        "LoraConfig",
        LORA | {"target_modules": [], "target_parameters": ["self_attn.q_proj.weight"]},
    ),
    "activated LoRA": (
        "LoraConfig",
        LORA | {"alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM"},
    ),
}
# Those that PEFT makes of finished LoRAs.
MADE_OF_OTHERS = ("X-LoRA", "Arrow")
# Those that PEFT cannot make here, and why: the field alone.
FIELDS: dict[str, dict[str, Any]] = {
    # its covariances come from data, by a module of PEFT that needs the package attrs
    "CorDA": {"init_lora_weights": "corda"},
    # needs scipy, and a base that is quantised
    "LoftQ": {"init_lora_weights": "loftq"},
    "any other start of its own": {"init_lora_weights": "something of next year"},
    # PEFT 0.2 had it, for models of 8-bit kernels alone
    "fused q, k, v (enable_lora)": {"enable_lora": [True, False, True]},
    # needs Megatron, which needs a GPU
    "Megatron": {"megatron_config": {"a": 1}},
}


def test_every_refusal_of_the_registry_has_a_case() -> None:
    assert MADE.keys() | FIELDS.keys() | {*MADE_OF_OTHERS} == {refusal.name for refusal in REFUSED}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("refusals") / "base")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """An adapter with nothing wrong, to be spoiled in a copy."""
    return make_lora(tmp_path_factory.mktemp("lora"), base)


def save(folder: Path, base: Path, kind: str, settings: dict[str, Any]) -> Path:
    model: LlamaForCausalLM = load(base)
    adapted = peft.get_peft_model(model, getattr(peft, kind)(**settings))
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def copied(adapter: Path, folder: Path) -> Path:
    return Path(shutil.copytree(adapter, folder))


def refused(base: Path, adapter: Path, out: Path) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        merge_lora(base, adapter, out)
    assert caught.value.facts["remedy"]
    assert not out.exists()
    return caught.value


def save_any(folder: Path, base: Path, lora: Path, name: str) -> Path:
    """Let PEFT make an adapter of a refused kind."""
    if name in MADE:
        return save(folder, base, *MADE[name])
    model: LlamaForCausalLM = load(base)
    if name == "Arrow":
        peft.create_arrow_model(model, [str(lora)], ArrowConfig(top_k=1)).save_pretrained(folder)
        return folder / "arrow_router"
    model.config.use_cache = False
    config = peft.XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=64, xlora_depth=1, adapters={"0": str(lora)}
    )
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", [*MADE, *MADE_OF_OTHERS])
def test_kind_that_peft_made_is_refused_by_name(
    tmp_path: Path, base: Path, lora: Path, name: str
) -> None:
    error = refused(base, save_any(tmp_path / "lora", base, lora, name), tmp_path / "out")
    refusal = next(refusal for refusal in REFUSED if refusal.name == name)
    assert ("peft_type FOURIERFT" if name.startswith("any other") else name) in error.sentence
    assert refusal.reason in error.sentence
    assert f'"{refusal.field}"' in error.facts["found"]


@pytest.mark.parametrize(("name", "fields"), FIELDS.items(), ids=FIELDS)
def test_field_is_refused_by_name(
    tmp_path: Path, base: Path, lora: Path, name: str, fields: dict[str, Any]
) -> None:
    adapter = copied(lora, tmp_path / "lora")
    set_fields(adapter, **fields)
    error = refused(base, adapter, tmp_path / "out")
    told = str(next(iter(fields.values()))) if name.startswith("any other") else name
    assert told in error.sentence
    assert f'"{next(iter(fields))}"' in error.facts["found"]


def set_fields(adapter: Path, **fields: Any) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(config), encoding="utf-8")


BETRAYED = [
    *("AdaLoRA", "IA³", "VeRA", "LoHa", "LoKr", "prompt tuning", "any other peft_type"),
    *("KaSA", "VeLoRA", "MonteCLoRA"),
]


@pytest.mark.parametrize("name", BETRAYED)
def test_tensors_betray_what_the_configuration_does_not_say(
    tmp_path: Path, base: Path, lora: Path, name: str
) -> None:
    adapter = save(tmp_path / "lora", base, *MADE[name])
    plain = copied(lora, tmp_path / "plain")
    (plain / "adapter_config.json").replace(adapter / "adapter_config.json")
    error = refused(base, adapter, tmp_path / "out")
    assert error.facts["file"] == str(adapter / "adapter_model.safetensors")
    assert error.facts["tensor"] in load_weights(adapter)


@pytest.mark.parametrize("start", [["pissa"], {"type": "pissa"}, 1, "", "PiSSA"], ids=str)
def test_start_of_any_spelling_is_refused(
    tmp_path: Path, base: Path, lora: Path, start: Any
) -> None:
    adapter = copied(lora, tmp_path / "lora")
    set_fields(adapter, init_lora_weights=start)
    error = refused(base, adapter, tmp_path / "out")
    assert "initiali" in error.sentence
    assert error.facts["file"] == str(adapter / "adapter_config.json")
    assert error.facts["found"] == f'"init_lora_weights": {start!r}'


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "mica"])
def test_start_that_leaves_the_base_alone_is_merged(
    tmp_path: Path, base: Path, start: bool | str
) -> None:
    settings = LORA | {"init_lora_weights": start}
    adapter = save(tmp_path / "lora", base, "LoraConfig", settings)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    found, theirs = load_weights(tmp_path / "out"), merge_with_peft(base, [adapter])
    assert found.keys() == theirs.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-5, msg=name)


# As trainers and people have called what changes the arithmetic: no part of a name tells it.
UNKNOWN = {
    "multiplier": 3.0,
    "merge_factor": 0.3,
    "normalize_output": True,
    "decompose_both": True,
    "block_diagonal": True,
    "beta": 0.5,
    "dora_simple": True,
    "use_next_years_idea": {"a": 1},
    "note": "text",
}


@pytest.mark.parametrize("field", UNKNOWN)
def test_unknown_field_that_is_set_is_refused(
    tmp_path: Path, base: Path, lora: Path, field: str
) -> None:
    adapter = copied(lora, tmp_path / "lora")
    set_fields(adapter, **{field: UNKNOWN[field]})
    error = refused(base, adapter, tmp_path / "out")
    assert f'"{field}"' in error.facts["found"]
    assert "remove it" in error.facts["remedy"]


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}], ids=repr)
def test_unknown_field_that_is_not_set_is_listed(
    tmp_path: Path, base: Path, lora: Path, value: object
) -> None:
    adapter = copied(lora, tmp_path / "lora")
    set_fields(adapter, decompose_both=value)
    report = merge_lora(base, adapter, tmp_path / "out", dry_run=True)
    assert "decompose_both" in report.summary()


HARMLESS_FIELDS = {
    "use_cache": True,
    "lora_dtype": "AUTO",
    "lorap_lr_ratio": 16.0,
    "lorap_emb_lr": 1e-6,
    "loraplus_lr_ratio": 16,
    "use_gradient_checkpointing": "unsloth",
}


@pytest.mark.parametrize("field", HARMLESS_FIELDS)
def test_fields_that_trainers_are_known_to_write_are_passed_over(
    tmp_path: Path, base: Path, lora: Path, field: str
) -> None:
    adapter = copied(lora, tmp_path / "lora")
    set_fields(adapter, **{field: HARMLESS_FIELDS[field]})
    report = merge_lora(base, adapter, tmp_path / "out", dry_run=True)
    assert field not in report.summary()


STRAY = [
    "stray",
    "weight",
    "model.layers.0.self_attn.q_proj.lora_C.weight",
    "model.layers.0.self_attn.q_proj.lora_A",
    "model.layers.0.self_attn.q_proj.lora_A.default.extra.weight",
    "model.layers.0.self_attn.q_proj.lora_A.bias",
    "model.layers.0.self_attn.q_proj.lora_B.bias",
    "model.layers.0.self_attn.k_proj.lora_B.weight",
    "model.layers.0.self_attn.k_proj.lora_embedding_A",
    "model.embed_tokens.lora_embedding_A",
    "model.embed_tokens.lora_embedding_B.weight",
    "model.layers.0.self_attn.q_proj.lora_magnitude_vector",
    "model.layers.0.self_attn.q_proj.lora_magnitude_vector.default.weight",
    "model.embed_tokens.token_adapter.trainable_tokens_delta",
    "model.embed_tokens.trainable_tokens_delta.default",
    "model.embed_tokens.token_adapter.trainable_tokens_original",
    "model.layers.0.self_attn.q_proj.modules_to_save.weight",
    "model.layers.0.self_attn.q_proj.base_layer.scales",
    "model.layers.0.self_attn.q_proj.base_layer.weight.absmax",
    "model.layers.0.self_attn.q_proj.base_layer.base_layer.weight",
    "model.layers.0.mlp.original_module.weight",
    "model.layers.0.mlp.modules_to_save.default.gate_proj.extra",
    "model.layers.9.self_attn.q_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.self_attn.qkv_proj.weight",
    "model.norm.weight.second",
    "score.weight",
]


@pytest.mark.parametrize("prefix", ["base_model.model.", ""], ids=["saved", "bare"])
@pytest.mark.parametrize("key", STRAY)
def test_no_key_is_dropped_silently(
    tmp_path: Path, base: Path, lora: Path, key: str, prefix: str
) -> None:
    adapter = copied(lora, tmp_path / "lora")
    tensors = load_and_remove(adapter)
    tensors[prefix + key] = torch.ones(4, 4)
    torch.save(tensors, adapter / "adapter_model.bin")
    error = refused(base, adapter, tmp_path / "out")
    assert bare(error.facts["tensor"]).startswith(bare(key)[:24])


EMBED, HEAD, Q = "model.embed_tokens", "lm_head", "model.layers.0.self_attn.q_proj"
ON_EMBED = {"target_modules": ["embed_tokens"], "save_embedding_layers": True}
TOKENS_THERE = {"trainable_token_indices": [1, 5], "save_embedding_layers": True}
SAVED = {"modules_to_save": ["lm_head"]}
# What PEFT made, keys that are put beside it with their shapes, and what the message names.
COLLISIONS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], str]] = {
    "two products of embeddings": (
        ON_EMBED,
        {f"{EMBED}.lora_A.weight": (4, 64), f"{EMBED}.lora_B.weight": (101, 4)},
        f"{EMBED}.lora_embedding_A",
    ),
    "two products of a layer": (
        {},
        {f"{Q}.lora_embedding_A": (4, 64), f"{Q}.lora_embedding_B": (64, 4)},
        f"{Q}.lora_embedding_A",
    ),
    "a product under trained rows": (
        TOKENS_THERE,
        {f"{EMBED}.lora_embedding_A": (4, 101), f"{EMBED}.lora_embedding_B": (64, 4)},
        f"{EMBED}.trainable_tokens_delta",
    ),
    "own copy and plain name": (
        ON_EMBED,
        {f"{EMBED}.weight": (101, 64)},
        f"{EMBED}.base_layer.weight and {EMBED}.weight",
    ),
    "own copy under trained rows and plain name": (
        TOKENS_THERE,
        {f"{EMBED}.weight": (101, 64)},
        f"{EMBED}.base_layer.weight and {EMBED}.weight",
    ),
    "own copy and trained copy": (
        ON_EMBED,
        {f"{EMBED}.modules_to_save.weight": (101, 64)},
        f"{EMBED}.lora_embedding_A",
    ),
    "trained copy under two names": (
        SAVED,
        {f"{HEAD}.modules_to_save.weight": (101, 64)},
        f"{HEAD}.weight and {HEAD}.modules_to_save.weight",
    ),
    "own copy of what was trained": (
        SAVED,
        {f"{HEAD}.base_layer.weight": (101, 64)},
        f"{HEAD}.base_layer.weight and {HEAD}.weight",
    ),
    "two biases of a layer": (
        {},
        {f"{Q}.bias": (64,), f"{Q}.base_layer.bias": (64,)},
        f"{Q}.bias",
    ),
    "trained whole, and a product": (
        SAVED,
        {f"{HEAD}.lora_A.weight": (4, 64), f"{HEAD}.lora_B.weight": (101, 4)},
        f"{HEAD}.lora_A",
    ),
    "untrained copy of a product's layer": (
        {},
        {f"{Q}.original_module.weight": (64, 64), f"{Q}.modules_to_save.weight": (64, 64)},
        f"{Q}.lora_A",
    ),
    "trained whole, and rows": (
        TOKENS_THERE,
        {f"{EMBED}.modules_to_save.weight": (101, 64)},
        f"{EMBED}.trainable_tokens_delta",
    ),
    "one name with and without the adapter's": (
        {},
        {f"{Q}.lora_A.default.weight": (4, 64)},
        f"base_model.model.{Q}.lora_A.default.weight",
    ),
}


@pytest.mark.parametrize(("settings", "added", "named"), COLLISIONS.values(), ids=COLLISIONS)
def test_of_two_keys_that_meet_none_is_dropped_silently(
    tmp_path: Path,
    base: Path,
    settings: dict[str, Any],
    added: dict[str, tuple[int, ...]],
    named: str,
) -> None:
    adapter = make_lora(tmp_path / "lora", base, **settings)
    tensors = load_and_remove(adapter)
    for seed, (key, shape) in enumerate(added.items()):
        torch.manual_seed(seed)
        tensors[f"base_model.model.{key}"] = torch.randn(shape)
    torch.save(tensors, adapter / "adapter_model.bin")
    assert refused(base, adapter, tmp_path / "out").facts["tensor"] == named


def test_equal_copies_of_one_tensor_are_one(tmp_path: Path, base: Path) -> None:
    adapter = make_lora(tmp_path / "lora", base, **ON_EMBED)
    merge_lora(base, adapter, tmp_path / "one", output_type="huggingface")
    tensors = load_and_remove(adapter)
    own = tensors[f"base_model.model.{EMBED}.base_layer.weight"]
    tensors[f"base_model.model.{EMBED}.weight"] = own.clone()
    torch.save(tensors, adapter / "adapter_model.bin")
    merge_lora(base, adapter, tmp_path / "two", output_type="huggingface")
    one, two = load_weights(tmp_path / "one"), load_weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def bare(key: str) -> str:
    """A key without the words that PEFT wraps around a module's name."""
    for word in ("base_model.model.", "default.", "modules_to_save.", "token_adapter.", ".weight"):
        key = key.replace(word, "")
    return key


def load_and_remove(adapter: Path) -> dict[str, torch.Tensor]:
    tensors = load_weights(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    return tensors
