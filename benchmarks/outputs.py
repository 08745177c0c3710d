"""A merged model as it lies on disk, each of its tensors tied to the name it has in the base.

Rows come out whole: the shards of a ``.pth`` model are put together on the axis on which Meta's
model-parallel layers cut them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.weights import Weights, read_folder, weight_files

if TYPE_CHECKING:
    from torch import Tensor

# Hugging Face module -> (Meta module, axis of the cut; None: the same in every shard)
META_LAYER: dict[str, tuple[str, int | None]] = {
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
}
META_MODEL: dict[str, tuple[str, int | None]] = {
    "model.embed_tokens": ("tok_embeddings", 1),
    "model.norm": ("norm", None),
    "lm_head": ("output", 0),
}
LEFTOVERS = ("rope.freqs", "rotary_emb.inv_freq")


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of the result in Hugging Face order, whatever the files hold."""

    name: str
    shape: tuple[int, ...]
    dtypes: frozenset[str]
    rows: Callable[[int, int], Tensor]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Output:
    """Tensors by their Hugging Face name; the names of the files that stand for nothing."""

    tensors: dict[str, OutputTensor]
    unknown: list[str]


def read_huggingface(folder: Path, names: list[str]) -> Output:
    """A folder of ``.bin`` or safetensors shards."""
    weights = read_folder(folder)
    tensors = {name: _plain(name, weights[name]) for name in names if name in weights}
    return Output(tensors, [name for name in weights if name not in names and _counts(name)])


def _plain(name: str, get: Callable[[], Tensor]) -> OutputTensor:
    tensor = get()
    rows = lambda start, stop: get()[start:stop]  # noqa: E731
    return OutputTensor(name, tuple(tensor.shape), frozenset({str(tensor.dtype)}), rows)


def read_meta(folder: Path, names: list[str], config: dict[str, Any]) -> Output:
    """A folder of ``consolidated.NN.pth``."""
    shards = [file.tensors for file in weight_files(folder)]
    meta = {name: meta_name(name) for name in names}
    tensors = {
        name: _joined(name, target, axis, shards, config)
        for name, (target, axis) in meta.items()
        if all(target in shard for shard in shards)
    }
    wanted = {target for target, _ in meta.values()}
    found = {name for shard in shards for name in shard}
    return Output(tensors, sorted(name for name in found - wanted if _counts(name)))


def meta_name(name: str) -> tuple[str, int | None]:
    """Meta's name for a Hugging Face tensor, and the axis on which its shards are cut."""
    module = name.removesuffix(".weight")
    if module in META_MODEL:
        target, axis = META_MODEL[module]
        return f"{target}.weight", axis
    _, _, layer, rest = module.split(".", 3)
    target, axis = META_LAYER[rest]
    return f"layers.{layer}.{target}.weight", axis


def _joined(
    name: str, target: str, axis: int | None, shards: list[Weights], config: dict[str, Any]
) -> OutputTensor:
    """One tensor out of all shards, with the rotary order of q and k undone."""
    parts = [shard[target]() for shard in shards]
    shape = list(parts[0].shape)
    if axis is not None:
        shape[axis] = sum(part.shape[axis] for part in parts)
    read = _reader(parts, axis)
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        read = _rotary_undone(read, config["hidden_size"] // config["num_attention_heads"])
    faults = tuple(_cut_faults(parts, axis))
    return OutputTensor(name, tuple(shape), frozenset(str(p.dtype) for p in parts), read, faults)


def _reader(parts: list[Tensor], axis: int | None) -> Callable[[int, int], Tensor]:
    """Rows of the parts put together: beside each other, below each other, or any of the copies."""
    import torch

    def below(start: int, stop: int) -> Tensor:
        blocks, first = [], 0
        for part in parts:
            low, high = max(start - first, 0), min(stop - first, len(part))
            if low < high:
                blocks.append(part[low:high])
            first += len(part)
        return torch.cat(blocks)

    if axis is None:
        return lambda start, stop: parts[0][start:stop]
    if axis == 0:
        return below
    return lambda start, stop: torch.cat([part[start:stop] for part in parts], dim=1)


def _rotary_undone(
    read: Callable[[int, int], Tensor], head_dim: int
) -> Callable[[int, int], Tensor]:
    """Meta keeps the two coordinates of a rotated pair side by side, Hugging Face half a head off.

    Whole heads have to be asked for.
    """

    def rows(start: int, stop: int) -> Tensor:
        if start % head_dim or stop % head_dim:
            raise ValueError("rotary order can be undone for whole heads only")
        block = read(start, stop)
        pairs = block.reshape(-1, head_dim // 2, 2, block.shape[1])
        return pairs.transpose(1, 2).reshape(block.shape)

    return rows


def _cut_faults(parts: list[Tensor], axis: int | None) -> Iterator[str]:
    """Equal parts, the remainder in the last; copies equal in every bit."""
    if axis is None:
        for number, part in enumerate(parts[1:], 1):
            if not part.equal(parts[0]):
                yield f"copy in shard {number} differs from shard 0"
        return
    sizes = [part.shape[axis] for part in parts]
    share = sum(sizes) // len(sizes)
    expected = [share] * (len(sizes) - 1) + [sum(sizes) - share * (len(sizes) - 1)]
    if sizes != expected:
        yield f"cut into {sizes} on axis {axis}, expected {expected}"


def _counts(name: str) -> bool:
    """Rotary tables may stay or go: every reader computes its own."""
    return not name.endswith(LEFTOVERS)
