"""What a LoRA in GGUF form does to each tensor, read a second time and by other code.

From llama.cpp's documented names alone; like ``adapters.py``, nothing here comes from
``merge.deltas``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import AdapterError
from ..formats.gguf import read
from ..messages import tr
from ..storage.input_file import InputFile
from ..storage.zipped_adapter import ADAPTER_CONFIG_NAME
from ..tensors.lazy import LazyTensor, RowReader
from .adapters import AdapterContents, Product

_ALPHA = "adapter.lora.alpha"
_KEY = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<name>\w+)\.weight(?P<half>\.lora_[ab])?")
_ATTENTION = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
_NAMES = {
    **{name: f"self_attn.{module}" for name, module in _ATTENTION.items()},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
_TURNED = ("attn_q", "attn_k")


@dataclass(frozen=True)
class _PairsApart(LazyTensor):
    """The small matrix B of q or k, whose rows ``2 i`` and ``2 i + 1`` of a head of ``size`` rows
    become rows ``i`` and ``size / 2 + i``. Its reader holds all of it.
    """

    pairs: LazyTensor
    size: int

    def reader(self) -> RowReader:
        half = torch.arange(self.size // 2)
        in_head = torch.cat([2 * half, 2 * half + 1])
        heads = torch.arange(0, self.rows, self.size)
        rows = self.pairs.read()[(heads[:, None] + in_head).flatten()]

        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            out.copy_(rows[start:stop])

        return fill


def find_gguf_adapter(path: Path) -> Path | None:
    """The file of an adapter in GGUF form, given itself or as the folder's only one of its kind."""
    if path.is_file():
        return path
    found = sorted(path.glob("*.gguf"))
    return found[0] if len(found) == 1 and not (path / ADAPTER_CONFIG_NAME).is_file() else None


def read_gguf_adapter(
    folder: Path, file: Path, weight: float, config: Mapping[str, Any]
) -> AdapterContents:
    """Sort an adapter's tensors by what they do. ``weight`` is the user's factor on what is added,
    ``config`` the base's ``config.json``. ``folder`` is what the user named.

    Raises ``AdapterError`` for a file that holds no LoRA.
    """
    found = read(InputFile(file))
    alpha = found.metadata.get(_ALPHA)
    if not isinstance(alpha, float):
        raise _make_error(file, _ALPHA, alpha)
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    contents = AdapterContents(folder, file, {})
    halves: dict[tuple[str, bool], dict[str, LazyTensor]] = {}
    for key, tensor in found.tensors.items():
        match = _KEY.fullmatch(key)
        module = match and (_NAMES if match["layer"] else _OUTSIDE).get(match["name"])
        if match is None or module is None:
            raise _make_error(file, tr("names of a LLaMA's tensors"), key)
        name = f"model.layers.{match['layer']}.{module}" if match["layer"] else module
        if match["half"] is None:
            contents.whole[f"{name}.weight"] = tensor
            contents.trained.add(f"{name}.weight")
            continue
        if match["name"] in _TURNED and match["half"] == ".lora_b" and tensor.rows % size == 0:
            tensor = _PairsApart(tensor.shape, tensor.dtype, tensor.origin, tensor, size)
        pair = halves.setdefault((f"{name}.weight", match["name"] == "token_embd"), {})
        pair[match["half"]] = tensor
    for (name, is_embedding), pair in halves.items():
        if len(pair) < 2:
            raise _make_error(
                file,
                tr("lora_a and lora_b"),
                tr("{name} with {pair}", name=name, pair=", ".join(pair)),
            )
        a = pair[".lora_a"].transposed() if is_embedding else pair[".lora_a"]
        scaling = weight * alpha / a.shape[0]
        contents.products[name] = Product(a, pair[".lora_b"], scaling, is_embedding)
    return contents


def _make_error(file: Path, expected: str, found: object) -> AdapterError:
    return AdapterError(
        tr("the file holds no LoRA to check against"),
        file=file,
        expected=expected,
        found=found,
        remedy=tr("give the adapter that was merged"),
    )
