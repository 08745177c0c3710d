"""What every command shares: exit codes, error messages, the common options."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import MergeError, UsageError, as_merge_error
from ..interruption import INTERRUPTED, Interrupted, deferred_signals
from ..messages import compose, join, tr, translate
from ..options import GROUPS, INPUTS, options_of
from ..outtypes import QUANTIZED_OUTTYPES
from .completion import complete, is_completing
from .given_options import read_given, require_all
from .language import HelpFormatter, add_language_option, chosen_language, say
from .machine import FLAG, describe_error, print_json

if TYPE_CHECKING:
    from ..jobs.job_report import Report

DONE, DIFFERENT, WRONG_INPUT = 0, 1, 2


# An orderly end takes milliseconds; only a slow disk that flushes, or a
# library that is being loaded, take longer. Ending at once then loses no more than a power cut.
_GRACE_SECONDS = 1.0
# How soon a thread that reads, hashes or writes gets its turn while Python's code runs, such as the
# two seconds of torch's import.
_SWITCH_SECONDS = 5e-4


def run(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse ``argv`` and run ``command``; return the exit code of the process.

    0 done, 1 a check found a difference, 2 wrong input or usage, 130 interrupted, 143 terminated. A
    mistake in the input gives one message on standard error; the traceback is shown only with
    ``--verbose``. Without ``argv`` the process is the command's alone, and ends here.
    """
    code = _run(parser, command, argv)
    if argv is None:
        exit_immediately(code)
    return code


def exit_immediately(code: int) -> NoReturn:
    """End the process without taking the interpreter apart, which takes half a second with torch.

    As Python does, turn the code into 120 where output cannot be written.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    os._exit(code)


def _run(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    if is_completing():
        complete(parser)
    sys.setswitchinterval(_SWITCH_SECONDS)
    for stream in (sys.stdout, sys.stderr):  # a Windows console may not be UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    # What programs read is the same in every language.
    words = sys.argv[1:] if argv is None else argv
    as_json = FLAG in words and FLAG in parser._option_string_actions
    with chosen_language(["--lang", "en"] if as_json else words, parser):
        return _parse_and_run(parser, command, argv)


def _parse_and_run(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    try:
        args = parser.parse_args(argv)
    except (MergeError, OSError) as error:
        words = sys.argv[1:] if argv is None else argv
        return _report_end(error, argparse.Namespace(as_json=FLAG in words), is_done=False)
    codes = []
    try:
        with deferred_signals(_GRACE_SECONDS):
            codes.append(command(args))
    except _ENDINGS as error:
        return _report_end(error, args, is_done=bool(codes))
    return codes[0]


# What ends a command other than its own exit code.
_ENDINGS = (MergeError, OSError, KeyboardInterrupt)


def _report_end(error: BaseException, args: argparse.Namespace, is_done: bool) -> int:
    """Print what ended a command; return the exit code."""
    if getattr(args, "verbose", False):
        traceback.print_exc()
    as_json = getattr(args, "as_json", False)
    if isinstance(error, (MergeError, OSError)):
        if as_json:
            print_json({"error": describe_error(error)})
        else:
            _say_error(as_merge_error(error))
        return WRONG_INPUT
    unfinished = tr("nothing was written under a final name")
    state = str(error) or (tr("everything was done by then") if is_done else unfinished)
    if as_json:
        print_json({"error": {**describe_error(MergeError(state)), "kind": "interrupted"}})
    else:
        say(tr("interrupted: {state}", state=state), sys.stderr)
    return error.exit_code if isinstance(error, Interrupted) else INTERRUPTED


def _say_error(error: MergeError) -> None:
    say(tr("error: {error}", error=explain(error)), sys.stderr)


def explain(error: MergeError) -> str:
    """The message of an error, and the page that says more."""
    if error.topic is None:
        return compose("{error}", error=error)
    return tr("{error}\n  see {page}", error=error, page=error.topic.page)


class CommandParser(argparse.ArgumentParser):
    """A parser that takes options from files too, and whose mistakes may be JSON."""

    _words: Sequence[str] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The values of words and files. Raises ``MergeError`` for a file that is not right."""
        self._words = sys.argv[1:] if args is None else args
        given = read_given(self, self._words)
        if given is None:
            return super().parse_args(args, namespace)
        require_all(self, given)
        return given

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Add to argparse's refusal of a value the one that was probably meant."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if close := get_close_matches(str(value), map(str, action.choices or ()), 1):
                error.message += translate(tr("; did you mean {value}?", value=close[0]))
            raise

    def error(self, message: str) -> NoReturn:
        """Print usage and the mistake, or JSON, with what was probably meant; exit with 2."""
        known = self._option_string_actions
        names = [word.partition("=")[0] for word in self._words if word.startswith("--")]
        for name in names:
            close = [] if name in known else get_close_matches(name, known, 1)
            if close:
                meant = tr("; did you mean {option} by {name}?", option=close[0], name=name)
                message += translate(meant)
        if FLAG in self._words and FLAG in self._option_string_actions:
            print_json({"error": describe_error(UsageError(message))})
            self.exit(WRONG_INPUT)
        super().error(message)


_NEGATIVE_NUMBERS = re.compile(r"-[\d.][\d.,e+-]*")


def command_parser(description: str, examples: str | None = None) -> argparse.ArgumentParser:
    """Make a parser that keeps the lines of its texts and takes no abbreviated options."""
    parser = CommandParser(
        description=description,
        epilog=examples,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    # argparse takes "-1,0.5" for an option; only words that this matches are numbers to it.
    parser._negative_number_matcher = _NEGATIVE_NUMBERS
    return parser


def run_job(args: argparse.Namespace, job: Callable[..., Report], doing: str) -> int:
    """Run a job with progress on the screen, print what it did, and return the exit code."""
    report = run_with_progress(args, job, doing)
    if getattr(args, "as_json", False):
        print_json(report.as_json())
    elif not args.quiet:
        say(report.summary())
    return DONE


def run_with_progress(
    args: argparse.Namespace, job: Callable[..., Report], doing: str, **more: Any
) -> Report:
    """Run a job with its options among ``args`` and ``more``, and progress on the screen.

    ``doing`` is what the progress calls the work of this job; what its options add is named too.
    """
    from .progress import progress_bar

    if getattr(args, "from_manifest", None) and not args.allow_changed_inputs:
        more["same_inputs_as"] = args.from_manifest
    with progress_bar(args.quiet, _list_work(args, doing)) as on_progress:
        return job(on_progress=on_progress, **keywords_of(job, args), **more)


def _list_work(args: argparse.Namespace, doing: str) -> str:
    """All that happens to the bytes of which progress is shown, in order."""
    from ..output.journal import JOURNAL_NAME
    from ..storage.urls import is_url
    from ..user_paths import expand_user

    output = str(args.output_dir)
    interrupted = args.resume and (expand_user(output) / JOURNAL_NAME).exists()
    quantized = str(getattr(args, "outtype", "")).lower() in QUANTIZED_OUTTYPES
    work = (
        *((tr("hashing"),) if interrupted else ()),
        doing,
        *((tr("quantizing"),) if quantized else ()),
        *((tr("uploading"),) if is_url(output) else ()),
    )
    return join(tr(", "), work)


def keywords_of(job: Callable[..., object], args: argparse.Namespace) -> dict[str, Any]:
    """Return the values on the command line that are parameters of ``job``, by name.

    >>> keywords_of(lambda output_dir, resume: None, argparse.Namespace(resume=True, quiet=False))
    {'resume': True}
    """
    return {name: value for name, value in vars(args).items() if name in signature(job).parameters}


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the text that a tokenizer is trained on."""
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE_OR_DIR",
        help=tr("UTF-8 text: .txt, .jsonl, either also as .gz; of a folder everything below it"),
    )
    parser.add_argument(
        "--json_field",
        default="text",
        metavar="NAME",
        help=tr("of .jsonl lines (default: %(default)s)"),
    )


def add_output_volume_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--verbose``, ``--quiet`` and ``--lang``."""
    group = parser.add_argument_group(tr("messages"))
    group.add_argument("--verbose", action="store_true", help=tr("say more, tracebacks included"))
    group.add_argument("--quiet", action="store_true", help=tr("print errors only"))
    add_language_option(group)


def add_options(
    parser: argparse.ArgumentParser, kind: type, inputs: argparse._ArgumentGroup
) -> None:
    """Add the options of ``kind``, a class of settings, in the groups of ``options.GROUPS``.

    The command's own ``inputs`` are the first group.
    """
    options = options_of(kind)
    for title in GROUPS:
        names = [name for name, one in options.items() if one.group == title]
        group = inputs if title == INPUTS or not names else parser.add_argument_group(title)
        for name in names:
            add_option(group, kind, name)


def add_option(group: argparse._ArgumentGroup, kind: type, name: str, **changes: Any) -> None:
    """Add one option of ``kind``; ``changes`` replace arguments of argparse."""
    one = options_of(kind)[name]
    default = None if one.default == () else one.default  # argparse appends to a list of its own
    arguments = {"default": default, "help": one.help, **one.arguments, **changes}
    group.add_argument(f"--{name}", **arguments)
