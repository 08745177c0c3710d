"""The shards of a model in Meta's layout: found, checked against each other, and joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import LayoutError
from ..formats import open_container
from ..messages import tr
from ..storage.folder import Folder
from ..storage.offload import Offload
from ..tensors.concatenated import concatenate
from ..tensors.lazy import LazyTensor, get_dtype_name
from . import llama
from .config import LlamaShape
from .params import PARAMS_NAME
from .quantized import FLOATS
from .rotary import to_half_split


def find_shard_files(folder: Folder) -> tuple[Path, ...]:
    """``consolidated.NN.pth`` in the order of their numbers.

    Raises ``LayoutError`` when there are none or a number is missing below the largest one.
    """
    numbered = {
        int(match["number"]): path
        for path in folder.entries.values()
        if (match := llama.META_SHARD.fullmatch(path.name))
    }
    missing = [n for n in range(max(numbered, default=0) + 1) if n not in numbered]
    if not missing:
        return tuple(numbered[number] for number in sorted(numbered))
    raise LayoutError(
        tr("a shard of the model is missing") if numbered else tr("the folder holds no weights"),
        file=folder.path / f"consolidated.{missing[0]:02}.pth",
        expected=tr("consolidated.00.pth and on, without a gap"),
        found=", ".join(path.name for _, path in sorted(numbered.items())) or tr("none of them"),
        remedy=tr("download the missing files into this folder"),
    )


def read_parts(
    files: Sequence[Path], offload: Offload | None
) -> tuple[dict[str, tuple[LazyTensor, ...]], tuple[str, ...]]:
    """Each tensor's parts in the order of the shards, and the rotary buffers left out.

    Raises ``LayoutError`` unless all shards have the same tensors in the same dtypes.
    """
    shards = {path: open_container(path, offload) for path in files}
    names = dict.fromkeys(name for shard in shards.values() for name in shard)
    dropped = tuple(name for name in names if llama.is_rotary_buffer(name))
    kept = [name for name in names if name not in dropped]
    for path, shard in shards.items():
        if lacking := [name for name in kept if name not in shard]:
            raise LayoutError(
                tr("a shard lacks a tensor that the others have"),
                file=path,
                tensor=lacking[0],
                expected=tr("a part of each of {n_kept} tensors", n_kept=len(kept)),
                found=tr("{n_lacking} of them missing", n_lacking=len(lacking)),
                remedy=tr("the files are of different models: take all of them from one place"),
            )
    parts = {name: tuple(shard[name] for shard in shards.values()) for name in kept}
    for name, tensors in parts.items():
        if any(part.dtype not in FLOATS or part.dtype != tensors[0].dtype for part in tensors):
            raise LayoutError(
                tr("the shards hold a tensor in dtypes that are quantized or differ"),
                file=files[0].parent,
                tensor=name,
                expected=tr("float16, bfloat16 or float32 in every shard"),
                found=", ".join(get_dtype_name(part.dtype) for part in tensors),
                remedy=tr("take the original model, all files from one place"),
            )
    return parts, dropped


def require_every_shard(
    params: Mapping[str, Any], parts: Mapping[str, Sequence[LazyTensor]], source: Path
) -> None:
    """The columns of wo in all shards must make up the whole: the last ones may be missing.

    Raises ``LayoutError`` naming the first missing file.
    """
    wo, dim = parts.get("layers.0.attention.wo.weight", ()), params.get("dim")
    if not wo or any(len(part.shape) != 2 for part in wo) or wo[0].shape[0] != dim:
        return  # told with the other shapes
    each, together = wo[0].shape[1], sum(part.shape[1] for part in wo)
    if together < wo[0].shape[0] and wo[0].shape[0] % each == 0:
        count = wo[0].shape[0] // each
        raise LayoutError(
            tr("a shard of the model is missing"),
            file=source.with_name(f"consolidated.{len(wo):02}.pth"),
            tensor="layers.0.attention.wo.weight",
            expected=tr(
                "{count} shards with {each} columns each, {dim} together",
                count=count,
                each=each,
                dim=dim,
            ),
            found=tr(
                "{n_wo} shards with {together} columns together", n_wo=len(wo), together=together
            ),
            remedy=tr("download the missing files into this folder"),
        )


def join_parts(
    folder: Path, parts: Mapping[str, tuple[LazyTensor, ...]], shape: LlamaShape
) -> dict[str, LazyTensor]:
    """Every tensor of the table, joined and in Hugging Face's order; nothing else may be there.

    Raises ``LayoutError`` where the parts do not make up what ``params.json`` describes.
    """
    entries = {entry.meta: entry for entry in llama.entries(shape)}
    missing = [name for name in entries if name not in parts]
    extra = [name for name in parts if name not in entries]
    for sentence, names, found in (
        (tr("the weights are incomplete"), missing, tr("no such tensor in the shards")),
        (
            tr("the weights hold a tensor that params.json does not describe"),
            extra,
            tr("in the shards"),
        ),
    ):
        if names:
            raise LayoutError(
                sentence,
                file=folder,
                tensor=names[0],
                expected=tr(
                    "{n_entries} tensors, as {params_name} describes the model",
                    n_entries=len(entries),
                    params_name=PARAMS_NAME,
                ),
                found=tr("{found}, and {n_names} more", found=found, n_names=len(names) - 1)
                if len(names) > 1
                else found,
                remedy=tr(
                    "{params_name} is another model's, or the model is no LLaMA",
                    params_name=PARAMS_NAME,
                ),
            )
    vocab = _join_part(entries["output.weight"], parts["output.weight"], shape).rows
    whole = {}
    for name, entry in entries.items():
        tensor = _join_part(entry, parts[name], shape)
        wanted = entry.complete_shape(vocab)
        if tensor.shape != wanted:
            raise _contradiction_error(folder, name, wanted, tensor.shape, parts[name], shape)
        rotary = entry.row.rotary is not None
        whole[entry.hf] = to_half_split(tensor, shape.head_dim) if rotary else tensor
    return whole


def _join_part(entry: llama.Entry, parts: tuple[LazyTensor, ...], shape: LlamaShape) -> LazyTensor:
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
        return concatenate(parts, axis) if len(rest) == 1 else parts[0]
    first = parts[0].read()
    for part in parts[1:]:
        if part.shape != parts[0].shape or not torch.equal(part.read(), first):
            raise LayoutError(
                tr("the shards hold different versions of a tensor of which each has a copy"),
                tensor=part.origin,
                expected=tr("the same values as in {origin}", origin=parts[0].origin),
                remedy=tr("the files are of different models: take all of them from one place"),
            )
    return parts[0]


def _contradiction_error(
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
            tr("the shards repeat wk and wv: there are more of them than key and value heads"),
            file=folder,
            tensor=name,
            expected=tr("{wanted} in all shards together", wanted=wanted),
            found=tr(
                "{found}: {n_parts} shards for {kv_heads} heads",
                found=found,
                n_parts=len(parts),
                kv_heads=kv_heads,
            ),
            remedy=tr(
                "take the download of this model with at most {kv_heads} shards", kv_heads=kv_heads
            ),
        )
    return LayoutError(
        tr("params.json and the weights contradict each other"),
        file=folder / PARAMS_NAME,
        tensor=name,
        expected=tr("{wanted}, by {params_name}", wanted=wanted, params_name=PARAMS_NAME),
        found=tr(
            "{found} in {n_parts} shards ({parts})",
            found=found,
            n_parts=len(parts),
            parts=", ".join(str(p.shape) for p in parts[:4]),
        ),
        remedy=tr(
            "{params_name} is another model's, or a shard is: take all files from one place",
            params_name=PARAMS_NAME,
        ),
    )
