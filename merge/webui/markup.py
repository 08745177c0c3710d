"""The parts of the page that are HTML; whatever stands in them is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..errors import shown
from ..messages import tr
from ..sizes import size_text
from ..version import REPORT_HTML
from .languages import Texts, translate_to
from .merges import Progress

# A report has some hundred kilobytes; a browser shows no page of this size well.
_MOST_BYTES = 20_000_000
SUGGESTIONS = "clm-models"
_REFUSED = tr("This cannot be merged as it is")


def show_plan(event: Mapping[str, Any], language: str) -> str:
    """What ``merges.plan`` has found: the plan and its warnings, or why there is none."""
    if event["event"] != "planned":
        return _box("error", _REFUSED, [event["text"][language]], language)
    return show_result(event, language, tr("The plan"), "good")


def show_result(event: Mapping[str, Any], language: str, title: str, kind: str) -> str:
    """Facts, and under them what to know before the result is used."""
    facts = [texts[language] for texts in event["facts"]]
    warnings = [texts[language] for texts in event["warnings"]]
    box = _box(kind, title, facts, language)
    if not warnings:
        return box + _quiet(tr("No warnings."), language)
    items = "".join(f"<li>{escape(shown(text, lines=True))}</li>" for text in warnings)
    head = escape(translate_to(language, tr("To know before the result is used")))
    return (
        f'{box}<div class="clm-box clm-warning" role="alert"><h3>{head}</h3><ul>{items}</ul></div>'
    )


def show_notice(text: str, language: str) -> str:
    """One sentence, for instance that the form was changed."""
    return _quiet(text, language)


def show_progress(progress: Progress, language: str, now: float) -> str:
    """A bar while a merge goes on, and what came of it."""
    if progress.state == "done":
        event = {"facts": progress.facts, "warnings": progress.warnings}
        return show_result(event, language, tr("The merge is done"), "good")
    if progress.state == "failed":
        texts: Texts = progress.error or {}
        return _box("error", tr("The merge has failed"), [texts.get(language, "")], language)
    if progress.state == "cancelled":
        text = tr("What is written so far is kept; Resume goes on from there, now or later.")
        return _box(
            "warning", tr("The merge is cancelled"), [translate_to(language, text)], language
        )
    return _show_bar(progress, language, now)


def _show_bar(progress: Progress, language: str, now: float) -> str:
    label = translate_to(language, _describe_progress(progress, now))
    value = f'value="{progress.done}" max="{progress.total}"' if progress.total else ""
    return (
        f'<div class="clm-progress" role="status"><progress {value} aria-label="{escape(label)}">'
        f"</progress><div>{escape(label)}</div></div>"
    )


def _describe_progress(progress: Progress, now: float) -> str:
    if progress.is_cancelling:
        return tr("being cancelled: what is written is put in order")
    if progress.state == "waiting":
        return tr("waiting: another merge of this page comes first")
    if not progress.total:
        return tr("reading the inputs")
    values = {
        "percent": f"{100 * progress.done // progress.total} %",
        "done": size_text(progress.done),
        "total": size_text(progress.total),
    }
    left = progress.seconds_left(now)
    if left is None:
        return tr("{percent}, {done} of {total}", **values)
    return tr("{percent}, {done} of {total}, {left} left", left=duration_text(left), **values)


def duration_text(seconds: float) -> str:
    """Minutes and seconds.

    >>> duration_text(75.2), duration_text(3700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_report(folder: Path, language: str) -> str:
    """The report that a merge wrote, in a frame that can do nothing to the page around it."""
    path = folder / REPORT_HTML
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return ""
    title = escape(translate_to(language, tr("Report of the merge")))
    content = escape(path.read_text(encoding="utf-8", errors="replace"))
    return f'<iframe class="clm-report" title="{title}" sandbox srcdoc="{content}"></iframe>'


def show_answer(text: str, note: str, language: str) -> str:
    """What a model says, and above it what it does."""
    said = escape("".join(c if c.isprintable() or c in "\n\t" else " " for c in text))
    return f'{_quiet(note, language)}<div class="clm-box clm-answer" role="log">{said}</div>'


def list_suggestions(names: Iterable[str]) -> str:
    """Names that the browser offers while one is typed, in fields that refer to this list."""
    options = "".join(f'<option value="{escape(name)}"></option>' for name in names)
    return f'<datalist id="{SUGGESTIONS}">{options}</datalist>'


def _box(kind: str, title: str, lines: Iterable[str], language: str) -> str:
    head = escape(translate_to(language, title))
    body = escape("\n".join(shown(line, lines=True) for line in lines))
    role = ' role="alert"' if kind in ("error", "warning") else ""
    return f'<div class="clm-box clm-{kind}"{role}><h3>{head}</h3><pre>{body}</pre></div>'


def _quiet(text: str, language: str) -> str:
    return f'<div class="clm-quiet">{escape(translate_to(language, text))}</div>'
