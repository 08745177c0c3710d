"""Meta's folder: ``consolidated.NN.pth``, one file per GPU that the model was meant for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LayoutError, UsageError
from ..messages import tr
from ..storage.offload import Offload
from ..tensors.lazy import Checkpoint, LazyTensor, get_dtype_name, have_equal_values
from . import llama
from .config import LlamaShape
from .model_folder import ModelFolder
from .params import PARAMS_NAME, derive_config, derive_shape, read_params
from .placement import Piece, PlacedTensor
from .rotary import to_interleaved
from .shards import find_shard_files, join_parts, read_parts, require_every_shard


def open_base(
    folder: ModelFolder, offload: Offload | None = None, context_length: int | None = None
) -> Checkpoint:
    """Open a folder as Meta distributes it: shards joined, Hugging Face's names and rotary order.

    ``config.json`` is derived from ``params.json`` and the weights; ``context_length`` is what
    neither says. Raises ``LayoutError`` for missing shards, for shards that do not belong together,
    and for a ``params.json`` that the weights contradict; ``FormatError`` for damaged files.
    """
    source = folder.path / PARAMS_NAME
    params = read_params(folder)
    files = find_shard_files(folder)
    parts, dropped = read_parts(files, offload)
    first = "layers.0.feed_forward.w1.weight"
    rows = sum(part.rows for part in parts[first]) if first in parts else 0
    require_every_shard(params, parts, source)
    shape = derive_shape(params, rows, source)
    tensors = join_parts(folder.path, parts, shape)
    embeddings = tensors[llama.EMBED_TOKENS]
    _require_vocabulary(params, embeddings.rows, source)
    dtype = get_dtype_name(embeddings.dtype)
    config, notes = derive_config(params, shape, embeddings.rows, dtype, context_length)
    if params.get("use_scaled_rope") and have_equal_values(embeddings, tensors[llama.LM_HEAD]):
        del tensors[llama.LM_HEAD]  # Llama 3.2's small models have one matrix for both
        config["tie_word_embeddings"] = True
    return Checkpoint(tensors, config, files, dropped, notes)


def _require_vocabulary(params: Mapping[str, Any], rows: int, source: Path) -> None:
    """``vocab_size`` is the number of rows, or -1, which leaves it to the tokenizer."""
    stated = params.get("vocab_size")
    if isinstance(stated, int) and stated > 0 and stated != rows:
        raise LayoutError(
            tr("params.json and the weights contradict each other"),
            file=source,
            tensor="tok_embeddings.weight",
            expected=tr('{stated} rows, by "vocab_size"', stated=stated),
            found=tr("{rows} rows in all shards together", rows=rows),
            remedy=tr(
                "take all files from one place; if the vocabulary was changed on "
                'purpose, write "vocab_size": -1'
            ),
        )


def place_tensors(
    tensors: Mapping[str, LazyTensor],
    shape: LlamaShape,
    num_shards: int | None,
    embeddings_by_rows: bool = False,
) -> list[PlacedTensor]:
    """Rename, reorder and split a model's tensors as Meta does; ``embeddings_by_rows`` from Llama 3
    on (``VocabParallelEmbedding`` in Meta's code, which was ``ParallelEmbedding``).

    ``tensors`` must hold every name of the table. Raises ``UsageError`` when the model cannot be
    split evenly over ``num_shards`` (as many as Meta uses for this size by default).
    """
    count = llama.count_meta_shards(shape) if num_shards is None else num_shards
    _require_divisible(shape, count, chosen=num_shards is not None)
    return [
        _place(entry, tensors[entry.hf], shape, count, embeddings_by_rows)
        for entry in llama.entries(shape)
    ]


def _require_divisible(shape: LlamaShape, count: int, chosen: bool) -> None:
    for size in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_size"):
        if count < 1 or getattr(shape, size) % count:
            raise UsageError(
                tr("the model cannot be split evenly over this many files"),
                expected=tr(
                    "--num_shards that divides {size} = {getattr}",
                    size=size,
                    getattr=getattr(shape, size),
                ),
                found=tr("--num_shards {count}", count=count),
                remedy=tr("leave --num_shards out to get as many as Meta uses")
                if chosen
                else tr("Meta uses this many for a model of this size; give a number that divides"),
            )


def _place(
    entry: llama.Entry,
    tensor: LazyTensor,
    shape: LlamaShape,
    count: int,
    embeddings_by_rows: bool,
) -> PlacedTensor:
    if entry.row.rotary is not None:
        tensor = to_interleaved(tensor, shape.head_dim)
    by_rows = embeddings_by_rows and entry.hf == llama.EMBED_TOKENS
    axis = 0 if by_rows else entry.row.shard_axis
    return PlacedTensor(entry.hf, tensor, _split(entry.meta, tensor.shape, axis, count))


def _split(
    meta_name: str, shape: tuple[int, ...], axis: int | None, count: int
) -> tuple[Piece, ...]:
    """Equal parts along ``axis``, the remainder of a vocabulary in the last one."""
    names = [f"consolidated.{shard:02}.pth" for shard in range(count)]
    if axis is None or count == 1:
        return tuple(Piece(name, meta_name, None, 0, 0) for name in names)
    part = shape[axis] // count
    bounds = [part * shard for shard in range(count)] + [shape[axis]]
    return tuple(
        Piece(name, meta_name, axis, bounds[shard], bounds[shard + 1])
        for shard, name in enumerate(names)
    )
