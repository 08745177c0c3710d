"""Regular expressions for names of modules, matched in bounded time whatever they say.

Python's own ``re`` tries one way after the other: forty times ``.?`` in a file of a stranger's keep
it busy for years. The package ``regex`` can be told to give up matching, but compiles
``(.{1000000000}){1000000000}`` without end. Here every place of the name is asked once of every
part of the expression, so the work grows with the length of both and with nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from ..messages import tr

# Where a part of an expression may end in a text when it begins at a place.
_Ends = Callable[[str, int], frozenset[int]]

_LONGEST = 1000
# Nothing but names, as the patterns are that PEFT itself writes; a dot is any character.
_PLAIN = re.compile(r"[\w.\-]*", re.ASCII)
_TOKEN = re.compile(
    r"(?P<open>\((?:\?:|\?=|\?!|\?P<\w+>|(?!\?)))|(?P<close>\))|(?P<bar>\|)|(?P<anchor>[\^$])"
    r"|(?P<repeat>(?:[*+?]|\{\d+\}|\{\d*,\d*\})\??(?!\+))"
    r"|(?P<atom>\\[dDsSwW]|\\[^\w\s]|\[\^?\]?(?:\\.|[^\]\\])*\]|[^\\()\[*+?|^$])",
    re.ASCII,
)


@lru_cache(maxsize=4096)
def compile_matcher(pattern: str, wrapped: str = "KEY") -> Callable[[str], object]:
    r"""A function that tells whether an expression matches at the beginning of a name.

    The expression is ``wrapped`` with ``pattern`` for its ``KEY``; the answer is that of
    ``re.match``. There may be names, groups, choices, classes of characters, repetitions, ``^``,
    ``$`` and looking ahead. Raises ``re.error`` for what is no regular expression, and for those
    that need more than that.

    >>> match = compile_matcher(r"layers\.(0|1)\..*q_proj", r"(.*\.)?(KEY)$")
    >>> bool(match("model.layers.1.self_attn.q_proj"))
    True
    """
    text = wrapped.replace("KEY", pattern)
    if is_plain(pattern):
        # There are as many of these as modules at times, and re is ten times as fast.
        return re.compile(text).match
    if len(text) > _LONGEST:
        raise re.error(tr("it is longer than {longest} characters", longest=_LONGEST))
    re.compile(text)
    tokens = list(_split_tokens(text))
    ends = _parse_choice(tokens)
    if tokens:
        raise re.error(tr("a parenthesis is closed that was not opened"))
    return lambda name: bool(ends(name, 0))


def is_plain(text: str) -> bool:
    """Whether nothing in an expression can be matched in more than one way.

    >>> is_plain("model.layers.0.self_attn.q_proj"), is_plain(".*q_proj")
    (True, False)
    """
    return _PLAIN.fullmatch(text) is not None


def _split_tokens(text: str) -> Iterator[tuple[str, str]]:
    """Kinds and texts of the parts of an expression, the last of them first."""
    found, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise re.error(
                tr(
                    "it has something that names of modules do not need: {text!r}",
                    text=text[place:],
                )
            )
        found.append((match.lastgroup, match[0]))
        place = match.end()
    return reversed(found)


def _parse_choice(tokens: list[tuple[str, str]]) -> _Ends:
    """One of several sequences. Takes its tokens from the end of the list."""
    ways = [_parse_sequence(tokens)]
    while tokens and tokens[-1][0] == "bar":
        tokens.pop()
        ways.append(_parse_sequence(tokens))
    return _cache_ends(lambda text, at: frozenset[int]().union(*(way(text, at) for way in ways)))


def _parse_sequence(tokens: list[tuple[str, str]]) -> _Ends:
    parts: list[_Ends] = []
    while tokens and tokens[-1][0] not in ("bar", "close"):
        part = _parse_part(*tokens.pop(), tokens)
        if tokens and tokens[-1][0] == "repeat":
            part = _repeat(part, tokens.pop()[1])
        parts.append(part)

    def ends(text: str, at: int) -> frozenset[int]:
        places = frozenset([at])
        for part in parts:
            places = _advance_all(part, text, places)
        return places

    return _cache_ends(ends)


def _parse_part(kind: str, token: str, tokens: list[tuple[str, str]]) -> _Ends:
    if kind == "open":
        inner = _parse_choice(tokens)
        tokens.pop()
        if token in ("(?=", "(?!"):
            wanted = token == "(?="
            return lambda text, at: frozenset([at] if bool(inner(text, at)) == wanted else [])
        return inner
    if kind == "anchor":
        return lambda text, at: frozenset([at] if at == (0 if token == "^" else len(text)) else [])
    matches = re.compile(token).match
    return lambda text, at: frozenset([at + 1] if matches(text[at : at + 1]) else [])


def _repeat(part: _Ends, times: str) -> _Ends:
    """``part`` as often as ``*``, ``+``, ``?`` or ``{m,n}`` say. Lazy ones match no other names."""
    words = {"*": "0,", "+": "1,", "?": "0,1"}.get(times[0], times.rstrip("?")[1:-1])
    low, comma, high = words.partition(",")
    least, most = int(low or 0), int(high) if high else (None if comma else int(low))

    def ends(text: str, at: int) -> frozenset[int]:
        places = frozenset([at])
        # After as many steps as there are places, a step finds nothing that the last did not.
        for _ in range(min(least, len(text) + 2)):
            places = _advance_all(part, text, places)
        found, more = places, len(text) + 2 if most is None else most - least
        for _ in range(min(more, len(text) + 2)):
            places = _advance_all(part, text, places) - found
            if not places:
                break
            found |= places
        return found

    return _cache_ends(ends)


def _advance_all(part: _Ends, text: str, places: frozenset[int]) -> frozenset[int]:
    return frozenset[int]().union(*(part(text, at) for at in places))


def _cache_ends(ends: _Ends) -> _Ends:
    """``ends``, that works out each place of the last names only once."""
    return lru_cache(maxsize=2048)(ends)
