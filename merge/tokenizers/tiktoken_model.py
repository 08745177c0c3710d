"""Llama 3's vocabulary: tiktoken's file of ranks, the pattern that cuts text, the special tokens.

From Llama 3 on, Meta's ``tokenizer.model`` is no SentencePiece model but text: a line for each
token, its bytes in base64 and its rank, which is its id. Neither the pattern nor the special tokens
stand in it; both are constants of Meta's code.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from ..errors import FormatError, VocabularyError
from ..messages import tr
from ..untrusted.strict_json import read_small

Llama3Release = Literal["3", "3.1"]
"""Releases that name the special tokens alike; 3.2 and 3.3 do as 3.1."""

N_RANKS = 128_000
N_SPECIAL = 256
BEGIN_OF_TEXT, END_OF_TEXT, END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What cuts text before any merging, in Meta's ``tokenizer.py``."""

_SHA256 = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"
LLAMA3_RANKS = tr(
    "Llama 3's {n_ranks:,} ranks (SHA-256 {sha256}...)", n_ranks=N_RANKS, sha256=_SHA256[:8]
)
# Other models' tiktoken files, by the number of their ranks.
_OTHERS = {
    50_256: "GPT-2's",
    100_256: tr("GPT-4's cl100k_base"),
    151_643: "Qwen's",
    199_998: "GPT-4o's o200k_base",
    200_000: tr("Llama 4's"),
}

# 2 MB for 128,000 tokens.
_MOST_BYTES = 32 << 20
_LONGEST_TOKEN = 512
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d{1,7}\r?(\n|$)")


def list_special_token_names(release: Llama3Release) -> tuple[str, ...]:
    """The 256 tokens behind the ranks, in id order, as Meta's Hugging Face repositories name them.

    Meta's Python code calls some that no model uses otherwise from 3.1 on (128005 ``<|step_id|>``),
    and so numbers the reserved ones from 2 on behind them; ids and meanings are the same.
    Sources: ``tokenizer.json`` of Meta-Llama-3-8B and Llama-3.1-8B; transformers' converter.
    """
    fixed: dict[int, str] = {
        0: BEGIN_OF_TEXT,
        1: END_OF_TEXT,
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        9: END_OF_TURN,
    }
    if release != "3":
        fixed |= {4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(N_SPECIAL))
    return tuple(fixed.get(position) or next(reserved) for position in range(N_SPECIAL))


def map_special_tokens(release: Llama3Release) -> dict[str, int]:
    """The special tokens with their ids, 128000 and on."""
    return {name: N_RANKS + n for n, name in enumerate(list_special_token_names(release))}


def is_tiktoken(content: bytes) -> bool:
    """Whether a ``tokenizer.model`` is text of ranks; a SentencePiece model is protobuf.

    >>> is_tiktoken(b"IQ== 0"), is_tiktoken(bytes([10, 14, 10, 5]) + b"<unk>")
    (True, False)
    """
    return _LINE.match(content[: 2 * _LONGEST_TOKEN]) is not None


def is_tiktoken_file(path: Path) -> bool:
    """Whether a file begins as a tiktoken file does."""
    with path.open("rb") as stream:
        return is_tiktoken(stream.read(2 * _LONGEST_TOKEN))


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read a tiktoken file: each token's bytes with its rank, by rank. See ``parse_ranks``."""
    return parse_ranks(read_small(path, _MOST_BYTES), path)


def parse_ranks(content: bytes, path: Path) -> dict[bytes, int]:
    """Each token's bytes with its rank, by rank; ``path`` is where ``content`` is from, for errors.

    Raises ``FormatError`` for a line that is none, for a token of more than 512 bytes, for tokens
    or ranks that appear twice, and where one of the 256 bytes is no token.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line:
            continue
        token = _parse_token(line, path, number)
        if token in ranks:
            raise _make_error(
                path, number, tr("each token once"), tr("{token!r} again", token=token)
            )
        ranks[token] = int(line.rpartition(b" ")[2])
    if len(set(ranks.values())) < len(ranks):
        raise _make_error(
            path, None, tr("a rank of its own for each token"), tr("a rank given twice")
        )
    if lacking := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise _make_error(
            path,
            None,
            tr("a token for each of the 256 bytes"),
            tr("none for {lacking}", lacking=lacking[0]),
        )
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _parse_token(line: bytes, path: Path, number: int) -> bytes:
    expected = tr("the token's bytes in base64, and its rank")
    if not _LINE.fullmatch(line):
        raise _make_error(path, number, expected, repr(line[:60]))
    try:
        token = base64.b64decode(line.partition(b" ")[0], validate=True)
    except binascii.Error as error:
        raise _make_error(path, number, expected, str(error)) from None
    if len(token) > _LONGEST_TOKEN:
        raise _make_error(
            path,
            number,
            tr("at most {longest_token} bytes", longest_token=_LONGEST_TOKEN),
            tr("{n_token} bytes", n_token=len(token)),
        )
    return token


def _make_error(path: Path, number: int | None, expected: str, found: str) -> FormatError:
    return FormatError(
        tr("the file is no tiktoken vocabulary"),
        file=path,
        expected=expected,
        found=found
        if number is None
        else tr("in line {number}: {found}", number=number, found=found),
        remedy=tr("fetch it again from the place where the weights are from"),
    )


def dump_ranks(ranks: Mapping[bytes, int]) -> bytes:
    """A tiktoken file of these tokens, in the order of their ranks, byte for byte as Meta's."""
    return b"".join(_format_lines(sorted(ranks.items(), key=lambda item: item[1])))


def _format_lines(entries: Iterable[tuple[bytes, int]]) -> Iterable[bytes]:
    for token, rank in entries:
        yield base64.b64encode(token) + b" %d\n" % rank


def has_llama3_ranks(ranks: Mapping[bytes, int]) -> bool:
    """Whether the first 128,000 ranks are Llama 3's."""
    own = {token: rank for token, rank in ranks.items() if rank < N_RANKS}
    return hashlib.sha256(dump_ranks(own)).hexdigest() == _SHA256


def require_llama3(ranks: Mapping[bytes, int], path: Path) -> None:
    """Raise ``VocabularyError`` unless the first 128,000 ranks are Llama 3's.

    Further ones must follow the 256 special tokens without a gap: a grown vocabulary, in which
    every old id stays. Only for Llama 3 are pattern and special tokens known here.
    """
    if not has_llama3_ranks(ranks):
        kind = _OTHERS.get(len(ranks))
        raise VocabularyError(
            tr("this tiktoken vocabulary is not Llama 3's"),
            file=path,
            expected=LLAMA3_RANKS,
            found=tr("{n_ranks:,} ranks", n_ranks=len(ranks))
            + (tr(", as many as {kind}", kind=kind) if kind else ""),
            remedy=tr(
                "take tokenizer.model from the place where the Llama 3 weights are "
                "from; for another model's, give a Hugging Face folder with its "
                "tokenizer.json"
            ),
        )
    further = [rank for rank in ranks.values() if rank >= N_RANKS]
    first = N_RANKS + N_SPECIAL
    if sorted(further) != list(range(first, first + len(further))):
        raise VocabularyError(
            tr("ranks beyond Llama 3's own take the ids of its special tokens, or leave a gap"),
            file=path,
            expected=tr("further ranks from {first} on", first=first),
            found=tr(
                "{further} to {further_2}, {n_further} of them",
                further=min(further),
                further_2=max(further),
                n_further=len(further),
            ),
            remedy=tr("number new tokens from there, so that all old ids stay"),
        )
