"""Messages: English where they are made, translated where they are shown."""

from __future__ import annotations

import pickle
from gettext import NullTranslations

import pytest

from merge.errors import UsageError
from merge.messages import Message, compose, find_language, join, tr, translate


class Reversed(NullTranslations):
    """A language in which the words of a few templates are others."""

    def gettext(self, message: str) -> str:
        words = {"{count} tensors of {name}": "{name}: {count:,} Tensoren", "a base": "eine Basis"}
        return words.get(message, message)


LANGUAGE = Reversed()


def test_message_is_its_english_text() -> None:
    message = tr("{count} tensors of {name}", count=3, name="a base")
    assert message == "3 tensors of a base"
    assert isinstance(message, str)
    assert hash(message) == hash("3 tensors of a base")


def test_values_are_translated_too() -> None:
    message = tr("{count} tensors of {name}", count=3000, name=tr("a base"))
    assert translate(message, LANGUAGE) == "eine Basis: 3,000 Tensoren"


def test_text_of_a_user_is_never_translated() -> None:
    message = tr("{count} tensors of {name}", count=1, name="a base")
    assert translate(message, LANGUAGE) == "a base: 1 Tensoren"


@pytest.mark.parametrize(
    "message",
    [
        "one " + tr("a base"),
        tr("one ") + tr("a base"),
        compose("{first}{second}", first="one ", second=tr("a base")),
        join(" ", ["one", tr("a base")]),
    ],
)
def test_messages_are_put_together(message: str) -> None:
    assert message == "one a base"
    assert translate(message, LANGUAGE) == "one eine Basis"


def test_separator_may_hold_braces() -> None:
    assert join(" {} ", [tr("a base"), "b"]) == "a base {} b"
    assert translate(join(" {} ", [tr("a base"), "b"]), LANGUAGE) == "eine Basis {} b"


def test_message_survives_a_process_and_an_exception() -> None:
    message = tr("{count} tensors of {name}", count=3, name=tr("a base"))
    again = pickle.loads(pickle.dumps(message))
    assert translate(again, LANGUAGE) == "eine Basis: 3 Tensoren"
    assert isinstance(str(ValueError(message)), Message)


def test_error_translates_sentence_facts_and_labels_alone() -> None:
    error = UsageError(tr("a base"), file="a base", found=tr("a base"))
    assert str(error) == "a base\n  file:     a base\n  found:    a base"
    assert error.translated(LANGUAGE) == "eine Basis\n  file:     a base\n  found:    eine Basis"


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.UTF-8"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANGUAGE": "de:zh_CN:en", "LANG": "de_DE.UTF-8"}, "zh"),
        ({"LC_ALL": "en_US.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_MESSAGES": "zh_CN", "LANG": "en_US"}, "zh"),
    ],
)
def test_language_is_that_of_the_locale(environment: dict[str, str], language: str) -> None:
    assert find_language(environment) == language
