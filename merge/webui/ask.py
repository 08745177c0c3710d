"""Try it: base and merged model side by side on one question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..errors import MergeError
from ..messages import compose, tr
from . import texts
from .events import AT_ONCE, QUEUED
from .fields import ChatFields, add_button
from .languages import translate_to, translate_to_all
from .markup import show_answer
from .root import Root
from .talker import Talker
from .words import Words

_SIDES = ("chat_base", "chat_merged")


class _Answers:
    """What stands on the two sides while answers come."""

    def __init__(self, asked: list[int], language: str) -> None:
        self._asked, self._language = asked, language
        self._said = ["", ""]
        self._notes: list[str] = ["", ""]
        self._template = ""

    def take(self, event: dict[str, Any]) -> None:
        """Note an event of the child process."""
        kind = event["event"]
        side = self._asked[event["index"]] if "index" in event else None
        if kind == "waiting":
            self._note_all(self._tell(texts.WAITING))
        elif kind == "loading" and side is not None:
            self._notes[side] = self._tell(texts.LOADING)
        elif kind == "template":
            self._template = event["name"][self._language]
            self._note_all("")
        elif kind == "piece" and side is not None:
            self._said[side] += event["text"]
            self._notes[side] = self._tell(tr("template: {name}", name=self._template))
        elif kind in ("error", "refused"):
            self._note_all("")
            self._said[self._asked[-1]] = event["text"][self._language]

    def _tell(self, text: str) -> str:
        return translate_to(self._language, text)

    def _note_all(self, note: str) -> None:
        for side in self._asked:
            self._notes[side] = note

    def show(self) -> list[str]:
        """Both sides."""
        both = zip(self._said, self._notes, strict=True)
        return [show_answer(said, note, self._language) for said, note in both]


def add_chat(
    root: Root, talker: Talker, words: Words, switch: gr.Radio, fields: ChatFields
) -> None:
    """Add the buttons, and the two sides."""
    with gr.Row():
        ask = add_button(words, "ask", variant="primary")
        stop = add_button(words, "stop")
    with gr.Row():
        sides = []
        for name in _SIDES:
            with gr.Column(min_width=260):
                words.add(gr.Markdown, {"value": _make_heading(name)})
                sides.append(
                    gr.HTML(
                        show_answer("", "", words.language), padding=False, elem_id=f"{name}_answer"
                    )
                )

    def answer(
        request: gr.Request, language: str, base: Any, merged: Any, prompt: Any, *how: Any
    ) -> Iterator[list[str]]:
        names = [str(base or ""), str(merged or "")]
        asked = [side for side, name in enumerate(names) if name.strip()] or [1]
        answers = _Answers(asked, language)
        settings = dict(zip(("template", "temperature", "max_tokens"), how, strict=True))
        try:
            models = [root.find_input(names[side]) for side in asked]
        except MergeError as error:
            answers.take({"event": "error", "text": translate_to_all(error)})
            yield answers.show()
            return
        tab = request.session_hash or ""
        for event in talker.ask(tab, models, str(prompt or ""), settings, language):
            answers.take(event)
            yield answers.show()

    def end(request: gr.Request) -> None:
        talker.stop(request.session_hash or "")

    gr.on(
        [ask.click, fields.prompt.submit],
        answer,
        [switch, *fields.parts],
        sides,
        trigger_mode="always_last",
        **QUEUED,
    )
    stop.click(end, None, None, **AT_ONCE)


def _make_heading(name: str) -> str:
    return compose("### {label}", label=texts.LABELS[name][0])
