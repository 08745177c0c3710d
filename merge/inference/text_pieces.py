"""Text that comes in pieces: whole characters, and an end at a stop word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def decode_pieces(ids: Iterable[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """Turn tokens into text as they come; a character is held back until all its bytes are there.

    Together the pieces are ``decode`` of all ids. Only the tokens since the last piece but one are
    decoded again, so that a tokenizer sees what a space belongs to.

    >>> chars = {0: "中".encode()[:2], 1: "中".encode()[2:], 2: b"a"}
    >>> decode = lambda ids: b"".join(chars[i] for i in ids).decode("utf-8", "replace")
    >>> list(decode_pieces([2, 0, 1, 2], decode))
    ['a', '中', 'a']
    """
    known: list[int] = []
    begin = told = 0
    for id_ in ids:
        known.append(id_)
        before, text = decode(known[begin:told]), decode(known[begin:])
        if len(text) > len(before) and not text.endswith(_INCOMPLETE):
            yield text[len(before) :]
            begin, told = told, len(known)
    rest = decode(known[begin:])[len(decode(known[begin:told])) :]
    if rest:
        yield rest


def stop_at(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Pass text on until one of ``stops`` begins; what may be a stop word's beginning waits.

    >>> list(stop_at(["a\\n##", "# b", "## ", "x##", "#!c"], ["###!"]))
    ['a\\n', '### b', '## ', 'x']
    """
    held = ""
    for piece in pieces:
        held += piece
        found = [place for stop in stops if (place := held.find(stop)) >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        end = len(held) - max((_overlap(held, stop) for stop in stops), default=0)
        if end:
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` begin ``stop``."""
    most = min(len(text), len(stop))
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
