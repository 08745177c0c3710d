"""A folder with a model, in whichever layout it is: told apart by the names of its files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LayoutError
from ..messages import tr
from ..storage.folder import Folder
from ..storage.zipped_adapter import ADAPTER_CONFIG_NAME
from .config import CONFIG_NAME
from .llama import META_SHARD
from .params import PARAMS_NAME

if TYPE_CHECKING:
    from .gguf.base import GgufMetadata

_HF_WEIGHTS = ("pytorch_model*.bin", "*.safetensors", "*.bin.index.json")


class ModelFolder(Folder):
    """A model's folder, or a ``.gguf`` file; its layout and configuration."""

    @cached_property
    def is_gguf(self) -> bool:
        """Whether it is a ``.gguf`` file, or has such files and no other weights."""
        if not self.path.is_dir():
            return self.path.suffix == ".gguf"
        return bool(self.matching("*.gguf")) and not self.matching(*_HF_WEIGHTS, "*.pth")

    @cached_property
    def is_meta(self) -> bool:
        """Whether it is in Meta's layout: its weights are, or it has ``params.json`` alone.

        A folder that has Hugging Face's weights too is read as Hugging Face's.
        """
        if not self.path.is_dir() or self.matching(*_HF_WEIGHTS):
            return False
        if any(META_SHARD.fullmatch(name) for name in self.entries):
            return True
        return PARAMS_NAME in self.files and CONFIG_NAME not in self.files

    @property
    def config_path(self) -> Path:
        """The file that describes the model."""
        if self.is_gguf:
            return next(iter(self.matching("*.gguf")), self.path)
        return self.path / (PARAMS_NAME if self.is_meta else CONFIG_NAME)

    @cached_property
    def gguf_metadata(self) -> GgufMetadata:
        """What a model in GGUF says of itself. Imports torch."""
        from .gguf.base import read_metadata

        return read_metadata(self)

    def require_config(self) -> None:
        """Raise ``LayoutError`` or ``FormatError`` unless a file describes the model."""
        if not self.is_meta:
            _ = self.config

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """``config.json`` of a model in Hugging Face's layout.

        Raises ``LayoutError`` when there is none, ``FormatError`` when it is not a JSON object.
        """
        if CONFIG_NAME in self.files:
            return self.read_json(CONFIG_NAME)
        found, remedy = (
            tr("no config.json"),
            tr("give the folder that holds config.json and the weights"),
        )
        if PARAMS_NAME in self.files:
            found = tr(
                "Meta's params.json, but not the weights that belong to it (consolidated.*.pth)"
            )
            remedy = tr("give either Meta's folder or Hugging Face's, each with its own weights")
        if self.matching("*.gguf"):
            found = tr("GGUF, for llama.cpp")
            remedy = tr("give the folder of the model that it was made from")
        if ADAPTER_CONFIG_NAME in self.files:
            found = tr(
                "an adapter ({adapter_config_name})", adapter_config_name=ADAPTER_CONFIG_NAME
            )
            remedy = tr("give adapters with --lora_model")
        raise LayoutError(
            tr("the base model's folder has no configuration"),
            file=self.path / CONFIG_NAME,
            expected=tr(
                "a folder as Hugging Face transformers saves it, or as Meta distributes it"
            ),
            found=found,
            remedy=remedy,
        )
