"""The language of a command: chosen before its parser is read, and used for all that it prints."""

from __future__ import annotations

import argparse
import gettext
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TextIO

from ..messages import (
    DOMAIN,
    LANGUAGES,
    LOCALE_DIR,
    column_width,
    find_language,
    get_locale_name,
    tr,
    translate,
    used_language,
)

_OPTION = "--lang"


def add_language_option(group: argparse._ArgumentGroup) -> None:
    """Add ``--lang``, which ``chosen_language`` has read by the time the parser reads it."""
    group.add_argument(
        _OPTION,
        choices=LANGUAGES,
        help=tr("language of what is printed (default: the locale's)"),
    )


@contextmanager
def chosen_language(argv: Sequence[str] | None, parser: argparse.ArgumentParser) -> Iterator[None]:
    """Use the language that ``--lang`` names, else the locale's, in the parser and meanwhile."""
    language = _find_option(sys.argv[1:] if argv is None else argv) or find_language()
    # argparse looks up its own words in the domain and language that are the process's.
    before = gettext.textdomain(), os.environ.get("LANGUAGE")
    gettext.bindtextdomain(DOMAIN, LOCALE_DIR)
    gettext.textdomain(DOMAIN)
    os.environ["LANGUAGE"] = get_locale_name(language)
    try:
        with used_language(language):
            _translate_parser(parser)
            yield
    finally:
        gettext.textdomain(before[0])
        os.environ.pop("LANGUAGE")
        if before[1] is not None:
            os.environ["LANGUAGE"] = before[1]


def _find_option(words: Sequence[str]) -> str | None:
    """The value of ``--lang`` among the words of a command line, if it is a language."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(_OPTION, nargs="?")
    value = parser.parse_known_args(list(words))[0].lang
    return value if value in LANGUAGES else None


def _translate_parser(parser: argparse.ArgumentParser) -> None:
    """Put the texts of a parser into the language that is used."""
    parser.description = parser.description and translate(parser.description)
    parser.epilog = parser.epilog and translate(parser.epilog)
    for group in parser._action_groups:
        group.title = group.title and translate(_STANDARD_TITLES.get(group.title, group.title))
        group.description = group.description and translate(group.description)
    for action in parser._actions:
        if action.help and action.help != argparse.SUPPRESS:
            action.help = translate(_STANDARD_HELP.get(action.help, action.help))
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                choice.help = choice.help and translate(choice.help)
            for one in action.choices.values():
                _translate_parser(one)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fills paragraphs by the columns that text takes, and keeps indented lines, such as examples.

    An option of several names has its value once, after the last name, and one of several values
    names these once: Python 3.13 breaks no line within an option. The line on usage holds what has
    to be given; all the rest is listed below it.
    """

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        """Leave out what may be left out."""
        needed = [one for one in actions if one.required or not one.option_strings]
        others = argparse.Action([], "options", metavar=tr("[options]"))
        super().add_usage(usage, [*needed, others], (), prefix)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _fill(" ".join(text.split()), width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for is_kept, group in groupby(text.splitlines(), _is_kept):
            some = list(group)
            lines += some if is_kept else _fill(_join_lines(some), width)
        return "\n".join(indent + line for line in lines)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.ONE_OR_MORE:
            return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."
        return super()._format_args(action, default_metavar)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if len(action.option_strings) < 2 or action.nargs == 0:
            return super()._format_action_invocation(action)
        metavar = self._get_default_metavar_for_optional(action)
        value = self._format_args(action, metavar)
        return f"{', '.join(action.option_strings)} {value}"


def _is_kept(line: str) -> bool:
    return not line or line.startswith(" ")


def _join_lines(lines: Sequence[str]) -> str:
    """One line of several; between Chinese characters there is no space."""
    text = lines[0]
    for line in lines[1:]:
        text += line if column_width(text[-1:]) == 2 and column_width(line[:1]) == 2 else f" {line}"
    return text


def _fill(text: str, width: int) -> list[str]:
    if text.isascii():
        return textwrap.wrap(text, width)
    from wcwidth import wrap

    return wrap(text, width)


def say(text: str, file: TextIO | None = None) -> None:
    """Print a text in the language of the command, at once."""
    print(translate(text), file=file or sys.stdout, flush=True)


# What argparse puts into a parser when it is made, before the language is known.
_STANDARD_TITLES = {
    "options": tr("options"),
    "positional arguments": tr("positional arguments"),
}
_STANDARD_HELP = {"show this help message and exit": tr("show this help message and exit")}

# What argparse looks up by itself, listed so that the catalogues have it.
_OF_ARGPARSE = (
    tr("usage: "),
    tr("%(prog)s: error: %(message)s\n"),
    tr("the following arguments are required: %s"),
    tr("unrecognized arguments: %s"),
    tr("expected one argument"),
    tr("expected at least one argument"),
    tr("expected at most one argument"),
    tr("not allowed with argument %s"),
    tr("one of the arguments %s is required"),
    tr("argument %(argument_name)s: %(message)s"),
    tr("invalid choice: %(value)r (choose from %(choices)s)"),
    tr("invalid %(type)s value: %(value)r"),
    tr("ambiguous option: %(option)s could match %(matches)s"),
    tr("ignored explicit argument %r"),
)
