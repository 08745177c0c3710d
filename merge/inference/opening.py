"""From the name of a model to the model in memory, and which of two may be there at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..layouts.model_folder import ModelFolder
from ..messages import tr
from ..plan.places import resolve
from ..sizes import available_memory
from ..storage.offload import Offload
from ..storage.zipped_adapter import ADAPTER_CONFIG_NAME
from .chat_model import ChatModel
from .settings import ChatSettings

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
# What a model takes beyond its weights: the cache of keys and values, and what is being computed.
_OVERHEAD = 1.25


@dataclass(frozen=True)
class ModelSource:
    """A model that was found; ``gguf`` is its (first) file in that layout."""

    folder: ModelFolder
    gguf: Path | None

    @property
    def path(self) -> Path:
        """What is shown of it."""
        return self.gguf or self.folder.path

    @property
    def nbytes(self) -> int:
        """Bytes of its weight files, which its weights take in memory too."""
        return sum(path.stat().st_size for path in self.folder.matching(*_WEIGHTS))


def find_model(name: str) -> ModelSource:
    """Find a Hugging Face folder or a GGUF file; a Hub repository is downloaded first.

    Raises ``UsageError`` for what cannot be talked to, with what to do about it.
    """
    with Offload(None, Path.cwd()) as offload:
        folder = ModelFolder(resolve(name, tr("chat model"), offload))
    if folder.is_gguf:
        return ModelSource(folder, folder.matching("*.gguf")[0])
    if folder.is_meta:
        raise UsageError(
            tr("a model in Meta's layout (.pth) cannot be talked to"),
            file=folder.path,
            expected=tr("a Hugging Face folder or a GGUF file"),
            remedy=tr(
                "convert it: convert_checkpoint.py --input {path} --output OUT "
                "--output_type huggingface, or gguf",
                path=folder.path,
            ),
        )
    if ADAPTER_CONFIG_NAME in folder.files and "config.json" not in folder.files:
        raise UsageError(
            tr("this is an adapter, not a model"),
            file=folder.path,
            expected=tr("a Hugging Face folder or a GGUF file"),
            remedy=tr("merge it into its base first, and give the result"),
        )
    folder.require_config()
    if not folder.matching(*_WEIGHTS):
        raise UsageError(
            tr("the folder has no weights"),
            file=folder.path,
            expected=", ".join(_WEIGHTS),
            remedy=tr("give the folder of the whole model"),
        )
    return ModelSource(folder, None)


def open_model(source: ModelSource, settings: ChatSettings) -> ChatModel:
    """Load a model. Raises ``FormatError`` where the library cannot."""
    if source.gguf is not None:
        from .llama_cpp_model import LlamaCppModel

        return LlamaCppModel(source.gguf, settings)
    from .transformers_model import TransformersModel

    return TransformersModel(source.folder, settings.device)


class Models:
    """Models that are asked in turn; all stay in memory if they fit, else one at a time.

    They fit if their weight files and a quarter more are less than the memory that is available,
    on the GPU too if one computes. Where the system does not tell that, there is one at a time.
    """

    def __init__(self, sources: Sequence[ModelSource], settings: ChatSettings) -> None:
        self.sources = sources
        self.settings = settings
        needed = int(_OVERHEAD * sum(source.nbytes for source in sources))
        available = _find_available(sources, settings)
        self.keeps_all = len(sources) == 1 or (available is not None and needed <= available)
        self._open: dict[int, ChatModel] = {}

    def is_open(self, index: int) -> bool:
        """Whether that model is in memory."""
        return index in self._open

    def get(self, index: int) -> ChatModel:
        """The model of that number, loaded if it is not there."""
        if index not in self._open:
            if not self.keeps_all:
                self.close()
            self._open[index] = open_model(self.sources[index], self.settings)
        return self._open[index]

    def close(self) -> None:
        """Free all of them."""
        while self._open:
            self._open.popitem()[1].close()


def _find_available(sources: Sequence[ModelSource], settings: ChatSettings) -> int | None:
    available = available_memory()
    if settings.device == "cpu" or all(source.gguf for source in sources):
        return available
    import torch

    if available is None or not torch.cuda.is_available():
        return available
    return min(available, int(torch.cuda.mem_get_info()[0]))
