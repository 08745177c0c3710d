"""GGUF: for which models and tokenizers it is written, known before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LayoutError
from ..layouts import mixtral
from ..layouts.config import (
    LLAMA_MODEL_TYPES,
    LlamaShape,
    require_class,
    require_named_llama,
    require_plain_llama,
    require_values,
)
from ..layouts.gguf.names import list_stored_tensors, require_names
from ..layouts.gguf.vocabulary import GgufTokenizer, require_known_to_llama_cpp
from ..layouts.llama import LM_HEAD
from ..messages import compose, tr
from ..tokenizers.byte_level_bpe import read_byte_level_bpe
from ..tokenizers.embedded_tokenizer import EmbeddedTokenizer
from ..tokenizers.file_names import MODEL_NAME, TOKENIZER_JSON_NAME
from ..tokenizers.opaque_tokenizer import Tokenizer, require_sentencepiece
from ..tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer, read_tokenizer
from ..tokenizers.tiktoken_model import is_tiktoken
from .documents import ModelConfig

if TYPE_CHECKING:
    from ..tensors.lazy import LazyTensor


@dataclass(frozen=True)
class GgufModel:
    """A model that llama.cpp knows as a ``llama``: its shape, its ``config.json`` with what goes
    without saying, and its tokenizer.
    """

    shape: LlamaShape
    config: Mapping[str, Any]
    tokenizer: GgufTokenizer


def require_gguf_model(found: ModelConfig, tokenizer: Tokenizer) -> GgufModel:
    """The model as a GGUF file describes it.

    Raises ``LayoutError`` for another architecture than LLaMA's and Mixtral's, ``VocabularyError``
    or ``UsageError`` for a tokenizer that llama.cpp cannot follow.
    """
    shape, config = _require_architecture(found)
    understood = _understand(tokenizer)
    require_known_to_llama_cpp(understood)
    return GgufModel(shape, config, understood)


def _require_architecture(found: ModelConfig) -> tuple[LlamaShape, Mapping[str, Any]]:
    if found.shape is not None:
        require_named_llama(found.config, found.path)
        require_plain_llama(found.config, found.path)
        return found.shape, found.config
    kind = found.config.get("model_type")
    if kind != mixtral.MODEL_TYPE:
        biases = tr(" with biases") if kind in LLAMA_MODEL_TYPES else ""
        raise LayoutError(
            tr("GGUF is written here for LLaMA and Mixtral alone"),
            file=found.path,
            expected=tr('"model_type": "llama", without biases, or "mixtral"'),
            found=compose("{kind!r}{biases}", kind=kind, biases=biases),
            remedy=tr(
                "use --output_type huggingface, which any decoder can be written to, "
                "and llama.cpp's own converter"
            ),
        )
    require_class(found.config, found.path, "Mixtral", mixtral.ARCHITECTURES)
    require_values(found.config, found.path)
    return mixtral.read_shape(found.config, found.path), mixtral.complete_config(found.config)


def _understand(tokenizer: Tokenizer) -> GgufTokenizer:
    """The tokenizer with its parts, where only its files were known."""
    if isinstance(tokenizer, (SentencePieceTokenizer, EmbeddedTokenizer)):
        return tokenizer
    model = tokenizer.contents.get(MODEL_NAME)
    if model is not None and not is_tiktoken(model):
        return read_tokenizer(tokenizer.path)
    # Llama 3's file has 17 MB: it is parsed once, for all that is to be known.
    if b'"ByteLevel"' in tokenizer.contents.get(TOKENIZER_JSON_NAME, b""):
        return read_byte_level_bpe(tokenizer)
    return require_sentencepiece(tokenizer, "GGUF")


def require_every_tensor(
    tensors: Mapping[str, LazyTensor], shape: LlamaShape, source: Path, tied: bool
) -> None:
    """Raise ``LayoutError`` unless these are the tensors of the model that ``source`` describes.

    Rows of the vocabulary have been checked before.
    """
    wanted = {part: s.shape for s in list_stored_tensors(shape) for part in s.parts}
    if tied and LM_HEAD not in tensors:
        del wanted[LM_HEAD]
    remedy = tr(
        "save the model once with transformers' save_pretrained, or use --output_type huggingface"
    )
    require_names(tensors, wanted, source, source.name, remedy)
    for name, sizes in wanted.items():
        found = tensors[name].shape
        if found[1:] != sizes[1:] or sizes[0] not in (None, found[0]):
            raise LayoutError(
                tr("a tensor has another shape than config.json says"),
                file=source,
                tensor=tensors[name].origin,
                expected=sizes,
                found=found,
                remedy=tr("take config.json and all weights from one place"),
            )
