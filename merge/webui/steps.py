"""Check, merge, cancel: the steps of a merge on the page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..errors import MergeError
from . import texts
from .events import AT_ONCE, QUEUED
from .fields import MergeFields, add_button
from .languages import translate_to, translate_to_all
from .markup import list_suggestions, show_notice, show_plan, show_progress, show_report
from .merges import Merge, Merges, Progress, plan
from .request import Form, to_model_name
from .root import Root
from .words import Words


@dataclass(frozen=True)
class Checked:
    """A form that was checked, and what came of it; only what went well may be merged."""

    form: Form
    event: dict[str, Any]

    @property
    def is_good(self) -> bool:
        """Whether it may be merged."""
        return bool(self.event["event"] == "planned")


class MergeSteps:
    """The buttons under the form, and what they show."""

    def __init__(
        self, root: Root, merges: Merges, words: Words, switch: gr.Radio, fields: MergeFields
    ) -> None:
        self._root, self._merges, self._fields, self._switch = root, merges, fields, switch
        with gr.Row():
            self._refresh = add_button(words, "refresh")
            self.check_button = add_button(words, "check", variant="primary", interactive=False)
        self._suggestions = gr.HTML(list_suggestions([]), padding=False, elem_id="suggestions")
        self._plan = gr.HTML(padding=False, elem_id="plan")
        with gr.Row():
            self._merge = add_button(words, "merge", variant="primary", interactive=False)
            self._cancel = add_button(words, "cancel", variant="stop", interactive=False)
        self.adopt_button = add_button(words, "adopt", visible=False)
        self._progress = gr.HTML(padding=False, elem_id="progress")
        words.add(gr.Markdown, {"value": texts.HEADINGS["report_part"]})
        self._report = gr.HTML(padding=False, elem_id="report")
        self._checked, self._ended = gr.State(None), gr.State(None)
        self.states = [self._checked, self._ended]
        self.translated = [self._plan, self._progress, self._report]

    @property
    def model_lists(self) -> list[Any]:
        """Where models below the root are offered."""
        return [self._suggestions, self._fields.adapters]

    def connect(self, chat_base: gr.Textbox, chat_merged: gr.Textbox) -> None:
        """Let the buttons work; a result is offered in ``chat_merged``, beside its base."""
        self._chat_base, self._chat_merged = chat_base, chat_merged
        form = self._fields.parts
        now = [self._switch, self._checked, *form]
        checking = [self._plan, self._merge, self._checked]
        merging = [
            *(self._plan, self._merge, self._cancel, self.adopt_button, self._progress),
            *(self._report, self._checked, self._ended, chat_base, chat_merged),
        ]
        self.check_button.click(
            self._on_check, [self._switch, *form], checking, trigger_mode="always_last", **QUEUED
        ).then(self._on_change, now, checking, **AT_ONCE)
        gr.on(
            [field.change for field in form],
            self._on_change,
            now,
            checking,
            trigger_mode="always_last",
            **AT_ONCE,
        )
        self._merge.click(self._on_merge, now, merging, **QUEUED)
        self._cancel.click(self._on_cancel, None, None, **AT_ONCE)
        self.adopt_button.click(self._on_adopt, self._switch, merging, **QUEUED)
        self._refresh.click(self.find_models, None, self.model_lists, **AT_ONCE)

    def find_models(self) -> dict[Any, Any]:
        """Offer what is below the root."""
        models, adapters = self._root.list_models()
        return {
            self._suggestions: list_suggestions(models),
            self._fields.adapters: gr.update(choices=adapters),
        }

    def open(self) -> dict[Any, Any]:
        """Let the form be used, and offer to watch a merge whose tab was closed."""
        is_left = self._merges.of_tab(None) is not None
        return {
            self.check_button: gr.update(interactive=True),
            self.adopt_button: gr.update(visible=is_left),
        }

    def translate(
        self, language: str, checked: Checked | None, ended: Merge | None
    ) -> dict[Any, Any]:
        """What is shown already, in another language."""
        plan_text = show_plan(checked.event, language) if checked else None
        shown = {self._plan: plan_text or show_notice(texts.NOT_CHECKED, language)}
        report = show_report(ended.output, language) if ended else ""
        shown[self._report] = report or show_notice(texts.NO_REPORT, language)
        if ended and ended.progress.is_over:
            shown[self._progress] = show_progress(ended.progress, language, time.monotonic())
        return shown

    def _on_check(self, language: str, *values: Any) -> Iterator[dict[Any, Any]]:
        disabled = gr.update(interactive=False)
        yield {
            self._plan: show_notice(texts.CHECKING, language),
            self._merge: disabled,
            self._checked: None,
        }
        form = Form.read(values)
        try:
            event = plan(self._root, form.to_keywords(self._root), language)
        except MergeError as error:
            event = {"event": "error", "text": translate_to_all(error)}
        checked = Checked(form, event)
        label = translate_to(language, texts.BUTTONS["merge"])
        yield {
            self._plan: show_plan(event, language),
            self._merge: gr.update(interactive=checked.is_good, value=label),
            self._checked: checked,
        }

    def _on_change(self, language: str, checked: Checked | None, *values: Any) -> dict[Any, Any]:
        """Take the plan away when the form is no longer the one that was checked."""
        if checked is None or checked.form == Form.read(values):
            return {self._merge: gr.skip()}
        return self._forget(language)

    def _forget(self, language: str) -> dict[Any, Any]:
        return {
            self._plan: show_notice(texts.CHANGED, language),
            self._merge: gr.update(interactive=False),
            self._checked: None,
        }

    def _on_merge(
        self, request: gr.Request, language: str, checked: Checked | None, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        """Merge what was checked, and nothing else, whatever the browser sends."""
        form = Form.read(values)
        if checked is None or not checked.is_good or checked.form != form:
            yield self._forget(language)
            return
        try:
            keywords = form.to_keywords(self._root)
            merge = self._merges.begin(keywords, request.session_hash or "", language)
        except MergeError as error:
            failed = Progress("failed", error=translate_to_all(error))
            yield {self._progress: show_progress(failed, language, time.monotonic())}
            return
        for shown in self._watch(merge, language):
            if merge.progress.state == "done":
                shown[self._chat_base] = form.base
                shown[self._chat_merged] = to_model_name(form.output, self._root)
            yield shown

    def _watch(self, merge: Merge, language: str) -> Iterator[dict[Any, Any]]:
        for progress in merge.watch():
            shown: dict[Any, Any] = {
                self._progress: show_progress(progress, language, time.monotonic()),
                self._cancel: gr.update(interactive=not progress.is_over),
                self._merge: gr.update(interactive=False),
            }
            if progress.state == "cancelled":
                label = translate_to(language, texts.RESUME)
                shown[self._merge] = gr.update(interactive=True, value=label)
            if progress.is_over:
                shown[self._ended] = merge
                report = show_report(merge.output, language) if progress.state == "done" else ""
                shown[self._report] = report or show_notice(texts.NO_REPORT, language)
            yield shown

    def _on_cancel(self, request: gr.Request) -> None:
        merge = self._merges.of_tab(request.session_hash)
        if merge is not None:
            merge.cancel()

    def _on_adopt(self, language: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Watch a merge whose tab was closed."""
        yield {self.adopt_button: gr.update(visible=False)}
        merge = self._merges.adopt(request.session_hash or "")
        if merge is not None:
            yield from self._watch(merge, language)
