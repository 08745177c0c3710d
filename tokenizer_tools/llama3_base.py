"""Llama 3's tokenizer from Meta's tiktoken file or a Hugging Face folder, to count and to grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from merge.errors import UsageError, VocabularyError
from merge.layouts.model_folder import ModelFolder
from merge.messages import tr
from merge.plan.llama3_tokenizer import read_copied_tokenizer
from merge.storage.folder import Folder
from merge.tokenizers.file_names import MODEL_NAME, TOKENIZER_JSON_NAME
from merge.tokenizers.llama3_tokenizer import (
    build_tokenizer_json,
    dump_tokenizer_json,
    recover_ranks,
)
from merge.tokenizers.tiktoken_model import (
    N_RANKS,
    N_SPECIAL,
    SPLIT_PATTERN,
    is_tiktoken_file,
    read_ranks,
    require_llama3,
)
from merge.tokenizers.tokenizer_json import read_added_tokens
from merge.untrusted.strict_json import parse_json

if TYPE_CHECKING:
    import tiktoken

_REMEDY = tr("name Meta's tokenizer.model of Llama 3, or a Hugging Face folder of such a model")


@dataclass(frozen=True)
class Llama3Tokenizer:
    """``ranks`` are ids of bytes, ``special`` those of the special tokens.

    ``documents`` are the files of a Hugging Face folder by name.
    """

    path: Path
    ranks: dict[bytes, int] = field(repr=False)
    special: dict[str, int] = field(repr=False)
    documents: dict[str, bytes] = field(repr=False)

    @property
    def n_tokens(self) -> int:
        """How many ids there are, and so how many embedding rows the tokenizer needs."""
        return len(self.ranks) + len(self.special)

    def load_encoding(self) -> tiktoken.Encoding:
        """The tokenizer in the package ``tiktoken``, on which Meta's own code runs.

        Raises ``UsageError`` where that is not installed.
        """
        try:
            import tiktoken
        except ImportError as error:
            raise UsageError(
                tr("the package tiktoken is not installed, with which Llama 3 tokenizes"),
                found=str(error),
                remedy=tr("pip install tiktoken"),
            ) from None
        return tiktoken.Encoding(
            "llama3",
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=self.ranks,
            special_tokens=self.special,
        )


def is_llama3(path: Path) -> bool:
    """Whether ``path`` is a tiktoken file, or a folder with one or with a ``tokenizer.json`` alone.

    A ``tokenizer.model`` of SentencePiece is that of Llama 1 or 2.
    """
    if path.is_file():
        return is_tiktoken_file(path)
    folder = Folder(path)
    if MODEL_NAME in folder.files:
        return is_tiktoken_file(folder.files[MODEL_NAME])
    return TOKENIZER_JSON_NAME in folder.files


def read_llama3(path: Path) -> Llama3Tokenizer:
    """Read a tiktoken file, or a folder with a ``tokenizer.json`` or such a ``tokenizer.model``.

    Raises ``UsageError`` where there is nothing, ``FormatError`` for damaged files and
    ``VocabularyError`` for the tokenizer of another model.
    """
    if not path.exists():
        raise UsageError(tr("there is no such tokenizer"), file=path, remedy=_REMEDY)
    folder = ModelFolder(path)
    is_fast = path.is_dir() and TOKENIZER_JSON_NAME in folder.files
    ranks = None if is_fast else _read_tiktoken(folder)
    documents = dict(read_copied_tokenizer(folder, folder).contents)
    documents.pop(MODEL_NAME, None)  # says the same
    file = path / TOKENIZER_JSON_NAME if is_fast else path
    fast = parse_json(documents[TOKENIZER_JSON_NAME], file)
    ranks = ranks or recover_ranks(fast, file)
    special = {entry["content"]: entry["id"] for entry in read_added_tokens(fast, file)}
    _require_own_special_tokens(special, file)
    return Llama3Tokenizer(path, ranks, special, documents)


def _read_tiktoken(folder: ModelFolder) -> dict[bytes, int]:
    path = folder.path
    if path.is_dir() and MODEL_NAME not in folder.files:
        expected = tr(
            "{tokenizer_json_name} or {model_name}",
            tokenizer_json_name=TOKENIZER_JSON_NAME,
            model_name=MODEL_NAME,
        )
        sentence = tr("the folder holds no tokenizer of Llama 3")
        raise UsageError(sentence, file=path, expected=expected, remedy=_REMEDY)
    file = folder.files[MODEL_NAME] if path.is_dir() else path
    with file.open("rb") as stream:
        begins = stream.read(1)
    if begins == b"\n":  # the key of the first piece
        raise VocabularyError(
            tr("this tokenizer is of SentencePiece, as Llama 1 and 2 have it"),
            file=file,
            expected=tr("Llama 3's, which is text in base64"),
            remedy=tr("grow it with merge_tokenizers.py"),
        )
    ranks = read_ranks(file)
    require_llama3(ranks, file)
    return ranks


def _require_own_special_tokens(special: dict[str, int], file: Path) -> None:
    own = range(N_RANKS, N_RANKS + N_SPECIAL)
    if others := [name for name, id_ in special.items() if id_ not in own]:
        raise VocabularyError(
            tr("tokens were added to this tokenizer, on ids from which new tokens are numbered"),
            file=file,
            expected=tr(
                "special tokens from {start} to {stop} alone", start=own.start, stop=own.stop - 1
            ),
            found=tr("{others!r} as {special}", others=others[0], special=special[others[0]]),
            remedy=tr("grow the tokenizer that it was made from, and add the tokens to the result"),
        )
    if len(special) != N_SPECIAL:
        raise VocabularyError(
            tr("special tokens of Llama 3 are missing"),
            file=file,
            expected=N_SPECIAL,
            found=len(special),
            remedy=_REMEDY,
        )


def replace_ranks(base: Llama3Tokenizer, ranks: dict[bytes, int], path: Path) -> Llama3Tokenizer:
    """The tokenizer with ``ranks``, which go on from its own; everything else stays as it was."""
    file = base.path / TOKENIZER_JSON_NAME
    fast = parse_json(base.documents[TOKENIZER_JSON_NAME], file)
    fast["model"] |= build_tokenizer_json(ranks, base.special)["model"]
    documents = {**base.documents, TOKENIZER_JSON_NAME: dump_tokenizer_json(fast)}
    return Llama3Tokenizer(path, ranks, base.special, documents)


def list_readable_tokens(tokenizer: Llama3Tokenizer) -> Sequence[str]:
    """The tokens by id, as people read them; bytes that are no character as ``<0xE4>``."""
    texts = {id_: format_token(token) for token, id_ in tokenizer.ranks.items()}
    texts |= {id_: name for name, id_ in tokenizer.special.items()}
    return [texts[id_] for id_ in range(len(texts))]


def is_text(token: bytes) -> bool:
    """Whether bytes are whole characters."""
    try:
        token.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def format_token(token: bytes) -> str:
    """Text, with bytes that are no character as SentencePiece writes byte pieces.

    >>> format_token("的".encode()), format_token("的".encode()[:2])
    ('的', '<0xE7><0x9A>')
    """
    text = token.decode("utf-8", "surrogateescape")
    return "".join(
        f"<0x{ord(character) - 0xDC00:02X}>" if "\udc80" <= character <= "\udcff" else character
        for character in text
    )
