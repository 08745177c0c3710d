"""The English and the Chinese README say the same: structure, commands, figures, options, links."""

from __future__ import annotations

import re

import pytest

from tests.kit.run import ROOT

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)]+)\)")
_ENGLISH, _CHINESE = "README.md", "README_ZH.md"
# Each links to the other.
_OTHERS = {_ENGLISH, _CHINESE}


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _sections(text: str) -> list[str]:
    """The text of each section, without code; the first is what comes before the headings."""
    return re.split(r"^#+ .*$", _FENCE.sub("", text), flags=re.MULTILINE)


def headings(text: str) -> list[int]:
    """The levels of the headings, in order."""
    return [len(marks) for marks in re.findall(r"^(#+) ", _FENCE.sub("", text), re.MULTILINE)]


def code_blocks(text: str) -> list[str]:
    """The blocks of code, in order, without what is explained beside a line.

    >>> code_blocks("```\\nmake demo    # try it\\n```")
    ['```\\nmake demo\\n```']
    """
    return [re.sub(r"(?<=\S) {2,}.*$", "", b, flags=re.MULTILINE) for b in _FENCE.findall(text)]


def table_rows(text: str) -> list[list[str]]:
    """Every row of every table as its cells, headers left out."""
    rows = [line for line in _FENCE.sub("", text).splitlines() if line.startswith("|")]
    rules = [n for n, row in enumerate(rows) if set(row) <= set("| :-")]
    heads = {n - 1 for n in rules} | set(rules)
    return [
        [cell.strip() for cell in row.strip("|").split("|")]
        for n, row in enumerate(rows)
        if n not in heads
    ]


def figures(text: str) -> list[str]:
    """The numbers of a text in order of size; full-width punctuation does not count.

    >>> figures("0.42 (31 s), 99.989 %")
    ['0.42', '31', '99.989']
    """
    return sorted(re.findall(r"\d+(?:\.\d+)?", text), key=float)


def spans(text: str) -> list[str]:
    """What is in backticks."""
    return re.findall(r"`([^`]+)`", text)


def test_both_have_the_same_headings() -> None:
    assert headings(_read(_CHINESE)) == headings(_read(_ENGLISH))


def test_both_have_the_same_code() -> None:
    assert code_blocks(_read(_CHINESE)) == code_blocks(_read(_ENGLISH))


def test_tables_have_the_same_commands_options_and_figures() -> None:
    chinese, english = table_rows(_read(_CHINESE)), table_rows(_read(_ENGLISH))
    assert len(chinese) == len(english)
    for there, here in zip(chinese, english, strict=True):
        assert [spans(cell) for cell in there[:2]] == [spans(cell) for cell in here[:2]]
        assert [figures(cell) for cell in there] == [figures(cell) for cell in here]
        assert len(there) == len(here)


@pytest.mark.parametrize("what", [figures, spans, _LINK.findall])
def test_each_section_has_the_same_figures_names_and_links(what) -> None:  # type: ignore[no-untyped-def]
    for there, here in zip(_sections(_read(_CHINESE)), _sections(_read(_ENGLISH)), strict=True):
        assert sorted(set(what(there)) - _OTHERS) == sorted(set(what(here)) - _OTHERS)
