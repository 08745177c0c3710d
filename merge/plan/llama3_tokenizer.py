"""Which ``tokenizer.model`` is whose: SentencePiece's of LLaMA 1 and 2, tiktoken's of Llama 3."""

from __future__ import annotations

from pathlib import Path

from ..errors import VocabularyError
from ..layouts.config import CONFIG_NAME, get_rope_scaling
from ..layouts.model_folder import ModelFolder
from ..layouts.params import read_params
from ..messages import tr
from ..tokenizers.byte_level import spell_bytes
from ..tokenizers.file_names import MODEL_NAME, TOKENIZER_JSON_NAME
from ..tokenizers.llama3_tokenizer import build_llama3_documents
from ..tokenizers.opaque_tokenizer import (
    OpaqueTokenizer,
    collect_tokenizer_files,
    describe_tokenizer,
    has_tokenizer,
    read_opaque_tokenizer,
)
from ..tokenizers.tiktoken_model import (
    Llama3Release,
    is_tiktoken_file,
    map_special_tokens,
    read_ranks,
    require_llama3,
)
from ..untrusted.strict_json import parse_json

_MODEL_MAX_LENGTH: dict[Llama3Release, int] = {"3": 8192, "3.1": 131072}


def find_tokenizer_model(folder: ModelFolder) -> Path | None:
    """The ``tokenizer.model`` of the model in ``folder``: there, or nowhere.

    Meta keeps one for all sizes, beside their folders.
    """
    if MODEL_NAME in folder.files:
        return folder.files[MODEL_NAME]
    shared = folder.path.resolve().parent / MODEL_NAME
    return shared if folder.is_meta and shared.is_file() else None


def find_tiktoken(folder: ModelFolder) -> Path | None:
    """The ``tokenizer.model`` of the model in ``folder``, or that file, if it is tiktoken's."""
    file = folder.path if folder.path.is_file() else find_tokenizer_model(folder)
    return file if file is not None and is_tiktoken_file(file) else None


def holds_tokenizer(folder: ModelFolder) -> bool:
    """Whether a folder, or that above a size of Meta's, holds a tokenizer of any kind."""
    return has_tokenizer(folder) or find_tiktoken(folder) is not None


def read_copied_tokenizer(folder: ModelFolder, model: ModelFolder) -> OpaqueTokenizer:
    """A tokenizer whose files go along as they are, or are made from Llama 3's tiktoken file.

    ``model`` is the model that tells the release, by which special tokens are named. Raises
    ``VocabularyError`` for another model's tiktoken file, and where a ``tokenizer.json`` beside it
    gives other ids.
    """
    file = find_tiktoken(folder)
    if file is None:
        return read_opaque_tokenizer(folder)
    ranks = read_ranks(file)
    require_llama3(ranks, file)
    if folder.path.is_dir() and TOKENIZER_JSON_NAME in folder.files:
        found = read_opaque_tokenizer(folder)
        _require_same_ranks(found, ranks, file)
        return found
    release = _find_release(model)
    made = build_llama3_documents(ranks, map_special_tokens(release), _MODEL_MAX_LENGTH[release])
    beside = collect_tokenizer_files(folder)
    beside.pop(file.name, None)
    return describe_tokenizer(folder.path, {**made, **beside})


def _find_release(model: ModelFolder) -> Llama3Release:
    """Llama 3.1 and later scale their rotary positions."""
    if model.is_meta:
        return "3.1" if read_params(model).get("use_scaled_rope") else "3"
    scaling = get_rope_scaling(model.config) if CONFIG_NAME in model.files else None
    return "3.1" if scaling and scaling.get("type") == "llama3" else "3"


def _require_same_ranks(found: OpaqueTokenizer, ranks: dict[bytes, int], file: Path) -> None:
    path = file.with_name(TOKENIZER_JSON_NAME)
    fast = parse_json(found.contents[TOKENIZER_JSON_NAME], path)
    model = fast.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    for token, rank in ranks.items():
        theirs = vocab.get(spell_bytes(token)) if isinstance(vocab, dict) else None
        if theirs != rank:
            raise VocabularyError(
                tr("tokenizer.json and tokenizer.model hold different vocabularies"),
                file=path,
                expected=tr(
                    "{spell_bytes!r} as token {rank}, as in {file}",
                    spell_bytes=spell_bytes(token),
                    rank=rank,
                    file=file,
                ),
                found=tr("token {theirs}", theirs=theirs)
                if theirs is not None
                else tr("no such token"),
                remedy=tr(
                    "take both from the same place, or remove the one that is another model's"
                ),
            )
