"""The tokens of a GGUF file against the tokenizer that its rows follow.

SentencePiece's own message is asked for pieces, scores and types, not the code that lists tokens
for a file. llama.cpp took its numbers for types over from there, so they are compared as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import VerificationError
from ..tokenizers import spm
from ..tokenizers.huggingface import ADDED_TOKENS_NAME, CONFIG_NAME, MODEL_NAME, TokenizerFolder
from ..untrusted.strict_json import parse_json

TOKENS, SCORES, TYPES = (f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type"))
PUT_BACK = "put back what the merge wrote, or merge again"

# What llama.cpp's converter gives tokens that are no pieces, and calls rows that have no token.
_ADDED_SCORE = -1000.0
_PADDING = re.compile(r"\[PAD\d+\]")


class Token(NamedTuple):
    """A token as a GGUF file lists it; ``kind`` is SentencePiece's number of a type."""

    text: str
    score: float
    kind: int


def token_list(metadata: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The tokens that a GGUF file lists. Raises ``VerificationError`` for what is no list of text.

    ``path`` is the file, for the error.
    """
    tokens = metadata.get(TOKENS)
    if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
        return tuple(tokens)
    found = f"no {TOKENS}" if tokens is None else f"{TOKENS} {tokens!r:.60}"
    raise VerificationError(
        "the GGUF file lists no tokens, without which llama.cpp loads no model",
        file=path,
        expected=f"{TOKENS}: a list of text",
        found=found,
        remedy=PUT_BACK,
    )


def permitted_tokens(tokenizer: TokenizerFolder) -> list[tuple[Token, ...]]:
    """What each token may be listed as, by id.

    Pieces are as SentencePiece has them; user-defined ones may be NORMAL, as llama.cpp's converter
    writes them. It has another score and type for what the JSON files list as added, also where
    that is a piece, so there both are right. What is not marked special may be CONTROL by its
    looks, and where it is not, its spaces may be spelled out.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    model = ModelProto.FromString(tokenizer.contents[MODEL_NAME])
    tokens: list[tuple[Token, ...]] = []
    for piece in model.pieces:
        token = Token(piece.piece, piece.score, piece.type)
        is_own = piece.type == spm.USER_DEFINED
        tokens.append((token._replace(kind=spm.NORMAL), token) if is_own else (token,))
    tokens += [()] * len(tokenizer.added_tokens)
    for id_, (text, special) in _added(tokenizer).items():
        if id_ < len(tokens):
            tokens[id_] += tuple(_as_added(text, special))
    return tokens


def _added(tokenizer: TokenizerFolder) -> dict[int, tuple[str, bool]]:
    """Text of each added token by id, and whether it is marked special."""
    contents = tokenizer.contents
    listed, config = (
        parse_json(contents[name], tokenizer.path / name) if name in contents else {}
        for name in (ADDED_TOKENS_NAME, CONFIG_NAME)
    )
    added = {int(id_): (text, False) for text, id_ in (listed | tokenizer.added_tokens).items()}
    decoder = config.get("added_tokens_decoder") or {}
    return added | {
        int(id_): (entry["content"], bool(entry.get("special")))
        if isinstance(entry, Mapping)
        else (str(entry), False)
        for id_, entry in decoder.items()
    }


def _as_added(text: str, special: bool) -> Iterator[Token]:
    yield Token(text, _ADDED_SCORE, spm.CONTROL)
    if not special:
        for spelled in dict.fromkeys((text, text.replace("\N{LOWER ONE EIGHTH BLOCK}", " "))):
            yield Token(spelled, _ADDED_SCORE, spm.USER_DEFINED)


def lists_beside(metadata: Mapping[str, Any], rows: int, path: Path) -> Iterator[VerificationError]:
    """Scores and types must be lists of numbers, one for each of ``rows``."""
    for key, kind in ((SCORES, float), (TYPES, int)):
        values = metadata.get(key)
        is_list = isinstance(values, list) and all(type(value) is kind for value in values)
        if not is_list or len(values or ()) != rows:
            shown = f"a list of {len(values)}" if isinstance(values, list) else f"{values!r:.60}"
            yield VerificationError(
                "the GGUF file does not say of each token what it must",
                file=path,
                expected=f"{key}: {rows} values ({kind.__name__}), one for each row",
                found=f"no {key}" if values is None else f"{key}: {shown}",
                remedy=PUT_BACK,
            )


def check_tokens(
    metadata: Mapping[str, Any], tokenizer: TokenizerFolder, path: Path
) -> tuple[list[VerificationError], list[int]]:
    """Hold each token, its score and its type against the tokenizer.

    ``metadata`` are those of ``path``, with lists of one length. Returns a fault for each of the
    three that is wrong anywhere, and the ids of tokens that the tokenizer does not have and that
    are no padding.
    """
    listed = zip(metadata[TOKENS], metadata[SCORES], metadata[TYPES], strict=True)
    found = [Token(*token) for token in listed]
    permitted = permitted_tokens(tokenizer)
    wrong: dict[str, list[tuple[int, object, object]]] = {}
    for id_, (token, choices) in enumerate(zip(found, permitted, strict=False)):
        if token in choices:
            continue
        nearest = max(choices, key=lambda choice: _alike(choice, token))
        for key, expected, value in zip((TOKENS, SCORES, TYPES), nearest, token, strict=True):
            if value != expected:
                wrong.setdefault(key, []).append((id_, expected, value))
    faults = [_fault(key, *differing, found, tokenizer, path) for key, differing in _first(wrong)]
    return faults, [
        id_ for id_, token in enumerate(found) if id_ >= len(permitted) and not _is_padding(token)
    ]


def _alike(one: Token, other: Token) -> int:
    return sum(ours == theirs for ours, theirs in zip(one, other, strict=True))


def _is_padding(token: Token) -> bool:
    return token.kind == spm.UNUSED and _PADDING.fullmatch(token.text) is not None


def _first(
    wrong: Mapping[str, Sequence[tuple[int, object, object]]],
) -> Iterator[tuple[str, tuple[tuple[int, object, object], int]]]:
    for key, differing in wrong.items():
        yield key, (differing[0], len(differing))


def _fault(
    key: str,
    first: tuple[int, object, object],
    count: int,
    found: Sequence[Token],
    tokenizer: TokenizerFolder,
    path: Path,
) -> VerificationError:
    id_, expected, value = first
    which = f"{key} of token {id_}" + (f" ({found[id_].text!r})" if key != TOKENS else "")
    return VerificationError(
        "the GGUF file says otherwise of a token than the tokenizer that its rows come from",
        file=path,
        expected=f"{which}: {expected!r}, as in {tokenizer.path}",
        found=f"{value!r}; {count} such of {len(found)}",
        remedy=PUT_BACK,
    )
