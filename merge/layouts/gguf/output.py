"""A model placed into GGUF: the type of each tensor in the file, which file, and the headers.

Names, types and metadata are those of llama.cpp's ``convert_hf_to_gguf.py``, and of its
``llama-quantize`` for the types that the converter does not make; the ``gguf`` package makes the
headers and distributes tensors over files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from ...errors import LayoutError
from ...formats.ggml import BLOCKS, load_library
from ...formats.gguf import ALIGNMENT
from ...messages import tr
from ...outtypes import QUANTIZED_OUTTYPES
from ...tensors.concatenated import concatenate
from ...tensors.lazy import LazyTensor, RowReader
from ..config import LlamaShape, get_rope_scaling, get_rope_theta
from ..llama import EMBED_TOKENS, LM_HEAD
from ..mixtral import MixtralShape
from ..placement import Piece, PlacedTensor
from ..rotary import to_interleaved
from .file_types import FILE_TYPES, Traits, choose_type, get_sort_key
from .importance import Importance, read_importance
from .metadata import Description
from .names import list_stored_tensors
from .quantized import convert_to_type
from .reading import ARCHITECTURE, ROTARY_FACTORS
from .vocabulary import describe_tokenizer_limits, require_known_to_llama_cpp

if TYPE_CHECKING:
    from gguf import GGUFWriter

# What llama.cpp's converter takes Llama 3.1's scaling to be that does not say it.
_LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA_3_LENGTH = 8192


@dataclass(frozen=True)
class ComputedTensor(LazyTensor):
    """A small tensor that is computed, not read."""

    values: torch.Tensor

    def reader(self) -> RowReader:
        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            out.copy_(self.values[start:stop])

        return fill


@dataclass(frozen=True)
class TypedTensors:
    """Tensors as a file of type ``outtype`` holds them, under Hugging Face's names and in its order
    of rows; ``types`` are ggml's names of theirs.
    """

    outtype: str
    tensors: Mapping[str, LazyTensor]
    types: Mapping[str, str]
    importance: Importance


def convert_tensors(
    tensors: Mapping[str, LazyTensor],
    outtype: str,
    shape: LlamaShape,
    imatrix: str | Path | None = None,
) -> TypedTensors:
    """Give each tensor its type in the file; see ``file_types``.

    ``auto`` is bf16 for a model in bfloat16, else f16, as in llama.cpp's converter. ``imatrix`` is
    the file of an importance matrix. Raises what ``read_importance`` does, and ``UsageError`` for
    a type that llama.cpp's library is needed for where it cannot be loaded.
    """
    if outtype == "auto":
        outtype = "bf16" if tensors[EMBED_TOKENS].dtype == torch.bfloat16 else "f16"
    if outtype in QUANTIZED_OUTTYPES:
        load_library()  # or a run would find out when it has begun to write
    stored = list(list_stored_tensors(shape))
    names = {part: tensor.name for tensor in stored for part in tensor.parts}
    importance = read_importance(imatrix, tensors, stored)
    traits = Traits(
        shape.num_hidden_layers,
        shape.num_attention_heads // shape.num_key_value_heads,
        shape.num_local_experts if isinstance(shape, MixtralShape) else 0,
        is_tied=LM_HEAD not in tensors,
        has_importance=imatrix is not None,
    )
    types = {
        name: choose_type(outtype, names[name], tensor.shape, traits)
        for name, tensor in tensors.items()
    }
    converted = {
        name: convert_to_type(tensor, types[name], importance.factors.get(name))
        for name, tensor in tensors.items()
    }
    return TypedTensors(outtype, converted, types, importance)


@dataclass(frozen=True)
class GgufPlan:
    """Tensors with the files they go to, and what stands in each file before its data."""

    placed: tuple[PlacedTensor, ...]
    headers: Mapping[str, bytes]
    notes: tuple[str, ...]


def place_tensors(
    tensors: Mapping[str, LazyTensor],
    description: Description,
    typed: TypedTensors,
    split_max_size: int,
) -> GgufPlan:
    """Rename and reorder ``tensors``, distribute them over files and make the headers.

    They are those of ``typed``, which may have been wrapped.

    Files are split as by ``gguf-split``: the next one begins with the tensor that would make one
    larger than ``split_max_size`` bytes (0: never). Raises ``LayoutError`` for rotary positions
    that llama.cpp does not know, ``VocabularyError`` for a tokenizer that it cannot follow.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    require_known_to_llama_cpp(description.tokenizer)
    outtype, types = typed.outtype, typed.types
    is_quantized = outtype in QUANTIZED_OUTTYPES
    items = [*_find_rotary_factors(description), *_assemble(tensors, description.shape)]
    if is_quantized:
        items.sort(key=lambda item: get_sort_key(item.name))
    writer = GGUFWriter(None, ARCHITECTURE, split_max_size=split_max_size)
    for item in items:
        # A uint8 is taken for bytes of blocks, everything else for elements.
        dtype, nbytes = item.tensor.dtype, item.tensor.nbytes
        numpy_type = np.dtype(np.uint8 if dtype == torch.uint8 else np.float32)
        kind = GGMLQuantizationType[types.get(item.source, "F32")]
        writer.add_tensor_info(item.name, item.shape, numpy_type, nbytes, raw_dtype=kind)
    description.add_to(writer, FILE_TYPES[outtype][0], typed.importance.keys, is_quantized)
    files = [path.name for path in writer.format_shard_names(Path(f"ggml-model-{outtype}.gguf"))]
    places = {name: file for file, held in zip(files, writer.tensors, strict=True) for name in held}
    placed = tuple(
        PlacedTensor(item.source, item.tensor, (Piece(places[item.name], item.name, None, 0, 0),))
        for item in items
    )
    headers = dict(zip(files, _build_headers(writer), strict=True))
    notes = _build_notes(types, outtype, description)
    limits = describe_tokenizer_limits(description.tokenizer)
    return GgufPlan(placed, headers, (*notes, *limits))


@dataclass(frozen=True)
class _Item:
    """A tensor of the file as it is streamed, its ``name`` and ``shape`` there; ``source`` is its
    name in Hugging Face's layout, of stacked ones that of the first.
    """

    name: str
    source: str
    tensor: LazyTensor
    shape: tuple[int, ...]


def _assemble(tensors: Mapping[str, LazyTensor], shape: LlamaShape) -> Iterator[_Item]:
    """The model's tensors by their names in the file: q and k in Meta's order, experts stacked.

    Stacked matrices are streamed as one that has the rows of all.
    """
    for stored in list_stored_tensors(shape):
        parts = [tensors[part] for part in stored.parts if part in tensors]
        if not parts:  # an LM head that is the embeddings
            continue
        tensor = concatenate(parts, 0) if stored.is_stacked else parts[0]
        if stored.rotary:
            tensor = to_interleaved(tensor, shape.head_dim)
        stack = (len(parts),) if stored.is_stacked else ()
        yield _Item(stored.name, stored.parts[0], tensor, (*stack, *parts[0].shape))


def _build_headers(writer: GGUFWriter) -> list[bytes]:
    """What the package writes before the data, for each file, up to where the data begin."""
    if len(writer.tensors) == 1:
        writer.split_max_size = 0  # else the package says on the screen that it does not split
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.gguf")
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        contents = [file.read_bytes() for file in writer.format_shard_names(path)]
    return [content + bytes(-len(content) % ALIGNMENT) for content in contents]


def _build_notes(types: Mapping[str, str], outtype: str, description: Description) -> list[str]:
    notes, scaling = [], get_rope_scaling(description.config)
    whole = [name for name, kind in types.items() if kind == "F16"]
    if FILE_TYPES[outtype][1] in BLOCKS and whole:
        notes.append(
            tr(
                "{n_whole} tensors have rows that are no multiple of 32 long, which "
                "{outtype} cannot hold; they are f16: {whole}{text}",
                n_whole=len(whole),
                outtype=outtype,
                whole=", ".join(whole[:3]),
                text=", ..." if whole[3:] else "",
            )
        )
    if scaling is not None and scaling["type"] == "dynamic":
        notes.append(
            tr(
                "the model scales rotary positions by the length of the text "
                "(dynamic), which llama.cpp does not: beyond its context length it "
                "will answer otherwise"
            )
        )
    window = description.config.get("sliding_window")
    if window and isinstance(description.shape, MixtralShape):
        notes.append(
            tr(
                "the model looks back {window} tokens (sliding_window), but "
                "llama.cpp looks back to the beginning of the text: beyond that "
                "length it will answer otherwise",
                window=window,
            )
        )
    return notes


def _find_rotary_factors(description: Description) -> Iterator[_Item]:
    """The factors of a base in GGUF as they are, else those that ``config.json`` asks for."""
    kept = description.kept
    is_kept = kept is not None and kept.is_described
    factors = kept.rotary_factors if kept and is_kept else _build_rotary_factors(description)
    if factors is not None:  # llama.cpp reads them in this type alone
        whole = convert_to_type(factors, "F32")
        yield _Item(ROTARY_FACTORS, ROTARY_FACTORS, whole, whole.shape)


def _build_rotary_factors(description: Description) -> LazyTensor | None:
    """The tensor that llama.cpp divides rotary frequencies by, for Llama 3.1's scaling.

    Short waves stay, long ones are stretched by ``factor``, in between it goes over smoothly.
    Sources: Meta's ``apply_scaling`` in ``llama_models/llama3/model.py``; for numbers that are not
    said llama.cpp's converter, which asks transformers first. Raises ``LayoutError`` for other
    kinds of scaling.
    """
    scaling, shape = get_rope_scaling(description.config), description.shape
    kind = None if scaling is None else scaling["type"]
    if scaling is None or kind in ("linear", "yarn", "dynamic"):
        return None
    if kind != "llama3":
        raise LayoutError(
            tr("llama.cpp does not know how this model scales its rotary positions"),
            file=description.source,
            expected=tr("no rope_scaling, or one of the kinds linear, yarn, dynamic, llama3"),
            found=repr(kind),
            remedy=tr("write --output_type huggingface"),
        )
    said = {key: value for key, value in scaling.items() if value is not None}
    factor, low, high = (float(said.get(key, default)) for key, default in _LLAMA_3.items())
    # transformers takes the context's length, but only beside all the others does it take anything
    unsaid = description.context_length if _LLAMA_3.keys() <= said.keys() else _LLAMA_3_LENGTH
    length = float(said.get("original_max_position_embeddings", unsaid))
    theta = get_rope_theta(description.config)
    places = torch.arange(0, shape.head_dim, 2, dtype=torch.float32)
    waves = 2 * math.pi / (1.0 / theta ** (places / shape.head_dim))
    smooth = (length / waves - low) / (high - low)
    factors = 1 / ((1 - smooth) / factor + smooth)
    factors[waves < length / high] = 1.0
    factors[waves > length / low] = factor
    origin = "factors of the rotary frequencies, by config.json"
    return ComputedTensor((len(factors),), torch.float32, origin, factors.float())
