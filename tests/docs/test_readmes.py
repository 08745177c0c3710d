"""A page and its Chinese translation say the same: structure, commands, figures, options, links."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.pages import (
    CHINESE,
    anchors,
    code_blocks,
    figures,
    find_english,
    headings,
    links,
    read_page,
    sections,
    shared_links,
    spans,
    table_rows,
)
from tests.kit.run import ROOT

TRANSLATED = [ROOT / "README_ZH.md", *sorted(CHINESE.glob("*.md"))]
# What users need first. A page of which the beginning is translated ends with a link to the rest.
_NEEDED = {
    *("adapters.md", "llama_cpp.md", "recipes.md", "reliability.md"),
    *("tokenizers.md", "troubleshooting.md"),
}
_BEGINNING = {"reliability.md": "the-tolerance"}

in_both = pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: page.name)


def read_pair(page: Path) -> tuple[str, str]:
    """The Chinese page, and as much of the English one as is translated."""
    chinese, english = read_page(page), read_page(find_english(page))
    if page.parent == CHINESE and page.name in _BEGINNING:
        number = anchors(english).index(_BEGINNING[page.name])
        english = cut_before_heading(english, number)
    return chinese, english


def cut_before_heading(text: str, number: int) -> str:
    """The lines before one of a page's headings."""
    lines, seen, fenced = text.splitlines(keepends=True), 0, False
    for place, line in enumerate(lines):
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            if seen == number:
                return "".join(lines[:place])
            seen += 1
    return text


def test_pages_that_users_need_are_translated() -> None:
    assert {page.name for page in TRANSLATED} >= _NEEDED


@in_both
def test_both_lead_to_each_other(page: Path) -> None:
    english = find_english(page)
    target = page.relative_to(english.parent).as_posix()
    assert target in links(read_page(english))
    back = "README.md" if page.parent == ROOT else f"../{page.name}"
    assert back in links(read_page(page))


@in_both
def test_both_have_the_same_headings(page: Path) -> None:
    chinese, english = read_pair(page)
    assert headings(chinese) == headings(english)


@in_both
def test_both_have_the_same_code(page: Path) -> None:
    chinese, english = read_pair(page)
    assert code_blocks(chinese) == code_blocks(english)


@in_both
def test_tables_have_the_same_commands_options_and_figures(page: Path) -> None:
    chinese, english = (table_rows(text) for text in read_pair(page))
    assert len(chinese) == len(english)
    for there, here in zip(chinese, english, strict=True):
        assert [sorted(spans(cell)) for cell in there] == [sorted(spans(cell)) for cell in here]
        assert [figures(cell) for cell in there] == [figures(cell) for cell in here]


@in_both
@pytest.mark.parametrize("what", [figures, spans])
def test_each_section_has_the_same_figures_and_names(
    page: Path, what: Callable[[str], list[str]]
) -> None:
    chinese, english = (sections(text) for text in read_pair(page))
    for there, here in zip(chinese, english, strict=True):
        assert sorted(set(what(there))) == sorted(set(what(here)))


@in_both
def test_each_section_has_the_same_links(page: Path) -> None:
    chinese, english = read_pair(page)
    rest = _BEGINNING.get(page.name) if page.parent == CHINESE else None
    for there, here in zip(sections(chinese), sections(english), strict=True):
        leads = {link for link in links(there) if rest is None or not link.endswith(f"#{rest}")}
        kept = "".join(f"[]({link})" for link in leads)
        assert shared_links(kept, page) == shared_links(here, find_english(page))


@in_both
def test_chinese_pages_lead_to_chinese_pages(page: Path) -> None:
    """But for the way back, and for parts that are in English alone."""
    translated = {find_english(one): one for one in TRANSLATED}
    for link in links(read_page(page)):
        target, _, fragment = link.partition("#")
        path = Path(os.path.normpath(page.parent / target))
        if path not in translated or path == find_english(page):
            continue
        names = anchors(read_page(path))
        first_left = _BEGINNING.get(translated[path].name)
        assert first_left is not None, link
        assert fragment in names[names.index(first_left) :], link
