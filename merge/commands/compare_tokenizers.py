"""``compare_tokenizers.py``: measure tokenizers on the user's own text."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..messages import tr
from .common import DIFFERENT, DONE, add_output_volume_options, command_parser, run
from .language import say

if TYPE_CHECKING:
    from tokenizer_tools.backends import BackendTokenizer

_DESCRIPTION = tr("""\
Tell how tokenizers cut a text: characters per token, tokens per 1000 characters, byte fallback,
coverage of its commonest Han characters, for the whole and for its Chinese, English and code lines;
and the lines that two of them cut differently. With --library transformers: the lines on which
AutoTokenizer gives other tokens than SentencePiece does from the same file, or tiktoken of Llama 3;
then the exit code is 1 if there are any.
""")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure tokenizers on a text."""
    return run(make_parser(), _command, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION)
    add = parser.add_argument
    add(
        "--tokenizers",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR_OR_FILE",
        help=tr("SentencePiece models, Llama 3's tokenizer.model, or folders with a tokenizer"),
    )
    add(
        "--text",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE_OR_DIR",
        help=tr("UTF-8 text: .txt, .jsonl, either also as .gz"),
    )
    add(
        "--json_field",
        default="text",
        metavar="NAME",
        help=tr("of .jsonl lines (default: %(default)s)"),
    )
    add(
        "--library",
        choices=("sentencepiece", "transformers"),
        default="sentencepiece",
        help=tr(
            "transformers: load each tokenizer with AutoTokenizer as well, and "
            "compare the two (default: %(default)s)"
        ),
    )
    add(
        "--trust_remote_code",
        action="store_true",
        help=tr("let AutoTokenizer run the tokenizer class that the folder brings along"),
    )
    add("--json", type=Path, metavar="FILE", help=tr("write everything measured as JSON"))
    add("--plot", type=Path, metavar="FILE.png", help=tr("draw it; needs matplotlib"))
    add_output_volume_options(parser)
    return parser


def _command(args: argparse.Namespace) -> int:
    from merge.storage.atomic_write import write_atomically
    from tokenizer_tools import compare, plot, report
    from tokenizer_tools.corpus import find_text_files, read_lines

    _check_outputs(args)
    if args.plot:
        plot.require_matplotlib()
    tokenizers, pairs = _open(args)
    lines = (
        line for file in find_text_files(args.text) for line in read_lines(file, args.json_field)
    )
    comparison = compare.compare_tokenizers(tokenizers, lines, pairs)
    if args.json:
        content = json.dumps(report.to_json(comparison), ensure_ascii=False, indent=1) + "\n"
        write_atomically(args.json.parent, {args.json.name: content.encode("utf-8")})
    if args.plot:
        write_atomically(args.plot.parent, {args.plot.name: plot.draw_png(comparison)})
    if not args.quiet:
        say(report.format_table(comparison))
    is_check = args.library == "transformers"
    return DIFFERENT if is_check and any(d.lines for d in comparison.disagreements) else DONE


def _open(args: argparse.Namespace) -> tuple[list[BackendTokenizer], list[tuple[int, int]]]:
    """Open the tokenizers and say which to compare: all with all, or each with its double."""
    from tokenizer_tools.backends import open_tokenizer, open_transformers, shorten_names

    tokenizers: list[BackendTokenizer] = []
    for path, name in zip(args.tokenizers, shorten_names(args.tokenizers), strict=True):
        tokenizers.append(open_tokenizer(path, name))
        if args.library == "transformers":
            tokenizers.append(open_transformers(path, name, args.trust_remote_code))
    if args.library == "transformers":
        return tokenizers, [(index, index + 1) for index in range(0, len(tokenizers), 2)]
    return tokenizers, list(combinations(range(len(tokenizers)), 2))


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse names that look like somebody's text: these files are replaced without a question."""
    for option, path, suffix in (("plot", args.plot, ".png"), ("json", args.json, ".json")):
        if path is not None and path.suffix.lower() != suffix:
            raise UsageError(
                tr("--{option} writes a {suffix} file", option=option, suffix=suffix), found=path
            )
    if args.trust_remote_code and args.library != "transformers":
        raise UsageError(tr("--trust_remote_code needs --library transformers"))
