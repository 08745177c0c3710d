"""The small files beside the weights: configuration and tokenizer of the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..deltas.replication import adapt_config
from ..errors import LayoutError
from ..layouts.config import (
    CONFIG_NAME,
    EXTENDED_MODEL_TYPES,
    GENERATION_CONFIG_NAME,
    LLAMA_MODEL_TYPES,
    LlamaShape,
    build_merged_config,
    build_merged_decoder_config,
    is_llama,
    require_decoder,
    require_named_llama,
    require_no_biases,
    require_values,
    with_token_ids,
)
from ..layouts.model_folder import ModelFolder
from ..layouts.params import PARAMS_NAME, build_params_json
from ..messages import compose, tr
from ..storage.folder import Folder
from ..tokenizers.chat_formats import FORMATS
from ..tokenizers.embedded_tokenizer import EmbeddedTokenizer
from ..tokenizers.file_names import (
    ADDED_TOKENS_NAME,
    CHAT_TEMPLATE_NAME,
    MODEL_NAME,
    TOKENIZER_CONFIG_NAME,
)
from ..tokenizers.llama3_tokenizer import is_byte_level, recover_tiktoken_file, with_llama3_template
from ..tokenizers.opaque_tokenizer import (
    OpaqueTokenizer,
    Tokenizer,
    require_files,
    require_sentencepiece,
)
from ..tokenizers.sentencepiece_tokenizer import build_documents as tokenizer_documents
from ..untrusted.strict_json import dump_json, parse_json, read_small
from ..untrusted.value_kinds import CHAT_TEMPLATE, GENERATION, require_kinds
from .inputs import Sources

if TYPE_CHECKING:
    from ..layouts.gguf.base import KeptMetadata
    from ..tensors.lazy import Checkpoint

_MAX_CODE_BYTES = 16 << 20
# What the layouts are called that hold no other model than a LLaMA; GGUF a Mixtral too.
LLAMA_ONLY = {"pth": tr("Meta's layout"), "gguf": "GGUF"}


@dataclass(frozen=True)
class ModelConfig:
    """``config.json`` and ``generation_config.json`` of the result, as their owners wrote them.

    ``shape`` is None for a model that is no LLaMA. ``code`` are the files of its own modelling
    code, where ``config.json`` names some. ``gguf`` is what a base in GGUF says beside.
    """

    path: Path
    config: Mapping[str, Any]
    shape: LlamaShape | None
    generation: Mapping[str, Any]
    notes: tuple[str, ...]
    code: Mapping[str, bytes] = field(default_factory=dict)
    gguf: KeptMetadata | None = None


def find_config(
    sources: Sources,
    base: Checkpoint | None = None,
    any_decoder: bool = False,
    copy_code: bool = False,
) -> ModelConfig:
    """The last adapter's configuration if it has one, as long-context adapters do, else the base's.

    ``base`` is the opened base. Without it the configuration is read from the base's folder, which
    must then have a ``config.json``. Raises ``LayoutError`` when an adapter's configuration
    describes a model of another shape, and for what is no LLaMA unless ``any_decoder``. Python
    files of adapters are somebody else's code: they go along only with ``copy_code``.
    """
    base_path = sources.model.config_path
    if base is None:
        base_config = adapt_config(sources.model.config, sources.adapters)
    else:
        base_config = base.config
    own = next((f for f in sources.adapters[::-1] if CONFIG_NAME in f.files), None)
    path = own.path / CONFIG_NAME if own else base_path
    config = own.config if own else base_config
    generation = _read_generation_config(*sources.adapters[::-1], sources.model, sources.base)
    if any_decoder and not is_llama(base_config):
        require_decoder(base_config, base_path)
        _require_same(config, path, base_config, base_path, _SIZES)
        config = {**config, "tie_word_embeddings": base_config.get("tie_word_embeddings")}
        code, notes = _read_code(config, sources.model)
        code |= _read_python_files(*sources.adapters) if copy_code else {}
        kept = _find_kept(sources, base, own is None)
        return ModelConfig(path, config, None, generation, notes, code, kept)
    for one, source in ((base_config, base_path), (config, path)):
        require_values(one, source)
        require_no_biases(one, source)
    shape = LlamaShape.from_config(config, path)
    theirs, ours = vars(shape), vars(LlamaShape.from_config(base_config, base_path))
    names = [name for name in ours if name != "tie_word_embeddings"]
    _require_same(theirs, path, ours, base_path, names)
    code = _read_python_files(*sources.adapters) if copy_code else {}
    notes, kept = tuple(_build_notes(path, config)), _find_kept(sources, base, own is None)
    return ModelConfig(path, config, shape, generation, notes, code, kept)


def _find_kept(
    sources: Sources, base: Checkpoint | None, is_described: bool
) -> KeptMetadata | None:
    """What of a base in GGUF goes on, where it is the model that the adapters are merged into."""
    if base is None or not sources.model.is_gguf:
        return None
    from ..layouts.gguf.base import KeptMetadata

    metadata = sources.model.gguf_metadata.with_block_count(base.config["num_hidden_layers"])
    return KeptMetadata(metadata, base.rotary_factors, is_described)


# What fixes the shapes of a decoder that is no LLaMA, in the words of different families.
_SIZES = (
    *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "intermediate_size", "n_embd", "n_layer", "n_head"),
    *("attention_bias", "mlp_bias"),
)


def _require_same(
    theirs: Mapping[str, Any],
    path: Path,
    ours: Mapping[str, Any],
    base_path: Path,
    names: Iterable[str],
) -> None:
    for name in names:
        if theirs.get(name) != ours.get(name):
            raise LayoutError(
                tr("the adapter's config.json describes a model of another shape than the base"),
                file=path,
                expected=tr(
                    "{name} {name_2}, as in {base_path}",
                    name=name,
                    name_2=ours.get(name),
                    base_path=base_path,
                ),
                found=f"{name} {theirs.get(name)}",
                remedy=tr(
                    "the adapter belongs to another base; or remove its config.json if "
                    "it is there by mistake"
                ),
            )


def _read_python_files(*folders: Folder) -> dict[str, bytes]:
    """The Python files directly in folders; a later folder's take the place of an earlier one's."""
    paths = [path for folder in folders for path in folder.matching("*.py") if path.is_file()]
    return {path.name: read_small(path, _MAX_CODE_BYTES) for path in paths}


def _read_code(
    config: Mapping[str, Any], folder: Folder
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The Python files of a model that ``config.json`` gives code of its own, and a note on it."""
    if "auto_map" not in config:
        return {}, ()
    return _read_python_files(folder), (
        tr(
            "the model has modelling code of its own (auto_map), which is taken "
            "along as it is: transformers runs it only with "
            "trust_remote_code=True"
        ),
    )


def find_model_config(
    folder: ModelFolder, checkpoint: Checkpoint, fallback: ModelFolder | None = None
) -> ModelConfig:
    """The configuration of a model as it is, from its own folder.

    ``fallback`` is where ``generation_config.json`` may be if the folder has none.
    """
    path, config = folder.config_path, checkpoint.config
    shape = LlamaShape.from_config(config, path, EXTENDED_MODEL_TYPES)
    generation = _read_generation_config(folder, fallback or folder)
    return ModelConfig(path, config, shape, generation, tuple(_build_notes(path, config)))


def _read_generation_config(*folders: Folder) -> Mapping[str, Any]:
    """The first of the folders' ``generation_config.json``, empty when there is none.

    Raises ``LayoutError`` when a value in it is of another kind than its key.
    """
    folder = next((f for f in folders if GENERATION_CONFIG_NAME in f.files), None)
    if folder is None:
        return {}
    generation = folder.read_json(GENERATION_CONFIG_NAME)
    require_kinds(generation, GENERATION, folder.path / GENERATION_CONFIG_NAME)
    return generation


def _build_notes(path: Path, config: Mapping[str, Any]) -> list[str]:
    if "auto_map" not in config:
        return []
    return [
        tr(
            "{path} names modelling code of its own (auto_map), which is not "
            "taken along: the model loads with transformers' LLaMA",
            path=path,
        )
    ]


def with_chat_template(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """The tokenizer with one of the templates that are known here, in place of its own.

    Raises ``UsageError`` for a tokenizer of another generation than the template.
    """
    template = FORMATS[name].template
    data = template.encode("utf-8")
    if isinstance(tokenizer, EmbeddedTokenizer) and tokenizer.is_sentencepiece and name == "alpaca":
        return tokenizer.with_template(template)
    if name == "llama3":
        return with_llama3_template(
            require_files(tokenizer, tr("--chat_template {name}", name=name)), data
        )
    understood = require_sentencepiece(tokenizer, tr("--chat_template {name}", name=name))
    return replace(understood, contents={**understood.contents, CHAT_TEMPLATE_NAME: data})


def build_huggingface_documents(
    found: ModelConfig, tokenizer: Tokenizer, vocab_size: int, dtype: str, tied: bool
) -> dict[str, bytes]:
    """``config.json``, ``generation_config.json`` and the tokenizer's files.

    That of a GGUF file has none. Beside a tokenizer that is copied from the configuration's own
    folder, the special tokens' ids stay as the configurations have them; one from elsewhere says
    where text ends. Raises ``LayoutError`` for a chat template that is none.
    """
    if isinstance(tokenizer, OpaqueTokenizer):
        return _build_copied_documents(found, tokenizer, vocab_size, dtype, tied)
    if isinstance(tokenizer, EmbeddedTokenizer):
        documents = {CONFIG_NAME: build_merged_config(found.config, vocab_size, dtype, tied)}
        documents |= {GENERATION_CONFIG_NAME: dict(found.generation)} if found.generation else {}
        return {name: dump_json(document) for name, document in documents.items()}
    ids = {
        f"{name}_id": token.id if token else None
        for name in ("bos_token", "eos_token", "pad_token")
        for token in [getattr(tokenizer, name)]
    }
    files, path = tokenizer_documents(tokenizer), tokenizer.path / TOKENIZER_CONFIG_NAME
    require_kinds(parse_json(files[TOKENIZER_CONFIG_NAME], path), CHAT_TEMPLATE, path)
    config = build_merged_config(found.config, vocab_size, dtype, tied)
    generation = {"_from_model_config": True} if not found.generation else found.generation
    return {
        **found.code,
        CONFIG_NAME: dump_json(with_token_ids(config, ids, vocab_size)),
        GENERATION_CONFIG_NAME: dump_json(with_token_ids(generation, ids, vocab_size)),
        **files,
    }


def _build_copied_documents(
    found: ModelConfig, tokenizer: OpaqueTokenizer, vocab_size: int, dtype: str, tied: bool
) -> dict[str, bytes]:
    described = build_merged_config if found.shape else build_merged_decoder_config
    config: Mapping[str, Any] = described(found.config, vocab_size, dtype, tied)
    generation = found.generation
    derived = found.path.name == PARAMS_NAME  # which says nothing of tokens
    if derived or tokenizer.path != found.path.parent:
        config = _with_ends(config, tokenizer, vocab_size, derived)
        generation = _with_ends(generation, tokenizer, vocab_size) if generation else generation
    documents = {CONFIG_NAME: dump_json(config)}
    if generation:
        documents[GENERATION_CONFIG_NAME] = dump_json(generation)
    return {**documents, **found.code, **tokenizer.contents}


def _with_ends(
    config: Mapping[str, Any], tokenizer: OpaqueTokenizer, vocab_size: int, derived: bool = False
) -> Mapping[str, Any]:
    """Where text ends and what pads it, as far as the tokenizer says it; in a ``derived``
    configuration where it begins, too.
    """
    ids = {"pad_token_id": config.get("pad_token_id"), **tokenizer.token_ids}
    if not derived:
        ids.pop("bos_token_id", None)
    mended = with_token_ids(config, ids, vocab_size)
    return {key: value for key, value in mended.items() if key in config or value is not None}


def require_llama_shape(found: ModelConfig, layout: str) -> LlamaShape:
    """The shape of a LLaMA, for ``layout``. Raises ``LayoutError`` for another model."""
    if found.shape is None:
        biases = tr(" with biases") if found.config.get("model_type") in LLAMA_MODEL_TYPES else ""
        raise LayoutError(
            tr("this model is no LLaMA, and {layout} is for LLaMA alone", layout=layout),
            file=found.path,
            expected=tr('"model_type": "llama", without biases'),
            found=compose("{kind!r}{biases}", kind=found.config.get("model_type"), biases=biases),
            remedy=tr("use --output_type huggingface, which any decoder can be written to"),
        )
    require_named_llama(found.config, found.path)
    return found.shape


def require_rotary_numbers(found: ModelConfig) -> None:
    """Raise ``LayoutError`` where a GGUF file holds rotary factors as a tensor, for layouts that
    need the numbers of which they were made.
    """
    kept = found.gguf
    if kept is None or not kept.is_described or kept.rotary_factors is None:
        return
    raise LayoutError(
        tr(
            "the base says its rotary scaling as a tensor of factors, for which "
            "config.json and params.json have no place"
        ),
        file=found.path,
        tensor=kept.rotary_factors.origin,
        expected=tr("a base without such a tensor"),
        found=tr("{rows} factors", rows=kept.rotary_factors.rows),
        remedy=tr("write --output_type gguf, or give the Hugging Face folder of the base"),
    )


def require_meta_model(found: ModelConfig, tokenizer: Tokenizer) -> LlamaShape:
    """The shape of a model that Meta's layout can hold, with its kind of tokenizer.

    Raises ``LayoutError`` for a model that is no LLaMA, ``UsageError`` for a tokenizer that is
    neither SentencePiece's nor byte-level.
    """
    shape = require_llama_shape(found, LLAMA_ONLY["pth"])
    if not (isinstance(tokenizer, OpaqueTokenizer) and is_byte_level(tokenizer)):
        require_sentencepiece(tokenizer, LLAMA_ONLY["pth"])
    return shape


def build_meta_documents(
    found: ModelConfig, tokenizer: Tokenizer, vocab_size: int
) -> dict[str, bytes]:
    """``params.json``, ``tokenizer.model``, and ``added_tokens.json`` where tokens come on top of
    its pieces, as llama.cpp's legacy converter reads them; nothing else of Hugging Face's, which
    would mislead that converter.

    Llama 3's ``tokenizer.model`` is tiktoken's, made from ``tokenizer.json``. Raises
    ``LayoutError`` for what ``params.json`` cannot say, ``VocabularyError`` for tokens that Meta's
    code does not have.
    """
    shape = require_meta_model(found, tokenizer)
    params = dump_json(build_params_json(found.config, shape, vocab_size, found.path))
    if isinstance(tokenizer, OpaqueTokenizer):
        return {PARAMS_NAME: params, MODEL_NAME: recover_tiktoken_file(tokenizer, vocab_size)}
    understood = require_sentencepiece(tokenizer, LLAMA_ONLY["pth"])
    documents = {PARAMS_NAME: params, MODEL_NAME: understood.vocabulary}
    if understood.added_tokens:
        documents[ADDED_TOKENS_NAME] = dump_json(understood.added_tokens)
    return documents
