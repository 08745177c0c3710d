"""The tokenizer files of a Hugging Face folder: read, checked, and made ready for a merged model.

``tokenizer.model`` is the tokenizer; the JSON files beside it, or of the folder of an adapter that
was trained with it, only say which of its pieces are special and what was added to it. Of
``tokenizer.json`` the added tokens are read; it is never written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..messages import tr
from ..untrusted.placeholders import refuse_placeholder
from ..untrusted.strict_json import dump_json, parse_json, read_small
from .chat_templates import read_templates
from .file_names import (
    ADDED_TOKENS_NAME,
    CHAT_TEMPLATE_NAME,
    MODEL_NAME,
    SPECIAL_TOKENS_NAME,
    TEMPLATE_NAMES,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_JSON_NAME,
)
from .sentencepiece_model import list_pieces, load_processor
from .special_tokens import (
    ADDITIONAL_SPECIAL_TOKENS,
    SPECIAL_NAMES,
    SpecialToken,
    collect_added_tokens,
    collect_more_special_tokens,
    collect_special_tokens,
    find_token,
    get_content,
)
from .tokenizer_json import derive_settings, read_added_tokens, require_same_pieces

# A vocabulary of 256,000 pieces has 5 MB.
_MOST_BYTES = 64 << 20
_DETAILS = (TOKENIZER_CONFIG_NAME, SPECIAL_TOKENS_NAME, ADDED_TOKENS_NAME, TOKENIZER_JSON_NAME)

CLASS_FILE_NAME = "sentencepiece_llama.py"
_AUTO_MAP = {"AutoTokenizer": ["sentencepiece_llama.LlamaTokenizer", None]}
"""How ``AutoTokenizer`` finds the class in ``CLASS_FILE_NAME``; ``None``: there is no fast one."""

_LLAMA_CLASSES = frozenset(
    {
        "LLaMATokenizer",
        "LlamaTokenizerFast",
        "PreTrainedTokenizerFast",
        "TokenizersBackend",
    }
)
"""Names under which the LLaMA tokenizer was saved by one release and is unknown to, or needs a
``tokenizer.json`` in, another. ``LlamaTokenizer`` is the name that all of them know."""


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """What a folder with a ``tokenizer.model`` says about its tokens; see ``read_tokenizer``.

    ``n_pieces`` is how many pieces ``tokenizer.model`` has. ``added_tokens`` maps what comes on top
    of them to the ids that follow, in that order. ``bos_token``, ``eos_token`` and ``unk_token``
    are ``None`` only if neither the JSON files nor the model name one.
    """

    path: Path
    n_pieces: int
    added_tokens: dict[str, int]
    bos_token: SpecialToken | None
    eos_token: SpecialToken | None
    unk_token: SpecialToken | None
    pad_token: SpecialToken | None
    contents: dict[str, bytes] = field(repr=False)
    """The files by name. What ``tokenizer.json`` and further files of templates say is in
    ``tokenizer_config.json`` and ``chat_template.jinja``; the others are as they are."""
    special_tokens: dict[str, Any] = field(repr=False)
    """By ``SPECIAL_NAMES``, as the JSON files have it: text or an ``AddedToken`` object. What the
    model supplied is filled in."""
    more_special_tokens: list[Any] = field(repr=False)
    """``additional_special_tokens``, in transformers 5 ``extra_special_tokens``; the same kinds."""

    @property
    def n_tokens(self) -> int:
        """How many embedding rows the tokenizer needs: pieces and added tokens."""
        return self.n_pieces + len(self.added_tokens)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token by id: pieces, then added tokens. Read anew each time: 6 MiB for 50,000."""
        processor = load_processor(self.vocabulary, self.path / MODEL_NAME)
        return (*list_pieces(processor), *self.added_tokens)

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        config = _parse_document(self.contents, self.path, TOKENIZER_CONFIG_NAME)
        return CHAT_TEMPLATE_NAME in self.contents or bool(config.get("chat_template"))

    @property
    def vocabulary(self) -> bytes:
        """The file that holds the vocabulary, by which the tokenizer is known."""
        return self.contents[MODEL_NAME]


def read_tokenizer(path: Path, details: Path | None = None) -> SentencePieceTokenizer:
    """Read a folder with a ``tokenizer.model``, or such a file alone, without anything beside it.

    ``details`` is another folder that everything but ``tokenizer.model`` is read from: an
    adapter's, which was trained with that vocabulary. A template alone there joins what else is in
    ``path``. The files beside ``tokenizer.model`` may be missing. Where ``tokenizer_config.json``
    and ``special_tokens_map.json`` disagree about a special token, the latter wins unless it is
    empty there, as in transformers 4. Missing or empty bos, eos and unk are the model's own; a
    missing pad is its last piece if that is one of ``PAD_PIECES``.

    Raises ``FormatError`` for a missing or unreadable file, ``VocabularyError`` for added tokens
    without consecutive ids and for special tokens that are no tokens.
    """
    contents = _read_contents(path)
    model_file = path if path.is_file() else path / MODEL_NAME
    refuse_placeholder(model_file, contents[MODEL_NAME])
    model = load_processor(contents[MODEL_NAME], model_file)
    if details is not None and has_details(details):
        contents = {MODEL_NAME: contents[MODEL_NAME], **_read_details(details)}
    described = details if details is not None and has_details(details) else path
    folder = described if described.is_dir() else described.parent
    config = _parse_document(contents, folder, TOKENIZER_CONFIG_NAME)
    fast = _parse_document(contents, folder, TOKENIZER_JSON_NAME)
    entries = read_added_tokens(fast, folder / TOKENIZER_JSON_NAME)
    if fast:
        require_same_pieces(fast, folder / TOKENIZER_JSON_NAME, model, model_file)
    special_map = _parse_document(contents, folder, SPECIAL_TOKENS_NAME)
    listed = _parse_document(contents, folder, ADDED_TOKENS_NAME)
    added = collect_added_tokens(listed, config, entries, model, folder)
    if fast:
        config = _add_tokenizer_json(config, fast, entries)
    folders = (one for one in (details, path) if one is not None and one.is_dir())
    if (template_folder := next(folders, None)) is not None:
        config, contents = _add_templates(template_folder, config, contents)
    if config != _parse_document(contents, folder, TOKENIZER_CONFIG_NAME):
        contents[TOKENIZER_CONFIG_NAME] = dump_json(config)
    contents.pop(TOKENIZER_JSON_NAME, None)
    special = collect_special_tokens(config, special_map, model)
    more = collect_more_special_tokens(config, special_map)
    tokens = {name: find_token(name, special[name], model, added, folder) for name in special}
    for value in more:
        find_token(ADDITIONAL_SPECIAL_TOKENS, value, model, added, folder)
    return SentencePieceTokenizer(
        path=details or path,
        n_pieces=model.get_piece_size(),
        added_tokens=added,
        bos_token=tokens.get("bos_token"),
        eos_token=tokens.get("eos_token"),
        unk_token=tokens.get("unk_token"),
        pad_token=tokens.get("pad_token"),
        contents=contents,
        special_tokens=special,
        more_special_tokens=more,
    )


def build_documents(tokenizer: SentencePieceTokenizer) -> dict[str, bytes]:
    """Return the tokenizer files of a merged Hugging Face model, by name.

    ``tokenizer.model`` byte for byte; the JSON normalized so that both transformers 4 and 5 read
    the same from it; and the class with which
    ``AutoTokenizer.from_pretrained(output_dir, trust_remote_code=True)`` gives SentencePiece's ids.
    """
    files = {
        MODEL_NAME: tokenizer.contents[MODEL_NAME],
        TOKENIZER_CONFIG_NAME: dump_json(_normalize_config(tokenizer)),
        SPECIAL_TOKENS_NAME: dump_json(_normalize_special_map(tokenizer)),
        CLASS_FILE_NAME: Path(__file__).with_name(CLASS_FILE_NAME).read_bytes(),
    }
    listed = _parse_document(tokenizer.contents, tokenizer.path, ADDED_TOKENS_NAME)
    if listed or tokenizer.added_tokens:  # llama.cpp's first converter reads no other list
        files[ADDED_TOKENS_NAME] = dump_json(listed | tokenizer.added_tokens)
    if CHAT_TEMPLATE_NAME in tokenizer.contents:
        files[CHAT_TEMPLATE_NAME] = tokenizer.contents[CHAT_TEMPLATE_NAME]
    return files


def _read_contents(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {MODEL_NAME: read_small(path, _MOST_BYTES)}
    if not (path / MODEL_NAME).is_file():
        raise FormatError(
            tr(
                "the folder holds no {model_name}, which is the tokenizer itself",
                model_name=MODEL_NAME,
            ),
            file=path / MODEL_NAME,
            found=tr("tokenizer.json, which cannot replace it")
            if (path / TOKENIZER_JSON_NAME).is_file()
            else None,
            remedy=tr(
                "copy the tokenizer.model that the adapter was trained with into the "
                "folder, or name a folder that has it with --tokenizer"
            ),
        )
    return {MODEL_NAME: read_small(path / MODEL_NAME, _MOST_BYTES), **_read_details(path)}


def _read_details(folder: Path) -> dict[str, bytes]:
    present = [name for name in _DETAILS if (folder / name).is_file()]
    return {name: read_small(folder / name, _MOST_BYTES) for name in present}


def has_details(folder: Path) -> bool:
    """Whether a folder says which tokens are special or were added."""
    return any((folder / name).is_file() for name in _DETAILS)


def has_template_file(folder: Path) -> bool:
    """Whether a folder has a file with a chat template alone."""
    return any((folder / name).is_file() for name in TEMPLATE_NAMES)


def _add_tokenizer_json(
    config: dict[str, Any], fast: dict[str, Any], entries: list[dict[str, Any]]
) -> dict[str, Any]:
    """``tokenizer_config.json`` as transformers 4 would have written it beside ``tokenizer.json``:
    with the added tokens and their flags, and how a text is framed and spaced.
    """
    decoder = {
        str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
        for entry in entries
    }
    configured = {key: value for key, value in config.items() if value is not None}
    decoder |= config.get("added_tokens_decoder") or {}
    return {
        **config,
        **derive_settings(fast),
        **configured,
        **({"added_tokens_decoder": decoder} if decoder else {}),
    }


def _add_templates(
    folder: Path, config: dict[str, Any], contents: dict[str, bytes]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """One template as a file of its own where it was one; several in ``tokenizer_config.json``."""
    templates = read_templates(folder, config)
    if isinstance(templates, str):
        if has_template_file(folder):
            contents = {**contents, CHAT_TEMPLATE_NAME: templates.encode("utf-8")}
    elif templates is not None and templates != config.get("chat_template"):
        config = {**config, "chat_template": templates}
    return config, contents


def _parse_document(contents: dict[str, bytes], folder: Path, name: str) -> dict[str, Any]:
    """Parse a JSON object; a file that is not there is an empty one."""
    if name not in contents:
        return {}
    return parse_json(contents[name], folder / name)


def _normalize_special_map(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    special: dict[str, Any] = dict(tokenizer.special_tokens)
    if tokenizer.more_special_tokens:
        special[ADDITIONAL_SPECIAL_TOKENS] = tokenizer.more_special_tokens
    return {name: _mark(value, False) for name, value in special.items()}


def _normalize_config(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    config = _parse_document(tokenizer.contents, tokenizer.path, TOKENIZER_CONFIG_NAME)
    kind = config.get("tokenizer_class")
    if not isinstance(kind, str) or kind in _LLAMA_CLASSES:
        config["tokenizer_class"] = "LlamaTokenizer"
    for name, default in {"add_bos_token": True, "add_eos_token": False, "legacy": True}.items():
        if config.get(name) is None:
            config[name] = default
    # "backend" tells what wrote the file.
    for name in (*SPECIAL_NAMES, ADDITIONAL_SPECIAL_TOKENS, "auto_map", "backend"):
        config.pop(name, None)
    if isinstance(config.get("extra_special_tokens"), list):  # transformers 5's name for the same
        del config["extra_special_tokens"]
    config |= {name: _mark(value, True) for name, value in tokenizer.special_tokens.items()}
    if config.get("added_tokens_decoder"):  # then transformers reads no other JSON file
        _complete_decoder(config["added_tokens_decoder"], tokenizer)
        if tokenizer.more_special_tokens:
            config[ADDITIONAL_SPECIAL_TOKENS] = _mark(tokenizer.more_special_tokens, True)
    if CHAT_TEMPLATE_NAME in tokenizer.contents:  # transformers before 4.49 reads it only from here
        config["chat_template"] = tokenizer.contents[CHAT_TEMPLATE_NAME].decode("utf-8")
    config["auto_map"] = _AUTO_MAP
    return config


def _complete_decoder(decoder: dict[str, Any], tokenizer: SentencePieceTokenizer) -> None:
    special = {get_content(value) for value in tokenizer.special_tokens.values()}
    special |= {get_content(value) for value in tokenizer.more_special_tokens}
    plain = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    for content, id_ in tokenizer.added_tokens.items():
        decoder.setdefault(str(id_), {"content": content, **plain, "special": content in special})


def _mark(value: Any, mark: bool) -> Any:
    """Write ``AddedToken`` objects as ``tokenizer_config.json`` marks them, or without the mark.

    transformers 4 fails over a mark in ``special_tokens_map.json`` and over none in the other.
    """
    if isinstance(value, list):
        return [_mark(item, mark) for item in value]
    if not isinstance(value, dict):
        return value
    bare = {key: item for key, item in value.items() if key != "__type"}
    return {"__type": "AddedToken", **bare} if mark else bare
