"""Every refusal in the registry, on what PEFT itself made where PEFT can make it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.config import ArrowConfig
from transformers import LlamaForCausalLM

from merge import merge_lora
from merge.deltas.refusals import REFUSED
from tests.kit.adapters import load, merge_with_peft
from tests.kit.files import copied, load_weights
from tests.kit.peft_methods import VARIANTS, make_method
from tests.kit.refusals import refused_merge

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
ON_Q = {"r": 2, "target_modules": ["q_proj"]}
TOKENS = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
# By name in the registry: the configuration class and its settings, for kinds that PEFT makes here.
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "Poly": ("PolyConfig", ON_Q),
    "Lily": ("LilyConfig", ON_Q),
    "prefix tuning": ("PrefixTuningConfig", TOKENS),
    "prompt tuning": ("PromptTuningConfig", TOKENS),
    "p-tuning": ("PromptEncoderConfig", TOKENS),
    "randomised PiSSA": ("LoraConfig", LORA | {"init_lora_weights": "pissa_niter_4"}),
    # PEFT's own step before it, over data, changes the base; what is saved says no more than this.
    "LoRA-GA": ("LoraConfig", LORA | {"init_lora_weights": "lora_ga"}),
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
    # needs bitsandbytes, and a base that is quantised
    "LoftQ": {"init_lora_weights": "loftq"},
    "ShadowPEFT": {"peft_type": "SHADOW"},
    "multitask prompt tuning": {"peft_type": "MULTITASK_PROMPT_TUNING"},
    "context-aware prompt tuning": {"peft_type": "CPT"},
    "Cartridge": {"peft_type": "CARTRIDGE"},
    "LLaMA-Adapter": {"peft_type": "ADAPTION_PROMPT"},
    "any other start of its own": {"init_lora_weights": "something of next year"},
    # PEFT 0.2 had it, for models of 8-bit kernels alone
    "fused q, k, v (enable_lora)": {"enable_lora": [True, False, True]},
    # needs Megatron, which needs a GPU
    "Megatron": {"megatron_config": {"a": 1}},
}


def test_every_refusal_of_the_registry_has_a_case() -> None:
    assert MADE.keys() | FIELDS.keys() | {*MADE_OF_OTHERS} == {refusal.name for refusal in REFUSED}


def save(folder: Path, base: Path, kind: str, settings: dict[str, Any]) -> Path:
    model: LlamaForCausalLM = load(base)
    adapted = peft.get_peft_model(model, getattr(peft, kind)(**settings))
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


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
    error = refused_merge(base, save_any(tmp_path / "lora", base, lora, name), tmp_path / "out")
    refusal = next(refusal for refusal in REFUSED if refusal.name == name)
    assert name in error.sentence
    assert refusal.reason in error.sentence
    assert f'"{refusal.field}"' in error.facts["found"]


@pytest.mark.parametrize(("name", "fields"), FIELDS.items(), ids=FIELDS)
def test_field_is_refused_by_name(
    tmp_path: Path, base: Path, lora: Path, name: str, fields: dict[str, Any]
) -> None:
    adapter = copied(lora, tmp_path / "lora")
    set_fields(adapter, **fields)
    error = refused_merge(base, adapter, tmp_path / "out")
    told = str(next(iter(fields.values()))) if name.startswith("any other") else name
    assert told in error.sentence
    assert f'"{next(iter(fields))}"' in error.facts["found"]


def set_fields(adapter: Path, **fields: Any) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(config), encoding="utf-8")


# The first key of an AdaLoRA is one that nobody else has either.
BETRAYED = [
    *(("ADALORA", "not known"), ("IA3", "IA³"), ("VERA", "VeRA"), ("LOHA", "LoHa")),
    *(("LOKR", "LoKr"), ("KaSA", "KaSA"), ("VeLoRA", "VeLoRA"), ("MonteCLoRA", "MonteCLoRA")),
]


@pytest.mark.parametrize(("method", "name"), BETRAYED)
def test_tensors_betray_what_the_configuration_does_not_say(
    tmp_path: Path, base: Path, lora: Path, method: str, name: str
) -> None:
    fields = VARIANTS.get(method, {})
    adapter = make_method(tmp_path / "lora", base, "LORA" if fields else method, **fields)
    plain = copied(lora, tmp_path / "plain")
    (plain / "adapter_config.json").replace(adapter / "adapter_config.json")
    error = refused_merge(base, adapter, tmp_path / "out")
    assert name in error.sentence
    assert error.facts["file"] == str(adapter / "adapter_model.safetensors")
    assert error.facts["tensor"] in load_weights(adapter)


@pytest.mark.parametrize("start", [["pissa"], {"type": "pissa"}, 1, "", "PiSSA_niter_9"], ids=str)
def test_start_of_any_spelling_is_refused(
    tmp_path: Path, base: Path, lora: Path, start: Any
) -> None:
    adapter = copied(lora, tmp_path / "lora")
    set_fields(adapter, init_lora_weights=start)
    error = refused_merge(base, adapter, tmp_path / "out")
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
    error = refused_merge(base, adapter, tmp_path / "out")
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
