"""A GGUF file as base: its metadata, its tokenizer, and what of them a model made of it keeps.

What is read of a file beside its tensors is copied with the types that it has there, so nothing is
lost that is not known here. The tensors are opened by ``reading.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import LayoutError, VocabularyError
from ...formats import gguf as container
from ...formats.blocks import BlockTensor
from ...messages import tr
from ...storage.folder import Folder
from ...storage.input_file import InputFile
from ...tensors.lazy import Checkpoint, LazyTensor
from ...tokenizers.embedded_tokenizer import TOKENS, EmbeddedTokenizer
from .reading import ARCHITECTURE, find_gguf_files

if TYPE_CHECKING:
    from gguf import GGUFWriter

_TOKENIZER = "tokenizer."
_HYPERPARAMETERS = f"{ARCHITECTURE}."
_ALWAYS_ADDED = (f"{ARCHITECTURE}.vocab_size", f"{ARCHITECTURE}.rope.dimension_count")
# Of the file alone: how it is split, aligned and quantized.
_OF_THE_FILE = ("split.", "quantize.", "general.alignment", "general.quantized_by")
# What names one model among others. A model made of it has a name of its own, and says these of
# its base in ``general.base_model.0.*``.
_IDENTITY = (
    *("name", "author", "version", "organization", "description", "url", "doi", "uuid"),
    "repo_url",
)
_OTHER_NAMES = ("basename", "finetune", "size_label", "source.", "base_model.")


@dataclass(frozen=True)
class GgufMetadata:
    """The metadata of the GGUF file ``path`` by key, and their types."""

    path: Path
    values: Mapping[str, Any]
    types: Mapping[str, container.ValueType]

    def add_to(self, writer: GGUFWriter, *beginnings: str) -> None:
        """Add what begins so and is not there yet, as it is."""
        from gguf import GGUFValueType

        there = {key for part in writer.kv_data for key in part}
        for key, value in self.values.items():
            if key.startswith(beginnings) and key not in there and value != []:
                kind, entry = self.types.get(key, (container.STRING, None))
                entry_type = None if entry is None else GGUFValueType(entry)
                writer.add_key_value(key, value, GGUFValueType(kind), entry_type)

    def with_block_count(self, layers: int) -> GgufMetadata:
        """The metadata of a model of so many layers."""
        return replace(self, values={**self.values, f"{ARCHITECTURE}.block_count": layers})


@dataclass(frozen=True)
class KeptMetadata:
    """What a model says of itself that was made of a GGUF file.

    ``rotary_factors`` is the tensor of that name in the base. Without ``is_described`` another
    ``config.json`` describes the model, and the hyperparameters are not those of the file.
    """

    metadata: GgufMetadata
    rotary_factors: LazyTensor | None = None
    is_described: bool = True

    def add_hyperparameters(self, writer: GGUFWriter) -> None:
        """Add every number of the model but for those that are always added."""
        values = {k: v for k, v in self.metadata.values.items() if k not in _ALWAYS_ADDED}
        replace(self.metadata, values=values).add_to(writer, _HYPERPARAMETERS)

    def add_others(self, writer: GGUFWriter) -> None:
        """Add what is said of the base and holds for a model made of it, such as the license."""
        left_out = (*_OF_THE_FILE, *(f"general.{name}" for name in (*_IDENTITY, *_OTHER_NAMES)))
        values = {
            key: value
            for key, value in self.metadata.values.items()
            if not key.startswith((*left_out, _HYPERPARAMETERS, _TOKENIZER))
        }
        replace(self.metadata, values=values).add_to(writer, "")

    def describe_base(self) -> dict[str, str]:
        """The base as ``general.base_model.0.*`` has it; empty where the file has no name."""
        said = {name: self.metadata.values.get(f"general.{name}") for name in _IDENTITY}
        known = {name: value for name, value in said.items() if isinstance(value, str)}
        return known if "name" in known else {}


def read_metadata(folder: Folder) -> GgufMetadata:
    """The metadata of a model in GGUF, from the header of its first file.

    Raises ``LayoutError`` and ``FormatError`` as ``reading.open_gguf`` does.
    """
    file = InputFile(find_gguf_files(folder)[0])
    file.read_head()
    found = container.read(file)
    return GgufMetadata(file.path, found.metadata, found.types)


def read_embedded_tokenizer(metadata: GgufMetadata) -> EmbeddedTokenizer:
    """The tokenizer of a GGUF file. Raises ``VocabularyError`` for a file that has none."""
    tokens = metadata.values.get(TOKENS)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise VocabularyError(
            tr("the GGUF file lists no tokens, without which llama.cpp loads no model"),
            file=metadata.path,
            expected=tr("{tokens}: a list of text", tokens=TOKENS),
            found=tr("no {tokens}", tokens=TOKENS)
            if tokens is None
            else f"{TOKENS} {tokens!r:.60}",
            remedy=tr("make the file anew with llama.cpp's convert_hf_to_gguf.py"),
        )
    kept = {key: v for key, v in metadata.values.items() if key.startswith(_TOKENIZER)}
    return EmbeddedTokenizer(metadata.path, kept, metadata.types)


def add_embedded_tokenizer(writer: GGUFWriter, tokenizer: EmbeddedTokenizer) -> None:
    """Add every key of a tokenizer as it is."""
    GgufMetadata(tokenizer.path, tokenizer.metadata, tokenizer.types).add_to(writer, _TOKENIZER)


def list_quantized(checkpoint: Checkpoint) -> list[str]:
    """Names of the tensors of an opened GGUF file that are quantized there."""
    return [n for n, t in checkpoint.tensors.items() if isinstance(t, BlockTensor)]


def require_quantized_allowed(checkpoint: Checkpoint, allowed: bool) -> tuple[str, ...]:
    """A note on what quantization has lost. Raises ``LayoutError`` unless that is ``allowed``."""
    quantized = list_quantized(checkpoint)
    if not quantized:
        return ()
    if not allowed:
        raise LayoutError(
            tr(
                "the base is quantized, and what was rounded away in it would be "
                "missing in the result"
            ),
            file=checkpoint.files[0],
            tensor=quantized[0],
            expected=tr("f32, f16 or bf16"),
            found=tr(
                "{n_quantized} of {n_tensors} tensors in q8_0",
                n_quantized=len(quantized),
                n_tensors=len(checkpoint.tensors),
            ),
            remedy=tr(
                "take the file from which this one was quantized; if there is none, "
                "--allow_quantized_input merges into its dequantized values"
            ),
        )
    return (
        tr(
            "the base is quantized: {n_quantized} of its tensors are q8_0, in "
            "which a value is off by up to about 1/254 of the largest of its "
            "block of 32; they are dequantized, and what was lost stays lost "
            "(q8_0 as --outtype rounds a second time)",
            n_quantized=len(quantized),
        ),
    )
