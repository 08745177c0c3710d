"""Messages for people: English where they are made, translated where they are shown.

``tr("{count} tensors", count=3)`` is an English string that remembers its template and values. Code
compares, records and logs it as any string; ``translate`` looks up the template in a gettext
catalogue and fills in the values, which are translated first. Catalogues are in ``merge/locale``;
``docs/update_translations.py`` extracts the templates with Babel.
"""

from __future__ import annotations

import gettext
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from textwrap import shorten
from typing import Protocol, runtime_checkable

LANGUAGES = ("en", "zh")
DOMAIN = "chinese_llama_merge"
LOCALE_DIR = Path(__file__).parent / "locale"
_FOLDERS = {"zh": "zh_CN"}
# In the order in which gettext looks at them.
_VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")


class Message(str):
    """An English text with the ``template`` and the ``values`` that it was made from.

    Adding text gives another message. Every other method of ``str`` gives plain English.
    """

    template: str
    values: Mapping[str, object]

    def __new__(cls, template: str, /, **values: object) -> Message:
        """Fill ``values`` into ``template``, as ``str.format`` does; without values it is taken
        as it stands, braces included.
        """
        self = super().__new__(cls, template.format(**values) if values else template)
        self.template, self.values = template, values
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, object]]:
        return (self.template,), dict(self.values)

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> Message:
        return Message("{left}{right}", left=self, right=other)

    def __radd__(self, other: str) -> Message:
        return Message("{left}{right}", left=other, right=self)


@runtime_checkable
class _Translatable(Protocol):
    """What a message may hold beside text, such as an error."""

    def translated(self, catalogue: gettext.NullTranslations | None = None) -> str: ...


def tr(template: str, /, **values: object) -> str:
    """Make a message whose template stands in the catalogues; Babel extracts it by this name."""
    return Message(template, **values)


def compose(template: str, /, **values: object) -> str:
    """Make a message of others, by a template without words, which no catalogue needs to hold."""
    return Message(template, **values)


def join(separator: str, parts: Iterable[str]) -> str:
    """Join texts as ``separator.join`` does, to a message that can be translated throughout."""
    values: dict[str, object] = {f"part{number}": part for number, part in enumerate(parts)}
    template = "{separator}".join(f"{{{name}}}" for name in values)
    return Message(template, **values, separator=separator)


_catalogue: ContextVar[gettext.NullTranslations] = ContextVar("_catalogue")


def get_locale_name(language: str) -> str:
    """The name by which gettext knows one of ``LANGUAGES``."""
    return _FOLDERS.get(language, language)


@lru_cache
def load_catalogue(language: str) -> gettext.NullTranslations:
    """The translations into one of ``LANGUAGES``; those of English change nothing."""
    folder = _FOLDERS.get(language)
    if folder is None:
        return gettext.NullTranslations()
    return gettext.translation(DOMAIN, LOCALE_DIR, [folder])


@contextmanager
def used_language(language: str) -> Iterator[None]:
    """Let ``translate`` translate into ``language`` in this context meanwhile."""
    token = _catalogue.set(load_catalogue(language))
    try:
        yield
    finally:
        _catalogue.reset(token)


def get_language() -> str:
    """The one of ``LANGUAGES`` that ``used_language`` says, English outside of it.

    >>> with used_language("zh"):
    ...     get_language()
    'zh'
    """
    used = _catalogue.get(None)
    return next((language for language in LANGUAGES if load_catalogue(language) is used), "en")


def find_language(environment: Mapping[str, str] = os.environ) -> str:
    """The first of ``LANGUAGES`` that the locale's environment variables ask for, else English.

    >>> find_language({"LC_ALL": "", "LANG": "zh_CN.UTF-8"}), find_language({"LANG": "C.UTF-8"})
    ('zh', 'en')
    """
    chosen = next((environment[name] for name in _VARIABLES if environment.get(name)), "")
    asked = (part.split("_")[0].split(".")[0].lower() for part in chosen.split(":"))
    return next((language for language in asked if language in LANGUAGES), "en")


def translate(text: str, catalogue: gettext.NullTranslations | None = None) -> str:
    """The text in the language of ``catalogue``, or that of ``used_language``.

    A text that is no message stays as it is.
    """
    if not isinstance(text, Message) or not text.template:
        return text
    used = catalogue or _catalogue.get(None) or load_catalogue("en")
    template = used.gettext(text.template)
    if not text.values:
        return template
    return template.format(**{name: _translate_value(v, used) for name, v in text.values.items()})


def _translate_value(value: object, catalogue: gettext.NullTranslations) -> object:
    if isinstance(value, Message):
        return translate(value, catalogue)
    return value.translated(catalogue) if isinstance(value, _Translatable) else value


def tell_error(error: BaseException, most: int) -> str:
    """What an error says: a message of ours, or a library's text on a line of ``most`` characters.

    >>> tell_error(ValueError(tr("no pieces")), 8), tell_error(ValueError("such a long text"), 12)
    ('no pieces', 'such a [...]')
    """
    text = str(error)
    return text if isinstance(text, Message) else shorten(text, most)


def rename_paths(text: str, names: Mapping[Path, str]) -> str:
    """Say names in place of paths; a message stays one.

    >>> rename_paths(tr("in {path}", path=Path("copy") / "a"), {Path("copy"): "s3://b"})
    'in s3://b/a'
    """
    if isinstance(text, Message):
        values = {key: _rename_in_value(value, names) for key, value in text.values.items()}
        return Message(text.template, **values)
    for path, name in names.items():
        text = text.replace(str(path), name)
    return text


def _rename_in_value(value: object, names: Mapping[Path, str]) -> object:
    return rename_paths(str(value), names) if isinstance(value, (str, Path)) else value


def translate_all(texts: Sequence[str]) -> list[str]:
    """Each of several texts in the language of ``used_language``."""
    return [translate(text) for text in texts]


def column_width(text: str) -> int:
    """Columns of a terminal that printable text takes: two for each wide character.

    >>> column_width("file"), column_width("文件")
    (4, 4)
    """
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    return wcswidth(text)
