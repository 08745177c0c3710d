"""What every command shares: exit codes, the way a mistake is told, the common options."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence

from ..errors import MergeError

DONE, DIFFERENT, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def run(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse ``argv`` and run ``command``; return the exit code of the process.

    0 done, 1 a check found a difference, 2 wrong input or usage, 130 interrupted. A mistake in the
    input is told in one message on standard error; the traceback is shown only with ``--verbose``.
    """
    for stream in (sys.stdout, sys.stderr):  # a Windows console may not be UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    args = parser.parse_args(argv)
    verbose = bool(getattr(args, "verbose", False))
    try:
        return command(args)
    except MergeError as error:
        return _tell(f"error: {error}", verbose, WRONG_INPUT)
    except OSError as error:
        return _tell(f"error: {_os_error(error)}", verbose, WRONG_INPUT)
    except KeyboardInterrupt:
        return _tell("interrupted: nothing was written under a final name", verbose, INTERRUPTED)


def _tell(message: str, verbose: bool, code: int) -> int:
    if verbose:
        traceback.print_exc()
    print(message, file=sys.stderr)
    return code


def _os_error(error: OSError) -> str:
    """Say what the operating system refused, and to which file."""
    reason = error.strerror or str(error)
    return f"{reason}\n  file:     {error.filename}" if error.filename else reason


def add_output_volume_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--verbose`` and ``--quiet``."""
    group = parser.add_argument_group("messages")
    group.add_argument("--verbose", action="store_true", help="say more, tracebacks included")
    group.add_argument("--quiet", action="store_true", help="print errors only")


def add_context_length_option(group: argparse._ArgumentGroup) -> None:
    """Add ``--context_length``, for bases in Meta's layout."""
    group.add_argument(
        "--context_length",
        type=int,
        metavar="N",
        help="of a base in Meta's layout, which does not say it (default: that of the published "
        "model it looks like, told in the summary)",
    )
