"""Components whose words follow the language of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import gradio as gr

from .languages import translate_to

_Part = TypeVar("_Part")


class Words:
    """Which text, or choices, each component shows by which of its properties."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._texts: list[tuple[Any, Mapping[str, Any]]] = []

    def add(self, kind: type[_Part], texts: Mapping[str, Any], **properties: Any) -> _Part:
        """Make a component with ``texts`` in the first language, which it shows in each later.

        A text is a message, or a mapping of values to messages for the choices of a component.
        """
        part = kind(**self._translate(texts, self.language), **properties)
        self._texts.append((part, texts))
        return part

    @property
    def parts(self) -> list[Any]:
        """The components, in the order of ``updates``."""
        return [part for part, _ in self._texts]

    def updates(self, language: str) -> dict[Any, Any]:
        """What each component shows in a language."""
        return {part: gr.update(**self._translate(texts, language)) for part, texts in self._texts}

    @staticmethod
    def _translate(texts: Mapping[str, Any], language: str) -> dict[str, Any]:
        return {
            name: [(translate_to(language, label), value) for value, label in text.items()]
            if isinstance(text, Mapping)
            else translate_to(language, text)
            for name, text in texts.items()
            if text is not None
        }


def combine(*changes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Several updates of components as one; where two change the same property, the later counts.

    >>> one, other = {"label": "a", "value": 1}, {"value": 2}
    >>> combine({"box": one}, {"box": other})
    {'box': {'label': 'a', 'value': 2}}
    """
    result: dict[Any, Any] = {}
    for change in changes:
        for part, update in change.items():
            before = result.get(part)
            if isinstance(before, dict) and isinstance(update, dict):
                update = {**before, **update}
            result[part] = update
    return result
