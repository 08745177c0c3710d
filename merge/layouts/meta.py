"""Meta's folder: ``consolidated.NN.pth``, one file per GPU that the model was meant for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import LayoutError, UsageError
from ..formats import open_container
from ..lazy import Checkpoint, LazyTensor, dtype_name
from ..staging import Offload
from . import llama
from .config import LlamaShape
from .folder import META_SHARD
from .huggingface import FLOATS
from .joined import join
from .params import PARAMS_NAME, config_from_params, read_params, shape_from_params
from .pour import Piece, Poured
from .rotary import in_halves, in_pairs


def open_base(
    folder: Path, offload: Offload | None = None, context_length: int | None = None
) -> Checkpoint:
    """Open a folder as Meta distributes it: shards joined, Hugging Face's names and rotary order.

    ``config.json`` is derived from ``params.json`` and the weights; ``context_length`` is what
    neither says. Raises ``LayoutError`` for missing shards, for shards that do not belong together,
    and for a ``params.json`` that the weights contradict; ``FormatError`` for damaged files.
    """
    source = folder / PARAMS_NAME
    params = read_params(folder)
    files = shard_files(folder)
    parts, dropped = _parts(folder, {path: open_container(path, offload) for path in files})
    first = "layers.0.feed_forward.w1.weight"
    rows = sum(part.rows for part in parts[first]) if first in parts else 0
    _require_every_shard(params, parts, source)
    shape = shape_from_params(params, rows, source)
    tensors = _whole_tensors(folder, parts, shape)
    embeddings = tensors[llama.EMBED_TOKENS]
    _require_vocabulary(params, embeddings.rows, source)
    dtype = dtype_name(embeddings.dtype)
    config, notes = config_from_params(params, shape, embeddings.rows, dtype, context_length)
    return Checkpoint(tensors, config, files, dropped, notes)


def shard_files(folder: Path) -> tuple[Path, ...]:
    """``consolidated.NN.pth`` in the order of their numbers.

    Raises ``LayoutError`` when there are none or a number is missing below the largest one.
    """
    numbered = {
        int(match["number"]): path
        for path in folder.glob("*.pth")
        if (match := META_SHARD.fullmatch(path.name))
    }
    missing = [n for n in range(max(numbered, default=0) + 1) if n not in numbered]
    if not missing:
        return tuple(numbered[number] for number in sorted(numbered))
    raise LayoutError(
        "a shard of the model is missing" if numbered else "the folder holds no weights",
        file=folder / f"consolidated.{missing[0]:02}.pth",
        expected="consolidated.00.pth and on, without a gap",
        found=", ".join(path.name for _, path in sorted(numbered.items())) or "none of them",
        remedy="download the missing files into this folder",
    )


def _parts(
    folder: Path, shards: Mapping[Path, Mapping[str, LazyTensor]]
) -> tuple[dict[str, tuple[LazyTensor, ...]], tuple[str, ...]]:
    """Each tensor's parts in the order of the shards, and the rotary buffers left out."""
    names = dict.fromkeys(name for shard in shards.values() for name in shard)
    dropped = tuple(name for name in names if llama.is_leftover(name))
    kept = [name for name in names if name not in dropped]
    for path, shard in shards.items():
        if lacking := [name for name in kept if name not in shard]:
            raise LayoutError(
                "a shard lacks a tensor that the others have",
                file=path,
                tensor=lacking[0],
                expected=f"a part of each of {len(kept)} tensors",
                found=f"{len(lacking)} of them missing",
                remedy="the files are of different models: take all of them from one place",
            )
    parts = {name: tuple(shard[name] for shard in shards.values()) for name in kept}
    for name, tensors in parts.items():
        if any(part.dtype not in FLOATS or part.dtype != tensors[0].dtype for part in tensors):
            raise LayoutError(
                "the shards hold a tensor in dtypes that are quantised or differ",
                file=folder,
                tensor=name,
                expected="float16, bfloat16 or float32 in every shard",
                found=", ".join(dtype_name(part.dtype) for part in tensors),
                remedy="take the original model, all files from one place",
            )
    return parts, dropped


def _require_every_shard(
    params: Mapping[str, Any], parts: Mapping[str, Sequence[LazyTensor]], source: Path
) -> None:
    """The columns of wo in all shards must make up the whole: a last shard may be missing."""
    wo, dim = parts.get("layers.0.attention.wo.weight", ()), params.get("dim")
    if not wo or len(wo[0].shape) != 2 or wo[0].shape[0] != dim:
        return  # told with the other shapes
    each, together = wo[0].shape[1], sum(part.shape[-1] for part in wo)
    if together < wo[0].shape[0] and wo[0].shape[0] % each == 0:
        count = wo[0].shape[0] // each
        raise LayoutError(
            "a shard of the model is missing",
            file=source.with_name(f"consolidated.{len(wo):02}.pth"),
            tensor="layers.0.attention.wo.weight",
            expected=f"{count} shards with {each} columns each, {dim} together",
            found=f"{len(wo)} shards with {together} columns together",
            remedy="download the missing files into this folder",
        )


def _whole_tensors(
    folder: Path, parts: Mapping[str, tuple[LazyTensor, ...]], shape: LlamaShape
) -> dict[str, LazyTensor]:
    """Every tensor of the table, joined and in Hugging Face's order; nothing else may be there."""
    entries = {entry.meta: entry for entry in llama.entries(shape)}
    missing = [name for name in entries if name not in parts]
    extra = [name for name in parts if name not in entries]
    for sentence, names, found in (
        ("the weights are incomplete", missing, "no such tensor in the shards"),
        ("the weights hold a tensor that params.json does not describe", extra, "in the shards"),
    ):
        if names:
            raise LayoutError(
                sentence,
                file=folder,
                tensor=names[0],
                expected=f"{len(entries)} tensors, as {PARAMS_NAME} describes the model",
                found=f"{found}, and {len(names) - 1} more" if len(names) > 1 else found,
                remedy=f"{PARAMS_NAME} is another model's, or the model is no LLaMA",
            )
    vocab = _whole(entries["output.weight"], parts["output.weight"], shape).rows
    whole = {}
    for name, entry in entries.items():
        tensor = _whole(entry, parts[name], shape)
        wanted = tuple(vocab if size is None else size for size in entry.shape)
        if tensor.shape != wanted:
            raise _contradiction(folder, name, wanted, tensor.shape, parts[name], shape)
        rotary = entry.row.rotary is not None
        whole[entry.hf] = in_halves(tensor, shape.head_dim) if rotary else tensor
    return whole


def _whole(entry: llama.Entry, parts: tuple[LazyTensor, ...], shape: LlamaShape) -> LazyTensor:
    """A tensor from its parts, along the table's axis, or a copy that all shards must share.

    Llama 3 splits the embeddings by rows: there each part is as wide as the model.
    """
    axis = entry.row.shard_axis
    if any(len(part.shape) != len(entry.shape) for part in parts):
        return parts[0]  # told with the other shapes
    if entry.hf == llama.EMBED_TOKENS and parts[0].shape[1] == shape.hidden_size:
        axis = 0
    if axis is not None:
        rest = {part.shape[1 - axis] for part in parts}
        return join(parts, axis) if len(rest) == 1 else parts[0]
    first = parts[0].read()
    for part in parts[1:]:
        if part.shape != parts[0].shape or not torch.equal(part.read(), first):
            raise LayoutError(
                "the shards hold different versions of a tensor of which each has a copy",
                tensor=part.origin,
                expected=f"the same values as in {parts[0].origin}",
                remedy="the files are of different models: take all of them from one place",
            )
    return parts[0]


def _contradiction(
    folder: Path,
    name: str,
    wanted: tuple[int, ...],
    found: tuple[int, ...],
    parts: Sequence[LazyTensor],
    shape: LlamaShape,
) -> LayoutError:
    kv_heads = shape.num_key_value_heads
    repeated = len(parts) * shape.head_dim, shape.hidden_size
    is_kv = name.endswith((".wk.weight", ".wv.weight"))
    if is_kv and len(parts) > kv_heads and found == repeated:
        return LayoutError(
            "the shards repeat wk and wv: there are more of them than key and value heads",
            file=folder,
            tensor=name,
            expected=f"{wanted} in all shards together",
            found=f"{found}: {len(parts)} shards for {kv_heads} heads",
            remedy=f"take the download of this model with at most {kv_heads} shards",
        )
    return LayoutError(
        "params.json and the weights contradict each other",
        file=folder / PARAMS_NAME,
        tensor=name,
        expected=f"{wanted}, by {PARAMS_NAME}",
        found=f"{found} in {len(parts)} shards ({', '.join(str(p.shape) for p in parts[:4])})",
        remedy=f"{PARAMS_NAME} is another model's, or a shard is: take all files from one place",
    )


def _require_vocabulary(params: Mapping[str, Any], rows: int, source: Path) -> None:
    """``vocab_size`` is the number of rows, or -1, which leaves it to the tokenizer."""
    stated = params.get("vocab_size")
    if isinstance(stated, int) and stated > 0 and stated != rows:
        raise LayoutError(
            "params.json and the weights contradict each other",
            file=source,
            tensor="tok_embeddings.weight",
            expected=f'{stated} rows, by "vocab_size"',
            found=f"{rows} rows in all shards together",
            remedy="take all files from one place; if the vocabulary was changed on purpose, "
            'write "vocab_size": -1',
        )


def pour(
    tensors: Mapping[str, LazyTensor], shape: LlamaShape, num_shards: int | None
) -> list[Poured]:
    """Rename, reorder and split a model's tensors as Meta does.

    ``tensors`` must hold every name of the table. Raises ``UsageError`` when the model cannot be
    split evenly over ``num_shards`` (as many as Meta uses for this size by default).
    """
    count = llama.meta_shards(shape) if num_shards is None else num_shards
    _require_divisible(shape, count, chosen=num_shards is not None)
    return [_poured(entry, tensors[entry.hf], shape, count) for entry in llama.entries(shape)]


def _require_divisible(shape: LlamaShape, count: int, chosen: bool) -> None:
    for size in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_size"):
        if count < 1 or getattr(shape, size) % count:
            raise UsageError(
                "the model cannot be split evenly over this many files",
                expected=f"--num_shards that divides {size} = {getattr(shape, size)}",
                found=f"--num_shards {count}",
                remedy="leave --num_shards out to get as many as Meta uses"
                if chosen
                else "Meta uses this many for a model of this size; give a number that divides",
            )


def _poured(entry: llama.Entry, tensor: LazyTensor, shape: LlamaShape, count: int) -> Poured:
    if entry.row.rotary is not None:
        tensor = in_pairs(tensor, shape.head_dim)
    return Poured(entry.hf, tensor, _pieces(entry, tensor.shape, count))


def _pieces(entry: llama.Entry, shape: tuple[int, ...], count: int) -> tuple[Piece, ...]:
    """Equal parts along the table's axis, the remainder of a vocabulary in the last one."""
    axis = entry.row.shard_axis
    names = [f"consolidated.{shard:02}.pth" for shard in range(count)]
    if axis is None or count == 1:
        return tuple(Piece(name, entry.meta, None, 0, 0) for name in names)
    part = shape[axis] // count
    bounds = [part * shard for shard in range(count)] + [shape[axis]]
    return tuple(
        Piece(name, entry.meta, axis, bounds[shard], bounds[shard + 1])
        for shard, name in enumerate(names)
    )
