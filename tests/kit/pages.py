"""Reads the documentation: headings, code, tables, links, and what two languages share."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.kit.run import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)]+)\)")
_HEADING = re.compile(r"^(#+) (.*)$", re.MULTILINE)
_CELL = re.compile(r"(?<!\\)\|")
CHINESE = ROOT / "docs" / "zh"


def read_page(path: Path) -> str:
    """The text of a page."""
    return path.read_text(encoding="utf-8")


def list_pages() -> list[Path]:
    """Every page of the documentation."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def without_code(text: str) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", text)


def sections(text: str) -> list[str]:
    """The text of each section, without code; the first is what comes before the headings."""
    return _HEADING.split(without_code(text))[::3]


def headings(text: str) -> list[int]:
    """The levels of the headings, in order."""
    return [len(marks) for marks, _ in _HEADING.findall(without_code(text))]


def anchor(heading: str) -> str:
    """The fragment by which GitHub links to a heading.

    >>> anchor("Files of an adapter's folder"), anchor("`.pth` and the legacy converter")
    ('files-of-an-adapters-folder', 'pth-and-the-legacy-converter')
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(text: str) -> list[str]:
    """The fragments of a page's headings, in order."""
    return [anchor(heading) for _, heading in _HEADING.findall(without_code(text))]


def code_blocks(text: str) -> list[str]:
    """The blocks of code, in order, without what is explained beside a line.

    >>> code_blocks("```\\nmake demo    # try it\\n```")
    ['make demo\\n']
    """
    return [re.sub(r"(?<=\S) {2,}.*$", "", b, flags=re.MULTILINE) for _, b in FENCE.findall(text)]


def table_rows(text: str) -> list[list[str]]:
    """Every row of every table as its cells, headers left out.

    >>> table_rows("| a | b |\\n| - | - |\\n| `x\\\\|y` | 2 |")
    [['`x\\\\|y`', '2']]
    """
    rows = [line for line in without_code(text).splitlines() if line.startswith("|")]
    rules = [n for n, row in enumerate(rows) if set(row) <= set("| :-")]
    heads = {n - 1 for n in rules} | set(rules)
    return [
        [cell.strip() for cell in _CELL.split(row)[1:-1]]
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
    """What is in backticks, with line breaks as spaces."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def links(text: str) -> list[str]:
    """The targets of the links, as they are written."""
    return _LINK.findall(without_code(text))


def find_english(path: Path) -> Path:
    """The English page of a translation; the path itself for every other file."""
    if path == ROOT / "README_ZH.md":
        return ROOT / "README.md"
    return CHINESE.parent / path.name if path.parent == CHINESE else path


def shared_links(text: str, page: Path) -> set[str]:
    """Where the links of a page lead, whichever of two languages they lead to.

    A heading is named by its number in its page. Links to the page itself, which is where those to
    its translation lead, are left out.
    """
    found = set()
    for link in links(text):
        target, _, fragment = link.partition("#")
        if "://" in target:
            found.add(link)
            continue
        path = Path(os.path.normpath(page.parent / target)) if target else page
        place = anchors(read_page(path)).index(fragment) if fragment else ""
        name = find_english(path).relative_to(ROOT).as_posix()
        if name != find_english(page).relative_to(ROOT).as_posix() or fragment:
            found.add(f"{name}#{place}")
    return found
