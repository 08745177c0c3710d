"""GGUF as llama.cpp reads it: one file, or several that are numbered, with names of its own.

Sources: llama.cpp's ``convert_hf_to_gguf.py`` (which keys, which types, the rotary order) and
``gguf-split`` (names and numbers of files, ``split.*`` keys).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import LayoutError
from ...formats import gguf as container
from ...formats.blocks import BlockTensor
from ...messages import tr
from ...settings import IoMode
from ...storage.folder import Folder
from ...storage.input_file import InputFile
from ...tensors.lazy import Checkpoint, LazyTensor, get_dtype_name
from .. import llama, mixtral
from ..config import DEFAULT_ROPE_THETA, LLAMA_ARCHITECTURES, LLAMA_MODEL_TYPES, LlamaShape
from ..rotary import to_half_split
from .names import list_stored_tensors, require_names

ARCHITECTURE = "llama"
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
# Rotary factors that llama.cpp keeps as a tensor; Hugging Face's models say them in config.json.
ROTARY_FACTORS = "rope_freqs.weight"


def find_gguf_files(folder: Folder) -> tuple[Path, ...]:
    """The files of one model: the file itself, those numbered like it, or those in its folder.

    Raises ``LayoutError`` for a folder with none or several models, and for a missing number.
    """
    path = folder.path
    found = folder.matching("*.gguf") if path.is_dir() else [path]
    models = {match["stem"] if match else file.stem for file, match in _match_numbers(found)}
    if len(models) != 1:
        raise LayoutError(
            tr("the folder holds several GGUF models")
            if models
            else tr("the folder holds no GGUF file"),
            file=path,
            expected=tr("one .gguf file, or the numbered files of one model"),
            found=", ".join(file.name for file in found[:6]) or tr("none"),
            remedy=tr("name the file itself"),
        )
    match = _NUMBERED.fullmatch(found[0].name)
    if match is None:
        return (found[0],)
    count = int(match["count"])
    numbered = tuple(
        found[0].with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    )
    if missing := [file.name for file in numbered if not file.is_file()]:
        raise LayoutError(
            tr("a part of the GGUF model is missing"),
            file=numbered[0].with_name(missing[0]),
            expected=tr("{count} files", count=count),
            found=tr(
                "{n_missing} missing: {missing}",
                n_missing=len(missing),
                missing=", ".join(missing[:5]),
            ),
            remedy=tr("fetch the missing files into this folder"),
        )
    return numbered


def _match_numbers(files: list[Path]) -> list[tuple[Path, re.Match[str] | None]]:
    return [(file, _NUMBERED.fullmatch(file.name)) for file in files]


def open_gguf(folder: Folder, io: IoMode = "auto", any_quantized: bool = False) -> Checkpoint:
    """Open a LLaMA or Mixtral from a ``.gguf`` file or a folder of one, under Hugging Face's names
    and order.

    q8_0 is read as float32, and with ``any_quantized`` other types in blocks too. ``config.json``
    is derived from the metadata. Raises ``LayoutError`` for other architectures and for what is no
    whole model, ``FormatError`` for damaged files.
    """
    files = find_gguf_files(folder)
    metadata, stored = read_split_files(files, io, any_quantized)
    config = _derive_config(metadata, stored, files[0])
    shape = _read_shape(config, files[0])
    _require_whole_heads_turned(metadata, shape, files[0])
    factors = stored.pop(ROTARY_FACTORS, None)
    tensors = _check_and_order(stored, shape, files[0])
    return Checkpoint(tensors, config, files, rotary_factors=factors)


def read_split_files(
    files: tuple[Path, ...], io: IoMode, any_quantized: bool = False
) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """The metadata of the first file, and the tensors of all, by their names there.

    Raises ``LayoutError`` unless these are all files of one model, ``FormatError`` for damage.
    """
    metadata: dict[str, Any] = {}
    tensors: dict[str, LazyTensor] = {}
    for path in files:
        file = InputFile(path, io)
        file.read_head()
        found = container.read(file, any_quantized)
        metadata = metadata or found.metadata
        if twice := found.tensors.keys() & tensors.keys():
            raise LayoutError(
                tr("two files of the GGUF model hold the same tensor"),
                file=path,
                tensor=min(twice),
                found=tr("also in {origin}", origin=tensors[min(twice)].origin),
                remedy=tr("take all files from one place"),
            )
        tensors |= found.tensors
    expected, count = metadata.get("split.tensors.count"), metadata.get("split.count", 1)
    if count != len(files) or (expected is not None and expected != len(tensors)):
        raise LayoutError(
            tr("these are not all files of the GGUF model"),
            file=files[0],
            expected=tr("{count} files with {expected} tensors", count=count, expected=expected),
            found=tr("{n_files} with {n_tensors}", n_files=len(files), n_tensors=len(tensors)),
            remedy=tr("take all files from one place, under their own names"),
        )
    return metadata, tensors


def _read_shape(config: Mapping[str, Any], source: Path) -> LlamaShape:
    if config["model_type"] == mixtral.MODEL_TYPE:
        return mixtral.read_shape(config, source)
    return LlamaShape.from_config(config, source)


def _derive_config(
    metadata: Mapping[str, Any], tensors: Mapping[str, LazyTensor], source: Path
) -> dict[str, Any]:
    """What ``config.json`` would say, by the keys that llama.cpp reads."""
    _require_model(metadata, source)
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise LayoutError(
            tr("this GGUF file holds a model of another architecture"),
            file=source,
            expected=f'general.architecture "{ARCHITECTURE}"',
            found=repr(architecture),
            remedy=tr("only LLaMA, Mixtral and models of their architectures are read here"),
        )

    def said(key: str) -> Any:
        return metadata.get(f"{ARCHITECTURE}.{key}")

    embeddings = tensors.get(llama.TABLE[0].gguf)
    is_mixtral = bool(said("expert_count"))
    experts = {
        "num_local_experts": said("expert_count"),
        "num_experts_per_tok": said("expert_used_count"),
    }
    return {
        "architectures": list(mixtral.ARCHITECTURES if is_mixtral else LLAMA_ARCHITECTURES[:1]),
        "model_type": mixtral.MODEL_TYPE if is_mixtral else LLAMA_MODEL_TYPES[0],
        **(experts if is_mixtral else {}),
        "hidden_size": said("embedding_length"),
        "intermediate_size": said("feed_forward_length"),
        "num_hidden_layers": said("block_count"),
        "num_attention_heads": said("attention.head_count"),
        "num_key_value_heads": said("attention.head_count_kv"),
        "head_dim": said("attention.key_length"),
        "max_position_embeddings": said("context_length"),
        "rms_norm_eps": said("attention.layer_norm_rms_epsilon"),
        "rope_theta": said("rope.freq_base") or DEFAULT_ROPE_THETA,
        "rope_scaling": _derive_rope_scaling(metadata),
        "tie_word_embeddings": llama.TABLE[-1].gguf not in tensors,
        "torch_dtype": get_dtype_name(embeddings.dtype) if embeddings else None,
        "vocab_size": embeddings.rows if embeddings else None,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }


def _require_model(metadata: Mapping[str, Any], source: Path) -> None:
    """A GGUF file may hold other things than a model."""
    kind = metadata.get("general.type", "model")
    if kind != "model":
        is_adapter = kind == "adapter"
        raise LayoutError(
            tr("this GGUF file holds no model"),
            file=source,
            expected='general.type "model"',
            found=repr(kind),
            remedy=tr("give an adapter with --lora_model")
            if is_adapter
            else tr("give the model's file"),
        )


def _require_whole_heads_turned(
    metadata: Mapping[str, Any], shape: LlamaShape, source: Path
) -> None:
    """q and k are put in order by whole heads, all of whose places rotary positions turn."""
    turned = metadata.get(f"{ARCHITECTURE}.rope.dimension_count", shape.head_dim)
    if turned != shape.head_dim:
        raise LayoutError(
            tr("the model turns a part of each head alone, which a LLaMA does not"),
            file=source,
            expected=tr(
                "{architecture}.rope.dimension_count {head_dim}",
                architecture=ARCHITECTURE,
                head_dim=shape.head_dim,
            ),
            found=turned,
            remedy=tr("only LLaMA 1, LLaMA 2 and models of their architecture are read here"),
        )


# What else a file says of yarn, and the names of the same in config.json.
_YARN = {
    "original_context_length": "original_max_position_embeddings",
    "yarn_ext_factor": "extrapolation_factor",
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def _derive_rope_scaling(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """``rope_scaling`` as llama.cpp takes it: linear where no type is said, by 1 where no factor is
    (``load_hparams`` in ``src/llama-model.cpp``). The type ``none`` means none, with any factor.
    """
    prefix = f"{ARCHITECTURE}.rope.scaling."
    said = {key.removeprefix(prefix): v for key, v in metadata.items() if key.startswith(prefix)}
    kind = said.get("type", "linear")
    # The other key is that of files of 2023.
    factor = said.get("factor", metadata.get(f"{ARCHITECTURE}.rope.scale_linear"))
    if kind == "none" or (kind == "linear" and factor in (None, 0.0, 1.0)):
        return None
    more = {name: said[key] for key, name in _YARN.items() if said.get(key) is not None}
    return {"rope_type": kind, "factor": factor, **more}


def _check_and_order(
    stored: Mapping[str, LazyTensor], shape: LlamaShape, source: Path
) -> dict[str, LazyTensor]:
    """Every tensor of the table, by its Hugging Face name; nothing else may be there."""
    entries = {entry.name: entry for entry in list_stored_tensors(shape)}
    if shape.tie_word_embeddings:
        del entries[llama.TABLE[-1].gguf]
    remedy = tr("another kind of model under LLaMA's name, or an unfinished file")
    require_names(stored, entries, source, tr("the file's metadata"), remedy)
    rows = stored[llama.TABLE[0].gguf].rows
    tensors: dict[str, LazyTensor] = {}
    for name, entry in entries.items():
        tensor = stored[name]
        wanted = entry.complete_shape(rows)
        if tensor.shape != wanted:
            raise LayoutError(
                tr("a tensor has another shape than the metadata say"),
                file=source,
                tensor=tensor.origin,
                expected=wanted,
                found=tensor.shape,
                remedy=tr("fetch the file again, or make it anew"),
            )
        parts = container.split_stack(tensor) if entry.is_stacked else [tensor]
        if entry.rotary:
            parts = [_to_half_split(part, shape.head_dim) for part in parts]
        tensors |= dict(zip(entry.parts, parts, strict=True))
    return tensors


def _to_half_split(tensor: LazyTensor, head_dim: int) -> LazyTensor:
    """q or k in Hugging Face's order; of quantized ones it is the blocks that are put in order."""
    if isinstance(tensor, BlockTensor):
        return replace(tensor, blocks=to_half_split(tensor.blocks, head_dim))
    return to_half_split(tensor, head_dim)
