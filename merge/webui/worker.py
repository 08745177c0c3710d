"""The child process that reads and writes models for the page.

It gets a request as a line of JSON on standard input, and answers with events, one a line, on
standard output. A merge is interrupted, as by Ctrl-C, when its input ends: the page closes it, or
has ended itself. Texts for people are in every language.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import MergeError, as_merge_error
from ..interruption import deferred_signals
from ..messages import join, tr, used_language
from ..sizes import size_text
from .languages import translate_to_all

if TYPE_CHECKING:
    from ..inference.opening import Models
    from ..jobs.job_report import Report

Emit = Callable[..., None]
# How long an orderly end may take; the files are then as after a power cut, for --resume.
_GRACE_SECONDS = 10.0
# The page shows progress no more often.
_SECONDS_BETWEEN = 0.2


def main() -> None:
    """Serve one request, and end the process."""
    emit = _take_output()
    request = json.loads(sys.stdin.readline())
    tasks = {"plan": _plan, "merge": _merge, "chat": _chat}
    try:
        with used_language(request["language"]):
            tasks[request["task"]](request, emit)
    except (MergeError, OSError) as error:
        emit("error", text=translate_to_all(as_merge_error(error)))
    except KeyboardInterrupt:
        emit("cancelled")
    except Exception as error:  # noqa: BLE001 the page must tell; the rest is for its terminal
        traceback.print_exc()
        emit("error", text=translate_to_all(_describe_failure(error)))
    sys.stderr.flush()
    os._exit(0)  # the thread that reads standard input never ends by itself


def _describe_failure(error: Exception) -> str:
    return tr(
        "this program failed: {kind}: {error}. The terminal from which the page was started has "
        "the details.",
        kind=type(error).__name__,
        error=str(error),
    )


def _take_output() -> Emit:
    """Keep standard output for events; what libraries print goes to standard error."""
    stream: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    lock = threading.Lock()

    def emit(event: str, **values: Any) -> None:
        with lock:
            stream.write(json.dumps({"event": event, **values}) + "\n")
            stream.flush()

    return emit


def _plan(request: Mapping[str, Any], emit: Emit) -> None:
    with _interrupted_by_input():
        report = _run_merge(request, dry_run=True)
    facts = [*report.inputs, *report.changes, _describe_files(report)]
    if request["merge"].get("resume"):
        facts.append(tr("an interrupted merge is in that folder: it is resumed"))
    emit("planned", facts=_translate_each(facts), warnings=_translate_each(report.all_notes()))


def _merge(request: Mapping[str, Any], emit: Emit) -> None:
    last = 0.0

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= _SECONDS_BETWEEN:
            last = now
            emit("progress", done=done, total=total)

    with _interrupted_by_input():
        report = _run_merge(request, on_progress=show)
    emit(
        "done",
        facts=_translate_each([_describe_files(report)]),
        warnings=_translate_each(report.all_notes()),
        seconds=report.seconds,
    )


def _run_merge(request: Mapping[str, Any], **more: Any) -> Report:
    from ..jobs.merge_lora import merge_lora

    return merge_lora(**request["merge"], **more)


def _describe_files(report: Report) -> str:
    names = list(report.plan.files)
    return tr(
        "writes {files}: {size} of weights, {room} of disk space",
        files=", ".join(names) if len(names) <= 4 else f"{names[0]} ... {names[-1]}",
        size=size_text(report.plan.tensor_bytes),
        room=size_text(report.plan.disk_bytes),
    )


def _translate_each(texts: Iterator[str] | list[str] | tuple[str, ...]) -> list[dict[str, str]]:
    return [translate_to_all(text) for text in texts]


def _interrupted_by_input() -> Any:
    """Let the end of standard input interrupt the main thread as Ctrl-C does."""
    # A process that was started in the background of a shell ignores it otherwise.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch() -> None:
        while sys.stdin.readline():
            pass
        if hasattr(os, "killpg"):
            os.kill(os.getpid(), signal.SIGINT)  # unlike raise_signal this ends a wait for a lock
        else:
            signal.raise_signal(signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()
    return deferred_signals(_GRACE_SECONDS)


def _chat(request: Mapping[str, Any], emit: Emit) -> None:
    """Answer questions with each model until the input ends."""
    from ..inference.opening import Models, find_model
    from ..inference.settings import ChatSettings

    questions: SimpleQueue[dict[str, Any]] = SimpleQueue()
    stopped: set[int] = set()
    threading.Thread(target=_read_questions, args=(questions, stopped), daemon=True).start()
    models = Models([find_model(name) for name in request["models"]], ChatSettings())
    while True:
        question = questions.get()
        number = question["number"]
        try:
            _answer(models, question, partial(stopped.__contains__, number), emit)
        except (MergeError, OSError) as error:
            emit("refused", number=number, text=translate_to_all(as_merge_error(error)))
        emit("answered", number=number)


def _read_questions(questions: SimpleQueue[dict[str, Any]], stopped: set[int]) -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "stop" in message:
            stopped.add(message["stop"])
        else:
            questions.put(message)
    os._exit(0)  # nothing is written here, so nothing has to be put in order


def _answer(
    models: Models, question: Mapping[str, Any], is_stopped: Callable[[], bool], emit: Emit
) -> None:
    from ..inference.settings import ChatSettings
    from ..inference.talk import Talk, choose_prompting

    settings = ChatSettings(**question["settings"])
    last = len(models.sources) - 1
    _announce(models, last, emit)
    prompting = choose_prompting(models.get(last), settings)
    emit("template", name=translate_to_all(join("", [prompting.name])))
    for index in range(len(models.sources)):
        if is_stopped():
            return
        _announce(models, index, emit)
        with closing(Talk(prompting, settings).ask(models.get(index), question["text"])) as pieces:
            for piece in pieces:
                emit("piece", index=index, text=piece)
                if is_stopped():
                    return


def _announce(models: Models, index: int, emit: Emit) -> None:
    if not models.is_open(index):
        emit("loading", index=index)


if __name__ == "__main__":
    main()
