"""The catalogues: complete, up to date, and with the placeholders of the messages."""

from __future__ import annotations

import re
from collections import Counter
from string import Formatter

import pytest

from docs.update_translations import (
    LANGUAGES,
    dump_mo,
    dump_po,
    extract_messages,
    find_untranslated,
    get_path,
    read_catalog,
    update_catalog,
)
from merge.messages import column_width

_PERCENT = re.compile(r"%(?:\(\w+\))?[rsd]")
# A label at the beginning of a line, padded to a column.
_LABEL = re.compile(r"(?:[a-z][a-z0-9 ]*?|adapter \{number\}) {2,}(?=\{)")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_SENTENCE = re.compile(r"\b[a-z]{3,} [a-z]{3,} [a-z]{3,}\b")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}|`[^`]*`")


def list_fields(text: str) -> Counter[str]:
    """The placeholders of a template, with conversions and format specifications."""
    return Counter(
        f"{name}!{conversion}:{spec}"
        for _, name, spec, conversion in Formatter().parse(text)
        if name is not None
    )


def is_template(text: str) -> bool:
    """Whether a message has values; one that only shows JSON has braces too."""
    try:
        fields = [(name, spec) for _, name, spec, _ in Formatter().parse(text) if name is not None]
    except ValueError:
        return False
    return bool(fields) and all(n.isidentifier() and spec[:1] != " " for n, spec in fields)


@pytest.fixture(scope="module", params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def pairs(language: str) -> list[tuple[str, str]]:
    return [(str(m.id), str(m.string)) for m in read_catalog(language) if m.id]


def test_messages_are_found_in_both_packages() -> None:
    places = {place for message in extract_messages() for place, _ in message.locations}
    assert any(place.startswith("tokenizer_tools/") for place in places)
    assert any(place.startswith("merge/") for place in places)


def test_catalogue_is_that_of_the_code(language: str) -> None:
    catalog = update_catalog(language)
    assert not list(find_untranslated(catalog))
    assert get_path(language, ".po").read_bytes() == dump_po(catalog)
    assert get_path(language, ".mo").read_bytes() == dump_mo(catalog)


def test_placeholders_agree(pairs: list[tuple[str, str]]) -> None:
    for message, translation in pairs:
        if is_template(message):
            assert list_fields(translation) == list_fields(message), message
        found, wanted = _PERCENT.findall(translation), _PERCENT.findall(message)
        assert Counter(found) == Counter(wanted), message


def test_line_ends_at_the_ends_agree(pairs: list[tuple[str, str]]) -> None:
    for message, translation in pairs:
        assert translation.endswith("\n") == message.endswith("\n"), message


def test_labels_take_as_many_columns(pairs: list[tuple[str, str]]) -> None:
    for message, translation in pairs:
        if label := _LABEL.match(message):
            width = column_width(label[0])
            ends = (
                place
                for place in range(len(translation))
                if column_width(translation[:place]) == width
            )
            end = next(ends, 0)
            assert translation[end - 1 : end] == " ", message
            assert translation[end] != " ", message


def test_sentences_are_translated(pairs: list[tuple[str, str]]) -> None:
    for message, translation in pairs:
        if message.startswith("pip "):  # a command
            continue
        if _SENTENCE.search(_PLACEHOLDER.sub("", message)):
            assert _HAN.search(translation), message
