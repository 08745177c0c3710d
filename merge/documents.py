"""The small files beside the weights: configuration and tokenizer of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer_tools.huggingface import MODEL_NAME, TokenizerFolder
from tokenizer_tools.huggingface import documents as tokenizer_documents

from .errors import LayoutError
from .json_text import json_bytes, read_json
from .layouts.config import (
    CONFIG_NAME,
    EXTENDED_MODEL_TYPES,
    LlamaShape,
    merged_config,
    read_config,
    with_token_ids,
)
from .layouts.folder import config_path
from .layouts.params import PARAMS_NAME, params_json
from .sources import Sources

if TYPE_CHECKING:
    from .lazy import Checkpoint

GENERATION_CONFIG_NAME = "generation_config.json"


@dataclass(frozen=True)
class ModelConfig:
    """``config.json`` and ``generation_config.json`` of the result, as their owners wrote them."""

    path: Path
    config: Mapping[str, Any]
    shape: LlamaShape
    generation: Mapping[str, Any]
    notes: tuple[str, ...]


def find_config(sources: Sources, base: Checkpoint | None = None) -> ModelConfig:
    """The last adapter's configuration if it has one, as long-context adapters do, else the base's.

    ``base`` is the opened base. Without it the configuration is read from the base's folder, which
    must then have a ``config.json``. Raises ``LayoutError`` when an adapter's configuration
    describes a model of another shape.
    """
    base_path = config_path(sources.model)
    base_config = base.config if base is not None else read_config(sources.model)
    path = next((f / CONFIG_NAME for f in sources.adapters[::-1] if _has_config(f)), base_path)
    config = base_config if path == base_path else read_json(path)
    shape = LlamaShape.from_config(config, path)
    for name, value in vars(LlamaShape.from_config(base_config, base_path)).items():
        if name != "tie_word_embeddings" and getattr(shape, name) != value:
            raise LayoutError(
                "the adapter's config.json describes a model of another shape than the base",
                file=path,
                expected=f"{name} {value}, as in {base_path}",
                found=f"{name} {getattr(shape, name)}",
                remedy="the adapter belongs to another base; or remove its config.json if it is "
                "there by mistake",
            )
    generation = _generation_config(*sources.adapters[::-1], sources.model, sources.base)
    return ModelConfig(path, config, shape, generation, tuple(_notes(path, config)))


def find_model_config(
    folder: Path, checkpoint: Checkpoint, fallback: Path | None = None
) -> ModelConfig:
    """The configuration of a model as it is, from its own folder.

    ``fallback`` is where ``generation_config.json`` may be if the folder has none.
    """
    path, config = config_path(folder), checkpoint.config
    shape = LlamaShape.from_config(config, path, EXTENDED_MODEL_TYPES)
    generation = _generation_config(folder, fallback or folder)
    return ModelConfig(path, config, shape, generation, tuple(_notes(path, config)))


def _has_config(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file()


def _generation_config(*folders: Path) -> Mapping[str, Any]:
    """The first of the folders' ``generation_config.json``, empty when there is none."""
    paths = [folder / GENERATION_CONFIG_NAME for folder in folders]
    return next((read_json(path) for path in paths if path.is_file()), {})


def _notes(path: Path, config: Mapping[str, Any]) -> list[str]:
    if "auto_map" not in config:
        return []
    return [
        f"{path} names modelling code of its own (auto_map), which is not taken along: "
        "the model loads with transformers' LLaMA"
    ]


def huggingface_documents(
    found: ModelConfig, tokenizer: TokenizerFolder, vocab_size: int, dtype: str, tied: bool
) -> dict[str, bytes]:
    """``config.json``, ``generation_config.json`` and the tokenizer's files."""
    ids = {
        f"{name}_id": token.id if token else None
        for name in ("bos_token", "eos_token", "pad_token")
        for token in [getattr(tokenizer, name)]
    }
    config = merged_config(found.config, vocab_size, dtype, tied)
    generation = {"_from_model_config": True} if not found.generation else found.generation
    return {
        CONFIG_NAME: json_bytes(with_token_ids(config, ids, vocab_size)),
        GENERATION_CONFIG_NAME: json_bytes(with_token_ids(generation, ids, vocab_size)),
        **tokenizer_documents(tokenizer),
    }


def meta_documents(
    found: ModelConfig, tokenizer: TokenizerFolder, vocab_size: int
) -> dict[str, bytes]:
    """``params.json`` and ``tokenizer.model``; nothing of Hugging Face's, which would mislead
    llama.cpp's converter. Raises ``LayoutError`` for what ``params.json`` cannot say.
    """
    return {
        PARAMS_NAME: json_bytes(params_json(found.config, found.shape, vocab_size, found.path)),
        MODEL_NAME: tokenizer.contents[MODEL_NAME],
    }
