"""Tiny LLaMA bases and adapters, made by transformers and PEFT, and PEFT's own merge of them.

Every value is random, so a wrong permutation, axis, order or scaling shows in every tensor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

Tensors = dict[str, torch.Tensor]

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCABULARY = ["embed_tokens", "lm_head"]
# Fields of adapter_config.json that PEFT 0.2 wrote.
_OLD_FIELDS = (
    *("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_alpha"),
    *("lora_dropout", "modules_to_save", "peft_type", "r", "target_modules", "task_type"),
)


def write_tokenizer(folder: Path, pieces: int) -> None:
    """Write a ``tokenizer.model`` of exactly ``pieces`` pieces."""
    model = ModelProto()
    model.trainer_spec.model_type = 2
    model.normalizer_spec.add_dummy_prefix = True
    kinds = ModelProto.SentencePiece
    special = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    for text, kind in special:
        model.pieces.add(piece=text, score=0.0, type=kind)
    for number in range(pieces - len(special)):
        model.pieces.add(piece=f"piece{number}", score=-float(number))
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def base_config(**changes: Any) -> LlamaConfig:
    """Eight heads of eight, two layers, a vocabulary that no number of shards divides."""
    settings: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 101,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**settings | changes)


def make_base(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float16,
    container: str = ".bin",
    max_shard_size: int | str = 100_000,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write a random base model with tokenizer, in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    config = base_config(**changes)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5)
        if "norm" in name:  # a model's are positive, a difference's are not
            parameter.data.abs_()
    model.config.dtype = dtype
    config.save_pretrained(folder)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    save_shards(state, folder, container, max_shard_size)
    write_tokenizer(folder, config.vocab_size)
    return folder


def save_shards(
    state: Tensors, folder: Path, container: str = ".bin", max_shard_size: int | str = "10GB"
) -> list[Path]:
    """Save a state dict as transformers did: numbered shards and an index."""
    stem = "pytorch_model" if container == ".bin" else "model"
    pattern = stem + "{suffix}" + container
    split = split_torch_state_dict_into_shards(
        state, filename_pattern=pattern, max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        part = {name: state[name].clone() for name in names}
        if container == ".bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{stem}{container}.index.json").write_text(json.dumps(index), encoding="utf-8")
    return [folder / file for file in split.filename_to_tensors]


def make_adapter(
    folder: Path,
    base: Path,
    *,
    rows: int | None = None,
    targets: Sequence[str] = LINEAR,
    modules_to_save: Sequence[str] | None = VOCABULARY,
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
    **config: Any,
) -> Path:
    """Let PEFT make an adapter for ``base`` with random values and save it, with tokenizer.

    ``rows`` is the size to which the vocabulary is grown first.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 12, "task_type": "CAUSAL_LM"}
    settings |= {"target_modules": list(targets), "modules_to_save": modules_to_save}
    peft_model = get_peft_model(model, LoraConfig(**settings | config))
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
            parameter.data = parameter.data.to(dtype)
    peft_model.save_pretrained(folder, save_embedding_layers=False)
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


def peft_merge(base: Path, adapters: Sequence[Path]) -> Tensors:
    """PEFT's own ``merge_and_unload`` of adapters in order, in float32 throughout."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for adapter in adapters:
        rows = _saved_rows(adapter)
        if rows is not None:
            model.resize_token_embeddings(rows, mean_resizing=False)
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _saved_rows(adapter: Path) -> int | None:
    tensors = load_weights(adapter)
    rows = [t.shape[0] for name, t in tensors.items() if name.endswith("embed_tokens.weight")]
    return rows[0] if rows else None


def load_weights(folder: Path) -> Tensors:
    """Every tensor of a folder's ``.bin`` or safetensors files."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.bin")):
        tensors |= torch.load(path, weights_only=True)
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def ulps(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How many float16 values lie between two float16 tensors, element by element."""

    def ordered(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(found) - ordered(expected)).abs()
