"""Completion in shells, by argcomplete: a shell runs the command with ``_ARGCOMPLETE`` set.

Its value is the number of words that belong to the command's name. See docs/shell.md for what a
shell needs.
"""

from __future__ import annotations

import argparse
import os
import sys

_KEY = "_ARGCOMPLETE"


def is_completing() -> bool:
    """Whether a shell asks for words rather than for the command."""
    return _KEY in os.environ


def read_words() -> tuple[list[str], int]:
    """The whole words before the one that is being typed, and how many are the command's name."""
    _require()
    from argcomplete.lexers import split_line

    *_, words, _ = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    return words, int(os.environ[_KEY])


def complete(parser: argparse.ArgumentParser, name_words: int | None = None) -> None:
    """Print what may follow for ``parser``, whose name has ``name_words``; end the process."""
    _require()
    import argcomplete

    if name_words is not None:
        os.environ[_KEY] = str(name_words)
    argcomplete.autocomplete(parser, always_complete_options="long")


def _require() -> None:
    try:
        import argcomplete  # noqa: F401
    except ImportError:  # a shell shows nothing then
        sys.exit(1)
