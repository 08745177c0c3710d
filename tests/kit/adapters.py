"""Adapters made by PEFT on tiny bases, with random values, and PEFT's own merge of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.kit.files import Tensors, load_weights
from tests.kit.tokenizer_models import write_tokenizer

IDS = torch.tensor([[1, 5, 9, 100, 33, 77, 49, 2]])
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCABULARY = ["embed_tokens", "lm_head"]
# Fields of adapter_config.json that PEFT 0.2 wrote.
_OLD_FIELDS = (
    *("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_alpha"),
    *("lora_dropout", "modules_to_save", "peft_type", "r", "target_modules", "task_type"),
)


def make_adapter(
    folder: Path,
    base: Path,
    *,
    targets: Sequence[str] = LINEAR,
    modules_to_save: Sequence[str] | None = VOCABULARY,
    **settings: Any,
) -> Path:
    """An adapter like Chinese-LLaMA's: a LoRA on every linear layer, and whole embeddings and head.

    ``settings`` are those of ``make_lora``.
    """
    chosen = {"target_modules": list(targets), "modules_to_save": modules_to_save}
    return make_lora(folder, base, **chosen | settings)


def make_lora(
    folder: Path,
    base: Path,
    *,
    rows: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
    std: float = 0.3,
    save_embedding_layers: bool | str = False,
    raw: bool = False,
    **config: Any,
) -> Path:
    """Let PEFT put a LoRA on ``base``, give every trained parameter random values, save it.

    ``rows`` is the size to which the vocabulary is grown first. With ``raw`` the state dict of the
    whole training model is saved instead, as a Trainer does.
    """
    model = load(base)
    torch.manual_seed(seed)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 12, "task_type": "CAUSAL_LM"}
    settings |= {"target_modules": ["q_proj", "down_proj"]}
    adapted = get_peft_model(model, LoraConfig(**settings | config))
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=std)
            if "magnitude" in name:  # norms are above zero
                parameter.data.abs_().add_(0.5)
            parameter.data = parameter.data.to(dtype)
    adapted.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    if raw:
        for path in folder.glob("adapter_model.*"):
            path.unlink()
        state = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
        torch.save(state, folder / "pytorch_model.bin")
    if rows is not None:
        write_tokenizer(folder, rows)
    return folder


def to_old_layout(folder: Path) -> Path:
    """Rewrite an adapter to what PEFT 0.2 saved: float16 ``.bin``, few fields in its config."""
    weights = folder / "adapter_model.safetensors"
    torch.save({k: v.half() for k, v in load_file(weights).items()}, folder / "adapter_model.bin")
    weights.unlink()
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    old = {key: config[key] for key in _OLD_FIELDS} | {"enable_lora": None, "merge_weights": False}
    path.write_text(json.dumps(old), encoding="utf-8")
    return folder


def load(base: Path, rows: int | None = None) -> Any:
    """The base in float32; its values are exact there. The caller may change it."""
    files = sorted((path.name, path.stat().st_mtime_ns) for path in base.iterdir())
    model = copy.deepcopy(_loaded(base, tuple(files)))
    if rows is not None:
        torch.manual_seed(0)
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


@lru_cache(maxsize=4)
def _loaded(base: Path, _files: tuple[tuple[str, int], ...]) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def merge_with_peft(base: Path, adapters: Sequence[Path], rows: int | None = None) -> Tensors:
    """PEFT's ``merge_and_unload`` of one adapter after the other, in float32.

    The vocabulary is grown to ``rows``, or to those of each adapter that has whole embeddings.
    """
    model = load(base, rows)
    for adapter in adapters:
        own = _saved_rows(adapter) if rows is None else None
        if own is not None and own != model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(own, mean_resizing=False)
        adapted = PeftModel.from_pretrained(model, adapter)
        if getattr(adapted.peft_config["default"], "layer_replication", None):
            separate_copies(adapted)
        model = adapted.merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def separate_copies(model: torch.nn.Module) -> None:
    """Give each copy of a layer parameters of its own.

    PEFT lets copies share the base's, and its ``merge_and_unload`` adds what is of one copy to all.
    """
    for name, module in model.named_modules():
        if ".layers." in name:
            for key, parameter in module.named_parameters(recurse=False):
                setattr(module, key, torch.nn.Parameter(parameter.detach().clone()))


def _saved_rows(adapter: Path) -> int | None:
    tensors = load_weights(adapter)
    rows = [t.shape[0] for name, t in tensors.items() if name.endswith("embed_tokens.weight")]
    return rows[0] if rows else None


def logits_with_peft(base: Path, adapter: Path) -> torch.Tensor:
    """What the base says with the adapter active and unmerged."""
    with torch.no_grad():
        logits: torch.Tensor = PeftModel.from_pretrained(load(base), adapter)(IDS).logits
    return logits


def logits_of(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = load(folder)(IDS).logits
    return logits
