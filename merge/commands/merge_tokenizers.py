"""``merge_tokenizers.py``: append Chinese pieces to LLaMA's tokenizer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..messages import tr
from .common import DONE, add_output_volume_options, command_parser, run
from .language import say

_DESCRIPTION = tr("""\
Append the pieces of a Chinese SentencePiece model to LLaMA's tokenizer: in file order, what is not
there yet, with score 0. Old ids stay as they are. From LLaMA's and the published chinese_sp.model
this makes Chinese-LLaMA's tokenizer byte for byte, and with --pad_token Chinese-Alpaca's.
""")


def main(argv: Sequence[str] | None = None) -> int:
    """Append Chinese pieces to LLaMA's tokenizer."""
    return run(make_parser(), _command, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION)
    parser.add_argument(
        "--llama_tokenizer_dir",
        type=Path,
        required=True,
        metavar="DIR_OR_FILE",
        help=tr("LLaMA's tokenizer.model or a folder with it; also one that was extended before"),
    )
    parser.add_argument(
        "--chinese_sp_model_file",
        type=Path,
        metavar="FILE",
        help=tr("the SentencePiece model whose pieces are appended"),
    )
    parser.add_argument(
        "--user_pieces",
        type=Path,
        metavar="FILE",
        help=tr("UTF-8 text, one more piece a line, appended after the Chinese ones"),
    )
    parser.add_argument(
        "--pad_token",
        nargs="?",
        const="[PAD]",
        metavar="TOKEN",
        help=tr("append a padding token as the last piece; [PAD] if none is named"),
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, metavar="DIR", help=tr("output folder")
    )
    parser.add_argument("--overwrite", action="store_true", help=tr("replace a tokenizer in DIR"))
    add_output_volume_options(parser)
    return parser


def _command(args: argparse.Namespace) -> int:
    from tokenizer_tools import merging

    if not (args.chinese_sp_model_file or args.user_pieces or args.pad_token is not None):
        raise UsageError(
            tr("there is nothing to append"),
            remedy=tr("give --chinese_sp_model_file, --user_pieces or --pad_token"),
        )
    merged = merging.merge_tokenizers(
        args.llama_tokenizer_dir,
        args.chinese_sp_model_file,
        user_pieces=args.user_pieces,
        pad_token=args.pad_token,
    )
    merging.write_tokenizer(merged, args.output_dir, args.overwrite)
    if not args.quiet:
        say(merging.format_summary(merged))
        say(tr("written to {output_dir}", output_dir=args.output_dir))
    return DONE
