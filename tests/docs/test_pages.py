"""What the pages name exists: links, files, targets of make, Python names, quoted messages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module

import pytest
from babel.messages.pofile import read_po

from merge.messages import DOMAIN, LOCALE_DIR
from tests.kit.pages import FENCE, anchors, links, list_pages
from tests.kit.run import ROOT

NAMES = [page.relative_to(ROOT).as_posix() for page in list_pages()]
# Of llama.cpp's repository.
_ELSEWHERE = {"examples/convert_legacy_llama.py"}
_FILE = re.compile(r"(?<![\w/.-])(?:[\w-]+/)+[\w-]+\.(?:py|md|toml|txt|json)\b")
_FOLDER = re.compile(r"`((?:merge|tokenizer_tools|tests|docs|scripts|demo|benchmarks)/(?:\w+/)*)`")


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    for link in links(_read(name)):
        target, _, fragment = link.partition("#")
        if "://" in target:
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.is_file(), link
        if fragment:
            assert fragment in anchors(path.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("name", NAMES)
def test_files_and_folders_that_are_named_exist(name: str) -> None:
    text = _read(name)
    for found in {*_FILE.findall(text), *_FOLDER.findall(text)} - _ELSEWHERE:
        if found.endswith(".json") and not found.startswith("docs/"):
            continue  # of a user's model
        places = (ROOT, ROOT / "merge", (ROOT / name).parent)
        assert any((place / found).exists() for place in places), found


@pytest.mark.parametrize("name", NAMES)
def test_targets_of_make_exist(name: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", _read("Makefile"), re.MULTILINE))
    code = "\n".join(re.findall(r"`(make [^`]+)`", _read(name)))
    code += "\n" + "\n".join(block for _, block in FENCE.findall(_read(name)))
    assert set(re.findall(r"^make ([\w-]+)", code, re.MULTILINE)) <= targets


@pytest.mark.parametrize("name", NAMES)
def test_python_names_can_be_imported(name: str) -> None:
    for language, block in FENCE.findall(_read(name)):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            if node.module.partition(".")[0] in ("merge", "tokenizer_tools"):
                for alias in node.names:
                    if not hasattr(import_module(node.module), alias.name):
                        import_module(f"{node.module}.{alias.name}")


@cache
def messages() -> str:
    """Every text in the program's code; what is put into it while it runs is ``...``."""

    def texts() -> Iterator[str]:
        for path in [*(ROOT / "merge").rglob("*.py"), *(ROOT / "tokenizer_tools").rglob("*.py")]:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.sub(r"\{\w+[^{}]*\}", "...", node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else "..." for v in node.values)
                    yield "".join(map(str, parts))

    return "\n".join(texts())


def is_message(quoted: str) -> bool:
    """Whether what stands as code is a message, not a command or an option."""
    words = quoted.split()
    return len(words) > 2 and words[0] not in ("git", "pip") and not re.match(r"-|\S+\.py", quoted)


def test_troubleshooting_quotes_what_the_program_says() -> None:
    text = re.sub(r"\s+", " ", _read("docs/troubleshooting.md"))
    quoted = [one for one in re.findall(r"`([^`]+)`", text) if is_message(one)]
    assert len(quoted) > 15
    assert [one for one in quoted if one not in messages()] == []


def test_troubleshooting_in_chinese_quotes_what_is_shown_in_chinese() -> None:
    """Behind each English message its translation stands in parentheses."""
    with (LOCALE_DIR / "zh_CN" / "LC_MESSAGES" / f"{DOMAIN}.po").open("rb") as file:
        entries = [(fold(entry.id), fold(entry.string)) for entry in read_po(file) if entry.id]
    text = re.sub(r"\s+", " ", _read("docs/zh/troubleshooting.md"))
    quoted = [
        (english, chinese)
        for english, chinese in re.findall(r"`([^`]+)`(?:（([^）]*)）)?", text)
        if is_message(english)
    ]
    assert len(quoted) > 15
    for english, chinese in quoted:
        shown = [translated for message, translated in entries if english in message]
        assert any(chinese and chinese in one for one in shown), (english, chinese, shown)


def fold(text: str) -> str:
    """A message with ``...`` for what is put into it."""
    return re.sub(r"\{\w+[^{}]*\}( \(\{\w+\}\))?", "...", text)
