"""The tokenizer of a result against its rows: how many, in which order, which ids are special."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checksums.file_digests import get_file_digest
from ..checksums.known_tokenizers import KnownTokenizer, explain_mismatch, recognize_bytes
from ..errors import MergeError, VerificationError
from ..formats.gguf import read as read_gguf
from ..layouts.decoder import HEAD_OF, count_embedding_rows, embeddings
from ..layouts.gguf.reading import find_gguf_files
from ..layouts.llama import EMBED_TOKENS
from ..layouts.model_folder import ModelFolder
from ..messages import tr
from ..storage.folder import Folder
from ..storage.input_file import InputFile
from ..tensors.lazy import Checkpoint
from ..tokenizers.byte_level import spell_bytes
from ..tokenizers.byte_level_bpe import find_byte_level_bpe
from ..tokenizers.file_names import MODEL_NAME, TOKENIZER_JSON_NAME
from ..tokenizers.opaque_tokenizer import read_opaque_tokenizer
from ..tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer, read_tokenizer
from ..tokenizers.tiktoken_model import (
    is_tiktoken_file,
    list_special_token_names,
    read_ranks,
    require_llama3,
)

_GGUF_TOKENS = "tokenizer.ggml.tokens"
# llama.cpp's converter spells it as a space in added tokens.
_WORD_BOUNDARY = "\N{LOWER ONE EIGHTH BLOCK}"
_RESTORE = tr("put back what the merge wrote, or merge again with the right tokenizer")


@dataclass(frozen=True)
class TokenList:
    """Tokens by id, and the ids of the special ones where the tokenizer gives them."""

    path: Path
    tokens: tuple[str, ...]
    special: dict[str, int]
    known: KnownTokenizer | None = None


def check_vocabulary(
    folder: Path,
    result: Checkpoint,
    parents: Sequence[Path],
    padded: bool,
    may_be_shorter: bool = False,
) -> Iterator[MergeError]:
    """Yield what is wrong between the tokenizer of ``folder`` and the rows of ``result``.

    ``parents`` are the tokenizers that this one extends or is, which must give every id the same
    token; all of theirs that have a row, unless it ``may_be_shorter``. ``padded``: there may be
    rows beyond the tokens.
    """
    rows = count_embedding_rows(result.tensors)
    name = HEAD_OF[embeddings(result.tensors) or EMBED_TOKENS]
    head = result.tensors.get(name)
    if head is not None and head.rows != rows:
        yield VerificationError(
            tr("embeddings and LM head have different numbers of rows"),
            file=folder,
            tensor=name,
            expected=tr("{rows} rows, as the embeddings have", rows=rows),
            found=tr("{rows} rows", rows=head.rows),
            remedy=tr("merge again"),
        )
    try:
        ours = read_vocabulary(folder)
    except MergeError as error:
        yield error
        return
    counts = list(_check_count(ours, rows, padded))
    yield from counts
    yield from _check_ids(ours, result, ours.path)
    for parent in parents:
        parent_tokens = _read_parent(parent)
        yield from _check_order(ours, parent_tokens)
        if not may_be_shorter and not counts:
            yield from _check_missing(ours, parent_tokens, rows)


def read_vocabulary(folder: Path) -> TokenList:
    """The tokens of a folder in any layout. Raises ``MergeError`` for a tokenizer that is none."""
    return _read_gguf(folder) if ModelFolder(folder).is_gguf else _read_files(folder)


def _read_files(folder: Path) -> TokenList:
    path = folder / MODEL_NAME
    if path.is_file() and is_tiktoken_file(path):
        return _read_tiktoken(path)
    return _read_folder(read_tokenizer(folder))


def _read_tiktoken(path: Path) -> TokenList:
    """Llama 3's tokens as Meta's code numbers them; it has the special ones' ids by itself."""
    ranks = read_ranks(path)
    require_llama3(ranks, path)
    return TokenList(path, (*map(spell_bytes, ranks), *list_special_token_names("3")), {})


def check_tokenizer(folder: Path, sha256: str | None) -> Iterator[VerificationError]:
    """Where only the tokenizer says how many rows there are, it must be that of the merge."""
    path = folder / MODEL_NAME
    if sha256 is not None and path.is_file() and (found := get_file_digest(path)) != sha256:
        yield VerificationError(
            tr("the tokenizer is not the one to which the vocabulary was grown"),
            file=path,
            expected=tr("SHA-256 {sha256}", sha256=sha256),
            found=tr("SHA-256 {found}", found=found),
            remedy=_RESTORE,
        )


def check_special_ids(
    folder: Path, result: Checkpoint, tokenizer: SentencePieceTokenizer | Path
) -> Iterator[VerificationError]:
    """Yield ids of bos and eos that a GGUF file gives otherwise than the ``tokenizer``, or that of
    a folder with a ``tokenizer.json``.
    """
    known = _read_parent(tokenizer) if isinstance(tokenizer, Path) else _read_folder(tokenizer)
    yield from _check_ids(known, result, find_gguf_files(ModelFolder(folder))[0])


def has_byte_level_bpe(folder: Path) -> bool:
    """Whether the tokenizer of a folder is a ``tokenizer.json`` of byte-level BPE."""
    return (folder / TOKENIZER_JSON_NAME).is_file() and _read_bpe(folder) is not None


def _read_parent(folder: Path) -> TokenList:
    """The tokens of a folder by its ``tokenizer.model``, else by byte-level BPE, else of GGUF.

    Beside an adapter's tokenizer files, a GGUF file is the adapter once more.
    """
    if (folder / MODEL_NAME).is_file():
        return _read_files(folder)
    known = _read_bpe(folder) if (folder / TOKENIZER_JSON_NAME).is_file() else None
    return known or read_vocabulary(folder)


def _read_bpe(folder: Path) -> TokenList | None:
    """The tokens of a byte-level BPE, None for another kind of tokenizer.

    Ids without a token have the name that llama.cpp's converter gives them.
    """
    tokenizer = find_byte_level_bpe(read_opaque_tokenizer(Folder(folder)))
    if tokenizer is None:
        return None
    tokens = tuple(text or f"[PAD{id_}]" for id_, text in enumerate(tokenizer.tokens))
    special = {name.removesuffix("_id"): id_ for name, id_ in tokenizer.token_ids.items()}
    return TokenList(tokenizer.path, tokens, special)


def _read_folder(tokenizer: SentencePieceTokenizer) -> TokenList:
    given = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    return TokenList(
        tokenizer.path,
        tokenizer.tokens,
        {name: token.id for name, token in given.items() if token is not None},
        recognize_bytes(tokenizer.contents[MODEL_NAME]),
    )


def _read_gguf(path: Path) -> TokenList:
    """The tokens that llama.cpp will use; their special ids are in the configuration made of it."""
    first = find_gguf_files(ModelFolder(path))[0]
    tokens = read_gguf(InputFile(first), any_quantized=True).metadata.get(_GGUF_TOKENS)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise VerificationError(
            tr("the GGUF file lists no tokens, without which llama.cpp loads no model"),
            file=first,
            expected=tr("{gguf_tokens}: a list of text", gguf_tokens=_GGUF_TOKENS),
            found=tr("no {gguf_tokens}", gguf_tokens=_GGUF_TOKENS)
            if tokens is None
            else f"{_GGUF_TOKENS} {tokens!r:.60}",
            remedy=_RESTORE,
        )
    return TokenList(first, tuple(tokens), {})


def _check_count(ours: TokenList, rows: int, padded: bool) -> Iterator[VerificationError]:
    count = len(ours.tokens)
    if count == rows or (count < rows and (padded or _is_rounded_up(count, rows, ours))):
        return
    yield VerificationError(
        tr("tokenizer and rows do not belong together"),
        file=ours.path,
        expected=tr("{rows} tokens, one for each row of the embeddings", rows=rows),
        found=tr("{count} tokens", count=count),
        remedy=explain_mismatch(ours.known, rows) or _RESTORE,
    )


def _is_rounded_up(tokens: int, rows: int, ours: TokenList) -> bool:
    """Whether rows are the tokens, rounded up to 8, 16, 32 ... as trainers do for GPUs. llama.cpp
    needs a token for each.
    """
    if ModelFolder(ours.path).is_gguf or explain_mismatch(ours.known, rows) is not None:
        return False
    multiples = (8 << n for n in range(10))
    return any(rows == -(-tokens // multiple) * multiple for multiple in multiples)


def _check_ids(
    vocabulary: TokenList, result: Checkpoint, file: Path
) -> Iterator[VerificationError]:
    for name, id_ in vocabulary.special.items():
        stated = result.config.get(f"{name}_id")
        listed = stated if isinstance(stated, list) else [stated]
        if stated is not None and id_ not in listed:
            yield VerificationError(
                tr("the configuration gives a special token another id than the tokenizer does"),
                file=file,
                expected=tr(
                    "{name}_id {id} ({tokens})", name=name, id=id_, tokens=vocabulary.tokens[id_]
                ),
                found=tr("{name}_id {stated}", name=name, stated=stated),
                remedy=_RESTORE,
            )


def _check_missing(
    ours: TokenList, parent_tokens: TokenList, rows: int
) -> Iterator[VerificationError]:
    """Every token of the tokenizer that the rows come from, as far as there are rows."""
    expected = min(len(parent_tokens.tokens), rows)
    if len(ours.tokens) < expected:
        yield VerificationError(
            tr("the tokenizer lacks tokens of the tokenizer that its rows come from"),
            file=ours.path,
            expected=tr(
                "{expected} tokens, as in {path}", expected=expected, path=parent_tokens.path
            ),
            found=tr("{n_tokens} tokens", n_tokens=len(ours.tokens)),
            remedy=_RESTORE,
        )


def _check_order(ours: TokenList, parent_tokens: TokenList) -> Iterator[VerificationError]:
    """Every id must mean the same as in a tokenizer that the rows come from."""
    is_gguf = any(ModelFolder(tokens.path).is_gguf for tokens in (ours, parent_tokens))
    for id_, (one, other) in enumerate(zip(ours.tokens, parent_tokens.tokens, strict=False)):
        pair = {t.replace(_WORD_BOUNDARY, " ") if is_gguf else t for t in (one, other)}
        if len(pair) > 1:
            yield VerificationError(
                tr("the tokenizer gives an id another token than the tokenizer its rows come from"),
                file=ours.path,
                expected=tr(
                    "{other!r} as token {id}, as in {path}",
                    other=other,
                    id=id_,
                    path=parent_tokens.path,
                ),
                found=repr(one),
                remedy=_RESTORE,
            )
            return
