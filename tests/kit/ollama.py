"""Ollama's Modelfile and its templates, as documented: read and filled for tests.

The grammar is that of ``docs/modelfile.md``: lines of an instruction and its value, comments, and
values in double or triple quotes, of which the latter go over lines. Of Go's templates those parts
that are used here: ``if``, ``else if``, ``range``, ``eq``, ``ne``, fields and variables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_INSTRUCTIONS = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE")
_VALUE = re.compile(r'"""(?P<block>.*?)"""|"(?P<quoted>[^\n]*)"|(?P<plain>[^\s"][^\n]*)', re.DOTALL)
_ACTION = re.compile(r"\{\{(-?) ?(.*?) ?(-?)\}\}", re.DOTALL)


def parse_modelfile(text: str) -> list[tuple[str, str]]:
    """Instructions with their values; of a parameter the value begins with its name and a space.

    Raises ``ValueError`` where the text is not of the grammar.
    """
    found, place = [], 0
    while place < len(text):
        if match := re.compile(r"[ \t]*(#[^\n]*)?\n").match(text, place):
            place = match.end()
            continue
        head = re.compile(r"([A-Za-z]+)[ \t]+([a-z_]+[ \t]+)?").match(text, place)
        if head is None or head[1].upper() not in _INSTRUCTIONS:
            raise ValueError(f"no instruction: {text[place : place + 40]!r}")
        named = head[1].upper() in ("PARAMETER", "MESSAGE")
        value = _VALUE.match(text, head.end() if named else head.end(1) + 1)
        if value is None or (named and head[2] is None):
            raise ValueError(f"no value: {text[place : place + 40]!r}")
        content = next(part for part in value.groups() if part is not None)
        found.append((head[1].upper(), (head[2].strip() + " " if named else "") + content))
        place = value.end()
        if text[place : place + 1] not in ("\n", ""):
            raise ValueError(f"more behind a value: {text[place : place + 40]!r}")
        place += 1
    if [name for name, _ in found].count("FROM") != 1:
        raise ValueError("not one FROM")
    return found


def fill_template(template: str, system: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What Ollama sends to the model. The system's message is among the others too, as there."""
    listed = [{"Role": "system", "Content": system}] if system else []
    listed += [{"Role": m["role"], "Content": m["content"]} for m in messages]
    data: dict[str, Any] = {"System": system, "Messages": listed}
    tokens = list(_split(template))
    tree, rest = _parse(tokens)
    assert not rest
    return "".join(_fill(tree, data, {"$": data}))


def _split(template: str) -> Iterator[tuple[str, str]]:
    place = 0
    for match in _ACTION.finditer(template):
        assert not match[1]
        assert not match[3]
        yield "text", template[place : match.start()]
        yield "action", match[2]
        place = match.end()
    yield "text", template[place:]


Tree = list[tuple[Any, ...]]
Tokens = list[tuple[str, str]]


def _parse(tokens: Tokens) -> tuple[Tree, Tokens]:
    tree: Tree = []
    while tokens:
        (kind, value), tokens = tokens[0], tokens[1:]
        word = value.split(" ", 1)[0]
        if kind == "text":
            tree.append(("text", value))
        elif word in ("if", "range"):
            body, tokens = _parse(tokens)
            ending, tokens = tokens[0][1], tokens[1:]
            if ending.startswith("else if"):  # which one end closes together with the first
                (inner, *behind), tokens = _parse([("action", ending[5:]), *tokens])
                node = (word, value.split(" ", 1)[1], body, [inner])
                return [*tree, node, *behind], tokens
            assert ending == "end"
            tree.append((word, value.split(" ", 1)[1], body, []))
        elif value == "end" or word == "else":
            return tree, [(kind, value), *tokens]
        else:
            tree.append(("value", value))
    return tree, []


def _fill(tree: Tree, dot: Mapping[str, Any], variables: dict[str, Any]) -> Iterator[str]:
    for kind, value, *bodies in tree:
        if kind == "text":
            yield value
        elif kind == "range":
            for item in _evaluate(value, dot, variables):
                yield from _fill(bodies[0], item, variables)
        elif kind == "if":
            chosen = bodies[0] if _evaluate(value, dot, variables) else bodies[1]
            yield from _fill(chosen, dot, variables)
        elif match := re.fullmatch(r"(\$\w+) :?= (.+)", value):
            variables[match[1]] = _evaluate(match[2], dot, variables)
        else:
            yield str(_evaluate(value, dot, variables))


def _evaluate(text: str, dot: Mapping[str, Any], variables: Mapping[str, Any]) -> Any:
    words = re.findall(r'"[^"]*"|\S+', text)
    values = [
        word[1:-1] if word[0] == '"' else variables[word] if word[0] == "$" else dot.get(word[1:])
        for word in words
        if word[0] in '"$.'
    ]
    if words[0] in ("eq", "ne"):
        return (values[0] == values[1]) == (words[0] == "eq")
    assert len(words) == 1
    return values[0]
