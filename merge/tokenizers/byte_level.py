"""Byte-level BPE as ``tokenizer.json`` spells it: bytes as characters, ranks as merges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from math import inf


@cache
def _list_characters() -> tuple[str, ...]:
    """GPT-2's character for each byte: itself where Latin-1 prints it, else 256 and on."""
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printed else next(others)) for byte in range(256))


@cache
def _map_bytes() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(_list_characters())}


def spell_bytes(token: bytes) -> str:
    """Bytes as byte-level tokenizers spell them.

    >>> spell_bytes(b" the"), spell_bytes("的".encode())
    ('Ġthe', 'çļĦ')
    """
    characters = _list_characters()
    return "".join([characters[byte] for byte in token])


def parse_spelling(text: str) -> bytes | None:
    """The bytes that are spelled so, None where a character is that of no byte.

    >>> parse_spelling("Ġthe")
    b' the'
    """
    known = _map_bytes()
    return bytes([known[c] for c in text]) if all(c in known for c in text) else None


def list_merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of tokens that tiktoken merges, in the order in which it prefers them.

    tiktoken joins any two neighbors that together are a token, the lowest rank first. So a token
    has a merge for each way to cut it into two tokens; those come with the lower first part first,
    as in Meta's own ``tokenizer.json``.
    """
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        yield from sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def split_by_ranks(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """What tiktoken's merges make of bytes: the lowest rank first, of equal ones the first place.

    Unlike there, bytes that are a token are not taken whole, so this tells whether merges reach it.
    For short texts: the time grows with the square of the length.
    """
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 1:
        joined = [left + right for left, right in pairwise(parts)]
        best = min(joined, key=lambda pair: ranks.get(pair, inf))
        if best not in ranks:
            break
        place = joined.index(best)
        parts[place : place + 2] = [best]
    return parts
