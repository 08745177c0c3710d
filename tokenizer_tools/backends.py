"""One tokenizer, opened by SentencePiece, tiktoken or transformers, behind one interface."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checksums import known_tokenizers as known
from merge.errors import FormatError, UsageError
from merge.messages import tr
from merge.tokenizers import sentencepiece_model as spm
from merge.tokenizers.byte_level import parse_spelling
from merge.tokenizers.file_names import MODEL_NAME
from merge.tokenizers.tiktoken_model import N_RANKS

from .llama3_base import (
    Llama3Tokenizer,
    format_token,
    is_llama3,
    is_text,
    list_readable_tokens,
    read_llama3,
)

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class BackendTokenizer:
    """What a comparison needs to know of a tokenizer.

    ``encode`` takes lines and returns their ids without bos and eos. ``pieces`` are indexed by id.
    ``known_as`` is the published tokenizer whose bytes these are.
    """

    name: str
    library: str
    path: Path
    known_as: str | None
    pieces: Sequence[str]
    fallback_ids: frozenset[int]
    unknown_ids: frozenset[int]
    encode: Callable[[list[str]], list[list[int]]]


def open_tokenizer(path: Path, name: str) -> BackendTokenizer:
    """Open a tokenizer with the library that its model was made with: Llama 3's with tiktoken."""
    if is_llama3(path):
        return open_llama3(read_llama3(path), name)
    return open_sentencepiece(path, name)


def open_llama3(tokenizer: Llama3Tokenizer, name: str) -> BackendTokenizer:
    """Open Llama 3's tokenizer, or one grown from it, with tiktoken.

    Fallback are tokens that hold part of a character.
    """
    import tiktoken

    encode = tokenizer.load_encoding().encode_ordinary
    return BackendTokenizer(
        name=name,
        library=f"tiktoken {tiktoken.__version__}",
        path=tokenizer.path,
        known_as="Llama 3" if len(tokenizer.ranks) == N_RANKS else None,
        pieces=list_readable_tokens(tokenizer),
        fallback_ids=frozenset(i for token, i in tokenizer.ranks.items() if not is_text(token)),
        unknown_ids=frozenset(),
        encode=lambda lines: [encode(line) for line in lines],
    )


def open_sentencepiece(path: Path, name: str) -> BackendTokenizer:
    """Open a SentencePiece model, or a folder's ``tokenizer.model``, with SentencePiece."""
    processor = spm.load_processor(spm.serialize_model(spm.read_model(path)))
    pieces = spm.list_pieces(processor)
    return BackendTokenizer(
        name=name,
        library="sentencepiece",
        path=path,
        known_as=_recognize(path),
        pieces=pieces,
        fallback_ids=frozenset(i for i in range(len(pieces)) if processor.is_byte(i)),
        unknown_ids=frozenset({processor.unk_id()}),
        encode=processor.encode,
    )


def open_transformers(path: Path, name: str, trust_remote_code: bool = False) -> BackendTokenizer:
    """Open the same with ``AutoTokenizer``; a file alone as ``LlamaTokenizer``.

    ``trust_remote_code`` runs the class that the folder brings along, which is code.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            tr("transformers is not installed"), found=error, remedy=tr("pip install transformers")
        ) from None
    transformers.utils.logging.set_verbosity_error()
    loaded = _load(transformers.AutoTokenizer, path, trust_remote_code)
    pieces = loaded.convert_ids_to_tokens(list(range(len(loaded))))
    fallback = {i for i, p in enumerate(pieces) if _BYTE_PIECE.fullmatch(p or "")}
    if is_llama3(path):
        # Special tokens have no other characters.
        tokens = [parse_spelling(piece) for piece in pieces]
        fallback = {i for i, token in enumerate(tokens) if token and not is_text(token)}
        pieces = [p if t is None else format_token(t) for p, t in zip(pieces, tokens, strict=True)]
    unknown = loaded.unk_token_id
    return BackendTokenizer(
        name=f"{name} (transformers)",
        library=f"transformers {transformers.__version__}",
        path=path,
        known_as=_recognize(path),
        pieces=pieces,
        fallback_ids=frozenset(fallback),
        unknown_ids=frozenset() if unknown is None else frozenset({unknown}),
        encode=lambda lines: loaded(lines, add_special_tokens=False)["input_ids"],
    )


def shorten_names(paths: Sequence[Path]) -> list[str]:
    """Return a short and different name for each path: as few of its last parts as will do.

    >>> shorten_names([Path("a/x/tokenizer.model"), Path("b/x"), Path("c/new.model")])
    ['a/x', 'b/x', 'new']
    """
    parts = [_select_naming_parts(path) for path in paths]
    result = []
    for mine in parts:
        length = 1
        while length < len(mine) and sum(p[-length:] == mine[-length:] for p in parts) > 1:
            length += 1
        result.append("/".join(mine[-length:]))
    return [n if result.count(n) == 1 else f"{n} #{i}" for i, n in enumerate(result, 1)]


def _select_naming_parts(path: Path) -> tuple[str, ...]:
    if path.name == MODEL_NAME:
        path = path.absolute().parent if len(path.parts) == 1 else path.parent
    elif path.suffix == ".model":
        path = path.with_suffix("")
    return path.absolute().parts[1:] if path.name in {"", ".", ".."} else path.parts


def _load(auto: Any, path: Path, trust_remote_code: bool) -> Any:
    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        if path.is_dir():
            return auto.from_pretrained(str(path), **options)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file, content in _build_files(path).items():
                (folder / file).write_bytes(content)
            return auto.from_pretrained(str(folder), **options)
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(
            tr("transformers cannot load this tokenizer"),
            file=path,
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            remedy=tr("a folder needs tokenizer_config.json; or name its tokenizer.model"),
        ) from error


def _build_files(path: Path) -> dict[str, bytes]:
    """The files of a folder in which transformers finds the tokenizer of one file."""
    if is_llama3(path):
        return read_llama3(path).documents
    config = json.dumps({"tokenizer_class": "LlamaTokenizer"})
    return {MODEL_NAME: path.read_bytes(), "tokenizer_config.json": config.encode("utf-8")}


def _recognize(path: Path) -> str | None:
    if is_llama3(path):
        return None
    found = known.recognize_file(spm.find_model_file(path))
    return found.name if found else None
