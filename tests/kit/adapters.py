"""Adapters of every kind, made and merged by PEFT itself on tiny bases of random values."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.kit.files import Tensors
from tests.kit.tokenizers import write_tokenizer
from transformers import AutoModelForCausalLM

IDS = torch.tensor([[1, 5, 9, 100, 33, 77, 49, 2]])


def save_adapter(
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
    torch.manual_seed(seed)
    model = load(base, rows)
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
    """PEFT's ``merge_and_unload`` of one adapter after the other, in float32."""
    model = load(base, rows)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def logits_with_peft(base: Path, adapter: Path) -> torch.Tensor:
    """What the base says with the adapter active and unmerged."""
    with torch.no_grad():
        logits: torch.Tensor = PeftModel.from_pretrained(load(base), adapter)(IDS).logits
    return logits


def logits_of(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = load(folder)(IDS).logits
    return logits
