"""The page: its parts, and what happens on each click.

What a tab has chosen, checked and begun belongs to its session: ``gr.State`` on the server, and the
session's hash as the name of the tab.
"""

from __future__ import annotations

import gradio as gr

from ..messages import LANGUAGES, compose, find_language
from . import texts
from .ask import add_chat
from .events import AT_ONCE
from .fields import make_chat_fields, make_merge_fields
from .languages import choose_language
from .markup import SUGGESTIONS
from .merges import Merges
from .root import Root
from .steps import MergeSteps
from .talker import Talker
from .words import Words, combine

_LANGUAGE_NAMES = {"en": "English", "zh": "中文"}
_SET_LANGUAGE = "(language) => { document.documentElement.lang = language; return language; }"
# The browser's own list under a field, in which anything else can be typed too.
_OFFER_MODELS = (
    "() => ['base', 'chat_base', 'chat_merged'].forEach(name => "
    f"document.querySelector(`#${{name}} input`).setAttribute('list', '{SUGGESTIONS}'))"
)


def make_page(root: Root, merges: Merges, talker: Talker, language: str | None) -> gr.Blocks:
    """Make the page. ``language`` is that of every browser; with None each browser says its own."""
    default = language or find_language()
    words = Words(default)
    page: gr.Blocks = gr.Blocks(title=texts.TITLE, analytics_enabled=False)
    with page:
        switch = _make_head(words, root, default)
        words.add(gr.Markdown, {"value": texts.HEADINGS["merge_part"]})
        steps = MergeSteps(root, merges, words, switch, make_merge_fields(words))
        words.add(gr.Markdown, {"value": texts.HEADINGS["chat_part"]})
        chat = make_chat_fields(words)
        add_chat(root, talker, words, switch, chat)
        steps.connect(chat.base, chat.merged)
        shown = [*words.parts, *steps.translated]
        switch.input(
            lambda chosen, *states: {**words.updates(chosen), **steps.translate(chosen, *states)},
            [switch, *steps.states],
            shown,
            **AT_ONCE,
        ).then(None, switch, None, js=_SET_LANGUAGE)

        def load(request: gr.Request) -> dict[gr.Component, object]:
            chosen = language or choose_language(
                request.headers.get("accept-language", ""), default
            )
            first = {switch: chosen, **steps.translate(chosen, None, None)}
            return combine(first, words.updates(chosen), steps.find_models(), steps.open())

        def leave(request: gr.Request) -> None:
            merges.leave(request.session_hash or "")

        targets = [switch, *shown, *steps.model_lists, steps.check_button, steps.adopt_button]
        loading = page.load(load, None, list(dict.fromkeys(targets)), **AT_ONCE)
        loading.then(None, switch, None, js=_SET_LANGUAGE)
        loading.then(None, None, None, js=_OFFER_MODELS)
        page.unload(leave)
    page.queue(default_concurrency_limit=None, api_open=False)
    return page


def _make_head(words: Words, root: Root, language: str) -> gr.Radio:
    with gr.Row(equal_height=False, elem_classes="clm-head"):
        words.add(gr.Markdown, {"value": compose("# {title}", title=texts.TITLE)})
        switch = gr.Radio(
            [(_LANGUAGE_NAMES[name], name) for name in LANGUAGES],
            value=language,
            show_label=False,
            container=False,
            elem_id="language",
            min_width=220,
            scale=0,
        )
    introduction = texts.describe_page(root.folder)
    words.add(gr.Markdown, {"value": introduction}, sanitize_html=True)
    return switch
