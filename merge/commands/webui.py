"""``webui``: the page in a browser."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..messages import LANGUAGES, tr
from ..user_paths import expand_user
from .common import DONE, command_parser, run
from .language import say

_DESCRIPTION = tr("""\
Serve a page from which adapters are merged and the result is tried out: base, adapters and type of
output are chosen, the plan and its warnings are read, then the merge runs with its progress, and
base and result answer side by side.
""")
_EPILOG = tr("""\
examples:
  %(prog)s --root models
  ssh -L 7860:127.0.0.1:7860 server   # then open http://127.0.0.1:7860/ here

The page is for this machine alone. With --host others can use it, with a password and without
encryption: put it behind a proxy that has TLS, or use ssh as above. docs/webui.md tells more.

exit codes: 0 ended, 2 wrong input, 130 interrupted
""")
_VARIABLE = "CHINESE_LLAMA_WEBUI_AUTH"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run(make_parser(), _serve, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EPILOG)
    add = parser.add_argument_group(tr("the page")).add_argument
    add(
        "--root",
        type=Path,
        metavar="DIR",
        help=tr("folder of all models that are read and written (default: the working folder)"),
    )
    add(
        "--allow_downloads",
        action="store_true",
        help=tr("take Hub ids too, which are downloaded into the Hub's cache"),
    )
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help=tr("address to listen on; any but this machine's own needs --auth"),
    )
    add(
        "--port",
        type=int,
        default=7860,
        metavar="N",
        help=tr("port to listen on; 0: any free one (default: %(default)s)"),
    )
    add(
        "--auth",
        metavar="USER:PASSWORD",
        help=tr("ask for it; others on this machine can read it among its processes"),
    )
    add(
        "--auth_file",
        type=Path,
        metavar="FILE",
        help=tr("read USER:PASSWORD from a file, or leave it in {name}", name=_VARIABLE),
    )
    parser.add_argument_group(tr("messages")).add_argument(
        "--lang",
        choices=LANGUAGES,
        help=tr("language of terminal and page (default: the locale's, and the browser's)"),
    )
    return parser


def _serve(args: argparse.Namespace) -> int:
    from ..webui.root import Root
    from ..webui.server import serve

    root = Path.cwd() if args.root is None else expand_user(args.root)
    if not root.is_dir():
        raise UsageError(
            tr("the root of the page does not exist, or is no folder"),
            file=root,
            remedy=tr("give one with --root"),
        )

    def tell(address: str) -> None:
        say(tr("the page is at {address}; Ctrl-C ends it", address=address))

    place = Root(root.resolve(), args.allow_downloads)
    serve(place, args.host, args.port, _read_login(args), args.lang, tell)
    return DONE


def _read_login(args: argparse.Namespace) -> tuple[str, str] | None:
    """The user's name and password; it stays in no environment that a child process could see."""
    from ..webui.server import parse_login

    of_environment = os.environ.pop(_VARIABLE, None)
    if args.auth is not None:
        return parse_login(args.auth)
    if args.auth_file is not None:
        return parse_login(args.auth_file.read_text(encoding="utf-8"))
    return parse_login(of_environment) if of_environment else None


if __name__ == "__main__":
    sys.exit(main())
