"""A merge written in the most direct way: everything in memory, in float32, then rounded.

It stands in for the real command, as an import and as a program with the same options.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]
META = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def plain_merge(base: Path, adapters: list[Path]) -> State:
    """Everything in memory, in float32."""
    state: State = {}
    for path in [*base.glob("*.bin"), *base.glob("*.safetensors")]:
        state |= {name: tensor.float() for name, tensor in load(path).items()}
    for folder in adapters:
        config = read_json(folder / "adapter_config.json")
        for key, tensor in load_adapter(folder).items():
            name = key.removeprefix("base_model.model.")
            if "lora_" not in name:
                state[name] = tensor.float()
            if name.endswith("lora_B.weight"):
                a = load_adapter(folder)[key.replace("lora_B", "lora_A")].float()
                linear = name.replace(".lora_B", "")
                state[linear] += config["lora_alpha"] / config["r"] * (tensor.float() @ a)
    return {name: tensor.half() for name, tensor in state.items()}


def load_adapter(folder: Path) -> State:
    path = folder / "adapter_model.bin"
    return load(path if path.exists() else path.with_suffix(".safetensors"))


def load(path: Path) -> State:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path)


def write_huggingface(folder: Path, state: State, base: Path, end: str = "bin") -> None:
    config = read_json(base / "config.json")
    config["vocab_size"] = len(state["model.embed_tokens.weight"])
    write_json(folder / "config.json", config)
    stem = "model" if end == "safetensors" else "pytorch_model"
    names, weight_map = sorted(state), {}
    for number, group in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-0000{number}-of-00002.{end}"
        part = {name: state[name] for name in group}
        save_file(part, folder / file) if end == "safetensors" else torch.save(part, folder / file)
        weight_map |= dict.fromkeys(group, file)
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / f"{stem}.{end}.index.json", index)


def to_meta(state: State, head_dim: int) -> State:
    """Meta's names and rotary order."""
    meta = {}
    for key, tensor in state.items():
        name = key
        for old, new in META.items():
            name = name.replace(old, new)
        if "wq" in name or "wk" in name:
            pairs = tensor.view(-1, 2, head_dim // 2, tensor.shape[1])
            tensor = pairs.transpose(1, 2).reshape(tensor.shape)
        meta[name] = tensor
    return meta


def cut(state: State, shards: int) -> list[State]:
    parts: list[State] = [{} for _ in range(shards)]
    for name, tensor in state.items():
        axis = 1 if any(word in name for word in ("tok_embeddings", "wo.", "w2.")) else 0
        share = tensor.shape[axis] // shards
        for number, part in enumerate(parts):
            length = share if number < shards - 1 else tensor.shape[axis] - share * number
            piece = tensor if "norm" in name else tensor.narrow(axis, share * number, length)
            part[name] = piece.clone().contiguous()
    return parts


def write_meta(folder: Path, parts: list[State], base: Path) -> None:
    config = read_json(base / "config.json")
    for number, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    params = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": sum(len(part["output.weight"]) for part in parts),
        "multiple_of": 16,
    }
    write_json(folder / "params.json", params)


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base_model", type=Path)
    parser.add_argument("--lora_model")
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--output_type")
    parser.add_argument("--safe_serialization", action="store_true")
    parser.add_argument("--num_shards", type=int, default=1)
    parser.add_argument("--forget", help="leave out this tensor")
    args = parser.parse_args()
    adapters = [Path(name) for name in args.lora_model.split(",")]
    config = read_json(args.base_model / "config.json")
    state = plain_merge(args.base_model, adapters)
    state.pop(args.forget, None)
    args.output_dir.mkdir()
    if args.output_type == "pth":
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        parts = cut(to_meta(state, head_dim), args.num_shards)
        write_meta(args.output_dir, parts, args.base_model)
    else:
        end = "safetensors" if args.safe_serialization else "bin"
        write_huggingface(args.output_dir, state, args.base_model, end)
    shutil.copy(adapters[-1] / "tokenizer.model", args.output_dir)


if __name__ == "__main__":
    main()
