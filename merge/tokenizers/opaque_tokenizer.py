"""Tokenizers that are copied: every file byte for byte, and how many tokens there are.

For models other than LLaMA, and for LLaMA with a ``tokenizer.json`` alone. Only the ids in the
files are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FormatError, UsageError
from ..messages import tr
from ..storage.folder import Folder
from ..untrusted.strict_json import dump_json, parse_json, read_json
from .chat_templates import read_templates
from .embedded_tokenizer import EmbeddedTokenizer
from .file_names import (
    ADDED_TOKENS_NAME,
    CHAT_TEMPLATE_NAME,
    MODEL_NAME,
    SPECIAL_TOKENS_NAME,
    TEMPLATE_NAMES,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_JSON_NAME,
)
from .sentencepiece_model import load_processor
from .sentencepiece_tokenizer import SentencePieceTokenizer
from .special_tokens import get_content
from .tokenizer_json import list_tokens, read_added_tokens

# A folder has a tokenizer if it has one of these.
_VOCABULARIES = (
    TOKENIZER_JSON_NAME,
    MODEL_NAME,
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "*.tiktoken",
)
_BESIDE = (
    TOKENIZER_CONFIG_NAME,
    SPECIAL_TOKENS_NAME,
    ADDED_TOKENS_NAME,
    "merges.txt",
    *TEMPLATE_NAMES,
)


@dataclass(frozen=True)
class OpaqueTokenizer:
    """The files of a tokenizer, by name, as they are.

    ``n_tokens`` is one more than the largest id in them; None where no file has ids.
    ``token_ids`` are those of the beginning and end of text and of padding, as configurations name
    them, where files have them.
    """

    path: Path
    contents: dict[str, bytes] = field(repr=False)
    n_tokens: int | None
    token_ids: dict[str, int] = field(default_factory=dict)

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        config = json.loads(self.contents.get(TOKENIZER_CONFIG_NAME, b"{}"))
        return CHAT_TEMPLATE_NAME in self.contents or bool(config.get("chat_template"))

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token by id, as ``tokenizer.json`` spells it; empty for an id without one.

        Raises ``FormatError`` where no such file lists tokens.
        """
        folder = self.path if self.path.is_dir() else self.path.parent
        fast = json.loads(self.contents.get(TOKENIZER_JSON_NAME, b"{}"))
        listed = list_tokens(fast, folder / TOKENIZER_JSON_NAME)
        return tuple(listed.get(id_, "") for id_ in range(max(listed, default=-1) + 1))

    @property
    def vocabulary(self) -> bytes:
        """The file that holds the vocabulary, by which the tokenizer is known."""
        return next(iter(self.contents.values()))


Tokenizer = SentencePieceTokenizer | OpaqueTokenizer | EmbeddedTokenizer
"""LLaMA's own is read, every other is copied."""


def require_sentencepiece(tokenizer: Tokenizer, purpose: str) -> SentencePieceTokenizer:
    """Raise ``UsageError`` for a tokenizer that can only be copied; ``purpose`` needs more."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer
    in_files = require_files(tokenizer, purpose)
    raise UsageError(
        tr("{purpose} needs LLaMA's own kind of tokenizer", purpose=purpose),
        file=tokenizer.path,
        expected=MODEL_NAME,
        found=", ".join(in_files.contents),
        remedy=tr(
            "name a folder with the model's {model_name} with --tokenizer, or a "
            "base in GGUF itself to keep its tokenizer; if there is neither, "
            "only --output_type huggingface with the tokenizer as it is can be "
            "made",
            model_name=MODEL_NAME,
        ),
    )


def require_files(tokenizer: Tokenizer, purpose: str) -> SentencePieceTokenizer | OpaqueTokenizer:
    """Raise ``UsageError`` for the tokenizer of a GGUF file; ``purpose`` needs one in files."""
    if not isinstance(tokenizer, EmbeddedTokenizer):
        return tokenizer
    raise UsageError(
        tr(
            "{purpose} needs a tokenizer in files, which cannot be made of that in a GGUF file",
            purpose=purpose,
        ),
        file=tokenizer.path,
        expected=tr(
            "{model_name} or {tokenizer_json_name}",
            model_name=MODEL_NAME,
            tokenizer_json_name=TOKENIZER_JSON_NAME,
        ),
        found=tr("{n_tokens} tokens in the metadata", n_tokens=tokenizer.n_tokens),
        remedy=tr(
            "name a folder with the model's tokenizer with --tokenizer, or write --output_type gguf"
        ),
    )


def has_tokenizer(folder: Folder) -> bool:
    """Whether a folder holds a tokenizer of any kind; a file is one."""
    return folder.path.is_file() or bool(_find_files(folder, _VOCABULARIES))


def read_opaque_tokenizer(source: Folder) -> OpaqueTokenizer:
    """Read every file of a tokenizer's folder, or one file alone.

    Where ``tokenizer_config.json`` names code of its own, the folder's Python files come along.
    Raises ``FormatError`` when there is no tokenizer and for damaged JSON.
    """
    if not source.path.is_file() and not has_tokenizer(source):
        raise FormatError(
            tr("the folder holds no tokenizer"),
            file=source.path,
            expected=", ".join(_VOCABULARIES[:3]),
            remedy=tr("copy the tokenizer's files into it, or name their folder with --tokenizer"),
        )
    return describe_tokenizer(source.path, collect_tokenizer_files(source))


def list_tokenizer_files(source: Folder) -> list[Path]:
    """The files of a folder that say what its tokenizer is; code of its own is not among them."""
    return _find_files(source, (*_VOCABULARIES, *_BESIDE))


def collect_tokenizer_files(source: Folder) -> dict[str, bytes]:
    """Every file of a tokenizer's folder by name, or one file alone."""
    path = source.path
    if path.is_file():
        return {path.name: path.read_bytes()}
    found = list_tokenizer_files(source)
    if TOKENIZER_CONFIG_NAME in source.files and "auto_map" in source.read_json(
        TOKENIZER_CONFIG_NAME
    ):
        found += source.matching("*.py")
    return _add_templates(path, {file.name: file.read_bytes() for file in found})


def describe_tokenizer(path: Path, contents: dict[str, bytes]) -> OpaqueTokenizer:
    """The tokenizer whose files, of the folder ``path`` or of that file alone, are ``contents``."""
    folder = path.parent if path.is_file() else path
    files = {n: parse_json(contents[n], folder / n) for n in contents if n.endswith(".json")}
    largest = max(_list_largest_ids(folder, contents, files), default=-1)
    n_tokens = None if largest < 0 else largest + 1
    return OpaqueTokenizer(path, contents, n_tokens, _find_token_ids(folder, files))


def _add_templates(folder: Path, contents: dict[str, bytes]) -> dict[str, bytes]:
    """The files, with templates that transformers reads from nowhere, or that lie in a folder of
    their own: one as ``chat_template.jinja``, several in ``tokenizer_config.json``.
    """
    config = read_json(folder / TOKENIZER_CONFIG_NAME) if TOKENIZER_CONFIG_NAME in contents else {}
    templates = read_templates(folder, config)
    if isinstance(templates, list) and templates != config.get("chat_template"):
        listed = dump_json({**config, "chat_template": templates})
        contents = {**contents, TOKENIZER_CONFIG_NAME: listed}
        contents.pop(CHAT_TEMPLATE_NAME, None)  # it would hide the others
    elif isinstance(templates, str) and templates != config.get("chat_template"):
        contents = {**contents, CHAT_TEMPLATE_NAME: templates.encode("utf-8")}
    return contents


def _find_files(folder: Folder, patterns: Iterable[str]) -> list[Path]:
    return [path for path in folder.matching(*patterns) if path.is_file()]


def _find_token_ids(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """The ids of bos, eos and pad, by the JSON ``files``."""
    config = files.get(TOKENIZER_CONFIG_NAME, {})
    fast = files.get(TOKENIZER_JSON_NAME, {})
    vocab = (fast.get("model") or {}).get("vocab")
    ids: dict[str, Any] = dict(vocab) if isinstance(vocab, dict) else {}
    ids |= files.get("vocab.json", {}) if not ids else {}
    ids |= files.get(ADDED_TOKENS_NAME, {})
    decoder = config.get("added_tokens_decoder") or {}
    ids |= {get_content(token): int(n) for n, token in decoder.items() if str(n).isdigit()}
    ids |= {
        entry["content"]: entry["id"]
        for entry in read_added_tokens(fast, folder / TOKENIZER_JSON_NAME)
    }
    special = files.get(SPECIAL_TOKENS_NAME, {})
    found = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        content = get_content(config.get(name)) or get_content(special.get(name))
        if type(id_ := ids.get(content)) is int:
            found[f"{name}_id"] = id_
    return found


def _list_largest_ids(
    folder: Path, contents: Mapping[str, bytes], files: Mapping[str, Mapping[str, Any]]
) -> Iterator[int]:
    """The largest id of each part of a tokenizer; ``files`` are the JSON ones among its files."""
    fast = files.get(TOKENIZER_JSON_NAME, {})
    yield from _find_largest((fast.get("model") or {}).get("vocab"))
    yield from _find_largest([token.get("id") for token in fast.get("added_tokens") or ()])
    yield from _find_largest(files.get("vocab.json"))
    yield from _find_largest(files.get(ADDED_TOKENS_NAME))
    decoder = files.get(TOKENIZER_CONFIG_NAME, {}).get("added_tokens_decoder") or {}
    yield from _find_largest([int(id_) for id_ in decoder if str(id_).isdigit()])
    if MODEL_NAME in contents and not fast:
        yield load_processor(contents[MODEL_NAME], folder / MODEL_NAME).get_piece_size() - 1
    if "vocab.txt" in contents:
        yield len(contents["vocab.txt"].splitlines()) - 1


def _find_largest(ids: Any) -> Iterator[int]:
    """Of ids by tokens, of a list of ids, or of a list of ``[token, score]``."""
    if isinstance(ids, list) and any(isinstance(entry, list) for entry in ids):
        yield len(ids) - 1
    elif isinstance(ids, (dict, list)):
        values = ids.values() if isinstance(ids, dict) else ids
        yield from [max(numbers)] if (numbers := [v for v in values if type(v) is int]) else []
