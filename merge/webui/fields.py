"""The fields of the page: what is merged, and what is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..inference.settings import TEMPLATES, ChatSettings
from ..job_settings import MergeSettings
from ..messages import tr
from ..options import options_of
from ..settings import OUTTYPES
from . import texts
from .events import AT_ONCE
from .request import FURTHER_OPTIONS, KINDS
from .words import Words


@dataclass(frozen=True)
class MergeFields:
    """The fields of the form, in the order of ``request.Form``."""

    base: gr.Textbox
    adapters: gr.Dropdown
    output: gr.Textbox
    kind: gr.Radio
    outtype: gr.Dropdown
    further: tuple[Any, ...]

    @property
    def parts(self) -> list[Any]:
        """All of them."""
        return [self.base, self.adapters, self.output, self.kind, self.outtype, *self.further]


def make_merge_fields(words: Words) -> MergeFields:
    """Lay out the form."""
    base = _add(words, gr.Textbox, "base", max_lines=1)
    adapters = _add(
        words, gr.Dropdown, "adapters", choices=[], allow_custom_value=True, multiselect=True
    )
    output = _add(words, gr.Textbox, "output", max_lines=1, value="merged")
    kind = words.add(
        gr.Radio,
        {"label": texts.LABELS["kind"][0], "choices": texts.KIND_NAMES},
        value=next(iter(KINDS)),
        elem_id="kind",
    )
    outtype = _add(
        words, gr.Dropdown, "outtype", choices=list(OUTTYPES), value=OUTTYPES[0], visible=False
    )
    kind.change(lambda chosen: gr.update(visible=chosen == "gguf"), kind, outtype, **AT_ONCE)
    with words.add(gr.Accordion, {"label": texts.FURTHER}, open=False, elem_id="further"):
        further = tuple(_make_option(words, name) for name in FURTHER_OPTIONS)
    return MergeFields(base, adapters, output, kind, outtype, further)


def add_button(words: Words, name: str, **properties: Any) -> gr.Button:
    """Lay out a button; its name is also its id."""
    return words.add(gr.Button, {"value": texts.BUTTONS[name]}, elem_id=name, **properties)


def _add(words: Words, kind: type[Any], name: str, **properties: Any) -> Any:
    label, info = texts.LABELS[name]
    return words.add(kind, {"label": label, "info": info}, elem_id=name, **properties)


def _make_option(words: Words, name: str) -> Any:
    """A field for an option of the command line: the same name, help, choices and default."""
    one = options_of(MergeSettings)[name]
    label = {"info": one.help}
    if isinstance(one.default, bool):
        return words.add(gr.Checkbox, label, value=one.default, label=f"--{name}", elem_id=name)
    values = {"": tr("not given"), **{str(value): str(value) for value in one.arguments["choices"]}}
    return words.add(
        gr.Dropdown, {**label, "choices": values}, value="", label=f"--{name}", elem_id=name
    )


@dataclass(frozen=True)
class ChatFields:
    """Who is asked what."""

    base: gr.Textbox
    merged: gr.Textbox
    prompt: gr.Textbox
    template: gr.Dropdown
    temperature: gr.Slider
    max_tokens: gr.Slider

    @property
    def parts(self) -> list[Any]:
        """All of them."""
        return [
            *(self.base, self.merged, self.prompt),
            *(self.template, self.temperature, self.max_tokens),
        ]


def make_chat_fields(words: Words) -> ChatFields:
    """Lay out the question."""
    defaults = ChatSettings()
    with gr.Row():
        base = _add(words, gr.Textbox, "chat_base", max_lines=1)
        merged = _add(words, gr.Textbox, "chat_merged", max_lines=1)
    prompt = _add(words, gr.Textbox, "prompt", lines=2, max_lines=8)
    with gr.Row():
        template = _add(
            words, gr.Dropdown, "template", choices=list(TEMPLATES), value=defaults.template
        )
        temperature = _add(
            words, gr.Slider, "temperature", minimum=0, maximum=2, value=defaults.temperature
        )
        max_tokens = _add(
            words,
            gr.Slider,
            "max_tokens",
            minimum=1,
            maximum=2048,
            step=1,
            value=defaults.max_tokens,
        )
    return ChatFields(base, merged, prompt, template, temperature, max_tokens)
