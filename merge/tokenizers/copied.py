"""Tokenizers that are taken as they are: every file byte for byte, and how many tokens there are.

For models that are no LLaMA, and for LLaMA with a ``tokenizer.json`` alone. Nothing in the files is
understood but the ids, so that nothing can be changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FormatError, UsageError
from ..storage.folder import Folder
from ..untrusted.strict_json import read_json
from .chat_templates import CHAT_TEMPLATE_NAME, read_templates
from .fast_tokenizer import FAST_NAME, added_entries
from .huggingface import TokenizerFolder
from .special_tokens import (
    ADDED_TOKENS_NAME,
    CONFIG_NAME,
    MODEL_NAME,
    SPECIAL_TOKENS_NAME,
    content_of,
)

# A folder has a tokenizer if it has one of these.
_VOCABULARIES = (FAST_NAME, MODEL_NAME, "vocab.json", "vocab.txt", "tekken.json", "*.tiktoken")
_BESIDE = (
    CONFIG_NAME,
    SPECIAL_TOKENS_NAME,
    ADDED_TOKENS_NAME,
    "merges.txt",
    CHAT_TEMPLATE_NAME,
    "chat_template.json",
)


@dataclass(frozen=True)
class OpaqueTokenizer:
    """The files of a tokenizer, by name, as they are.

    ``n_tokens`` is one more than the largest id in them; None where no file tells ids.
    ``token_ids`` are those of the end of text and of padding, as configurations name them, where
    files tell them.
    """

    path: Path
    contents: dict[str, bytes] = field(repr=False)
    n_tokens: int | None
    token_ids: dict[str, int] = field(default_factory=dict)

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        config = json.loads(self.contents.get(CONFIG_NAME, b"{}"))
        return CHAT_TEMPLATE_NAME in self.contents or bool(config.get("chat_template"))

    @property
    def vocabulary(self) -> bytes:
        """The file that holds the vocabulary, by which the tokenizer is known."""
        return next(iter(self.contents.values()))


Tokenizer = TokenizerFolder | OpaqueTokenizer
"""LLaMA's own is understood, every other is copied."""


def require_sentencepiece(tokenizer: Tokenizer, purpose: str) -> TokenizerFolder:
    """Raise ``UsageError`` for a tokenizer that can only be copied; ``purpose`` needs more."""
    if isinstance(tokenizer, TokenizerFolder):
        return tokenizer
    raise UsageError(
        f"{purpose} needs LLaMA's own kind of tokenizer",
        file=tokenizer.path,
        expected=MODEL_NAME,
        found=", ".join(tokenizer.contents),
        remedy=f"name a folder with the model's {MODEL_NAME} with --tokenizer; if it has none, "
        "only --output_type huggingface with the tokenizer as it is can be made",
    )


def has_tokenizer(folder: Folder) -> bool:
    """Whether a folder holds a tokenizer of any kind; a file is one."""
    return folder.path.is_file() or bool(_matching(folder, _VOCABULARIES))


def read_copied(source: Folder) -> OpaqueTokenizer:
    """Read every file of a tokenizer's folder, or one file alone.

    Where ``tokenizer_config.json`` names code of its own, the folder's Python files come along.
    Raises ``FormatError`` when there is no tokenizer and for damaged JSON.
    """
    path = source.path
    if path.is_file():
        folder, found = path.parent, [path]
    else:
        folder, found = path, _matching(source, (*_VOCABULARIES, *_BESIDE))
        if not has_tokenizer(source):
            raise FormatError(
                "The folder holds no tokenizer.",
                file=path,
                expected=", ".join(_VOCABULARIES[:3]),
                remedy="copy the tokenizer's files into it, or name their folder with --tokenizer",
            )
        if CONFIG_NAME in source.files and "auto_map" in source.read_json(CONFIG_NAME):
            found += source.matching("*.py")
    contents = {file.name: file.read_bytes() for file in found}
    if path.is_dir():
        contents = _with_templates(path, contents)
    return OpaqueTokenizer(path, contents, _count(folder, contents), _token_ids(folder, contents))


def _with_templates(folder: Path, contents: dict[str, bytes]) -> dict[str, bytes]:
    """The files, with templates that transformers reads from nowhere, or that lie in a folder of
    their own: one as ``chat_template.jinja``, several in ``tokenizer_config.json``.
    """
    config = read_json(folder / CONFIG_NAME) if CONFIG_NAME in contents else {}
    templates = read_templates(folder, config)
    if isinstance(templates, list) and templates != config.get("chat_template"):
        listed = json.dumps({**config, "chat_template": templates}, ensure_ascii=False, indent=2)
        contents = {**contents, CONFIG_NAME: f"{listed}\n".encode()}
        contents.pop(CHAT_TEMPLATE_NAME, None)  # it would hide the others
    elif isinstance(templates, str) and templates != config.get("chat_template"):
        contents = {**contents, CHAT_TEMPLATE_NAME: templates.encode("utf-8")}
    return contents


def _matching(folder: Folder, patterns: Iterable[str]) -> list[Path]:
    return [path for path in folder.matching(*patterns) if path.is_file()]


def _count(folder: Path, contents: Mapping[str, bytes]) -> int | None:
    """One more than the largest id that any file tells."""
    largest = max(_ids(folder, contents), default=-1)
    return None if largest < 0 else largest + 1


def _token_ids(folder: Path, contents: Mapping[str, bytes]) -> dict[str, int]:
    """The ids of eos and pad."""
    files = {name: read_json(folder / name) for name in contents if name.endswith(".json")}
    config = files.get(CONFIG_NAME, {})
    fast = files.get(FAST_NAME, {})
    vocab = (fast.get("model") or {}).get("vocab")
    ids: dict[str, Any] = dict(vocab) if isinstance(vocab, dict) else {}
    ids |= files.get("vocab.json", {}) if not ids else {}
    ids |= files.get(ADDED_TOKENS_NAME, {})
    decoder = config.get("added_tokens_decoder") or {}
    ids |= {content_of(token): int(n) for n, token in decoder.items() if str(n).isdigit()}
    ids |= {entry["content"]: entry["id"] for entry in added_entries(fast, folder / FAST_NAME)}
    special = files.get(SPECIAL_TOKENS_NAME, {})
    found = {}
    for name in ("eos_token", "pad_token"):
        content = content_of(config.get(name)) or content_of(special.get(name))
        if type(id_ := ids.get(content)) is int:
            found[f"{name}_id"] = id_
    return found


def _ids(folder: Path, contents: Mapping[str, bytes]) -> Iterator[int]:
    """The largest id of each part of a tokenizer."""
    files = {name: read_json(folder / name) for name in contents if name.endswith(".json")}
    fast = files.get(FAST_NAME, {})
    yield from _largest((fast.get("model") or {}).get("vocab"))
    yield from _largest([token.get("id") for token in fast.get("added_tokens") or ()])
    yield from _largest(files.get("vocab.json"))
    yield from _largest(files.get(ADDED_TOKENS_NAME))
    decoder = files.get(CONFIG_NAME, {}).get("added_tokens_decoder") or {}
    yield from _largest([int(id_) for id_ in decoder if str(id_).isdigit()])
    if MODEL_NAME in contents and not fast:
        yield _pieces(folder / MODEL_NAME, contents[MODEL_NAME]) - 1
    if "vocab.txt" in contents:
        yield len(contents["vocab.txt"].splitlines()) - 1


def _largest(ids: Any) -> Iterator[int]:
    """Of ids by tokens, of a list of ids, or of a list of ``[token, score]``."""
    if isinstance(ids, list) and any(isinstance(entry, list) for entry in ids):
        yield len(ids) - 1
    elif isinstance(ids, (dict, list)):
        values = ids.values() if isinstance(ids, dict) else ids
        yield from [max(numbers)] if (numbers := [v for v in values if type(v) is int]) else []


def _pieces(file: Path, content: bytes) -> int:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise FormatError(
            "SentencePiece cannot read the tokenizer: no SentencePiece model, or a damaged one.",
            file=file,
            found=f"{len(content)} bytes; {error}",
            remedy="fetch it again",
        ) from error
    return model.get_piece_size()
