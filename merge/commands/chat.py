"""``chat``: try a model out on the terminal."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING
from unicodedata import category

from ..errors import MergeError, shown
from ..inference.settings import ChatSettings
from ..interruption import INTERRUPTED
from ..messages import tr, translate
from .common import DONE, add_options, add_output_volume_options, command_parser, keywords_of, run
from .language import say

if TYPE_CHECKING:
    from ..inference.opening import Models
    from ..inference.talk import Talk

_DESCRIPTION = tr("""\
Talk to a model: a Hugging Face folder through transformers, a GGUF file through llama.cpp. Answers
appear as they are written. With --base both models answer each question, one after the other, each
question by itself.
""")
_EPILOG = tr("""\
examples:
  %(prog)s chinese-alpaca-2-7b --template alpaca2
  %(prog)s alpaca2-gguf/ggml-model-q4_k_m.gguf \\
      --prompt "为什么要减少污染，保护环境？"
  %(prog)s chinese-alpaca-7b --base llama-7b-hf --template alpaca --temperature 0

On a terminal: an empty line does nothing, /forget begins a new talk, Ctrl-C stops an answer,
another Ctrl-C or Ctrl-D leaves. From a pipe every line is a question.

exit codes: 0 done, 2 wrong input, 130 interrupted
""")
_FORGET = "/forget"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run(make_parser(), _chat, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EPILOG)
    group = parser.add_argument_group(tr("who is asked"))
    group.add_argument(
        "model", metavar="MODEL", help=tr("Hugging Face folder, Hub id, GGUF file or its folder")
    )
    group.add_argument(
        "--base",
        metavar="BASE",
        help=tr(
            "a second model that answers first, such as the base of the merge; "
            "both stay in memory if they fit, else one is loaded at a time"
        ),
    )
    group.add_argument("--prompt", metavar="TEXT", help=tr("answer this and end"))
    add_options(parser, ChatSettings, group)
    add_output_volume_options(parser)
    return parser


def _chat(args: argparse.Namespace) -> int:
    from ..inference.opening import Models, find_model
    from ..inference.talk import Talk, choose_prompting

    settings = ChatSettings(**keywords_of(ChatSettings, args))
    names = [name for name in (args.base, args.model) if name is not None]
    sources = [find_model(name) for name in names]
    screen = _Screen(args.quiet)
    with closing(Models(sources, settings)) as models, _stop_key() as stop:
        try:
            screen.note_loading(models, len(sources) - 1)
            prompting = choose_prompting(models.get(len(sources) - 1), settings)
            screen.note(tr("template: {name}", name=prompting.name))
            session = _Session(models, Talk(prompting, settings), screen, stop)
            if args.prompt is not None:
                session.answer(args.prompt)
            else:
                session.answer_all()
        except KeyboardInterrupt:
            screen.note("")
            return INTERRUPTED
    return DONE


class _StopKey:
    """What Ctrl-C means at this moment: the end of the answer, or of the program."""

    def __init__(self) -> None:
        self.is_answering = False
        self.wanted = Event()

    def press(self, number: int, frame: FrameType | None) -> None:
        """Note the first one in an answer; raise ``KeyboardInterrupt`` for any other."""
        if not self.is_answering or self.wanted.is_set():
            raise KeyboardInterrupt
        self.wanted.set()

    @contextmanager
    def answering(self) -> Iterator[Event]:
        """A block that one Ctrl-C may end, by the event."""
        self.wanted.clear()
        self.is_answering = True
        try:
            yield self.wanted
        finally:
            self.is_answering = False


@contextmanager
def _stop_key() -> Iterator[_StopKey]:
    """Nothing is written here, so Ctrl-C need not wait for an orderly moment as in other jobs."""
    key = _StopKey()
    before = signal.signal(signal.SIGINT, key.press)
    try:
        yield key
    finally:
        signal.signal(signal.SIGINT, before)


class _Screen:
    """Answers on standard output, everything else on standard error."""

    def __init__(self, quiet: bool) -> None:
        self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._quiet = quiet

    def note(self, text: str) -> None:
        if not self._quiet:
            print(shown(translate(text)), file=sys.stderr, flush=True)

    def note_loading(self, models: Models, index: int) -> None:
        if not models.is_open(index):
            self.note(tr("loading {path}", path=models.sources[index].path))

    def read_questions(self) -> Iterator[str]:
        """The lines of standard input that are not empty."""
        if not self.is_terminal:
            if hasattr(sys.stdin, "reconfigure"):
                sys.stdin.reconfigure(encoding="utf-8", errors="replace")
            yield from filter(None, (line.strip() for line in sys.stdin))
            return
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print()
                return
            if line:
                yield line


class _Session:
    """Questions and their answers, by one model or by two in turn."""

    def __init__(self, models: Models, talk: Talk, screen: _Screen, stop: _StopKey) -> None:
        self._models, self._talk, self._screen, self._stop = models, talk, screen, stop

    def answer_all(self) -> None:
        """Answer until the input ends; on a terminal a question that is refused is not the end."""
        for question in self._screen.read_questions():
            if question == _FORGET:
                self._talk.forget()
                continue
            try:
                self.answer(question)
            except MergeError as error:
                if not self._screen.is_terminal:
                    raise
                say(tr("error: {error}", error=error), sys.stderr)

    def answer(self, question: str) -> None:
        """Print the answer of each model."""
        many = len(self._models.sources) > 1
        for index, source in enumerate(self._models.sources):
            self._screen.note_loading(self._models, index)
            model = self._models.get(index)
            if many:
                print(f"[{shown(str(source.path))}]")
                self._talk.forget()
            with self._stop.answering() as stopped:
                self._print_answer(self._talk.ask(model, question), stopped)
            print("\n" if many and index == 0 else "")

    def _print_answer(self, pieces: Generator[str, None, None], stopped: Event) -> None:
        with closing(pieces):
            for piece in pieces:
                print(_printable(piece), end="", flush=True)
                if stopped.is_set():
                    print(" ...", end="")
                    break


def _printable(text: str) -> str:
    """What a model says, without what could command the terminal."""
    return "".join(c if c in "\n\t" or category(c) != "Cc" else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    sys.exit(main())
