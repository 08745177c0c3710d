"""Texts in every language at once, so that a page in another language need not ask again."""

from __future__ import annotations

from ..errors import MergeError
from ..messages import LANGUAGES, load_catalogue, translate

Texts = dict[str, str]
"""One text by language, for all of ``messages.LANGUAGES``."""


def translate_to_all(text: str | MergeError) -> Texts:
    """The text in each language."""
    return {language: translate_to(language, text) for language in LANGUAGES}


def translate_to(language: str, text: str | MergeError) -> str:
    """The text in one language."""
    catalogue = load_catalogue(language)
    return (
        text.translated(catalogue) if isinstance(text, MergeError) else translate(text, catalogue)
    )


def choose_language(accepted: str, default: str) -> str:
    """The first of ``LANGUAGES`` in a browser's ``Accept-Language``, else ``default``.

    >>> choose_language("fr;q=0.9, zh-CN, zh;q=0.8, en;q=0.7", "en")
    'zh'
    """
    weighed = []
    for part in accepted.split(","):
        name, _, weight = part.strip().partition(";q=")
        try:
            weighed.append((-float(weight or 1), name.split("-")[0].lower()))
        except ValueError:
            continue
    names = (name for _, name in sorted(weighed, key=lambda pair: pair[0]))
    return next((name for name in names if name in LANGUAGES), default)
