"""``resize_llama_vocabulary``: grow embeddings and LM head to a larger tokenizer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .common import (
    add_output_options,
    add_output_volume_options,
    add_resource_options,
    carry_out,
    command_parser,
    job_options,
    run,
)

_DESCRIPTION = """\
Grow a LLaMA's embeddings and LM head to a larger tokenizer, so that training can start from it.

Weights are streamed; rows are never taken away. The tokenizer must be an extension of the base's:
every old token keeps its id.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run(_parser(), _resize, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(_DESCRIPTION)
    inputs = parser.add_argument_group("what is resized")
    inputs.add_argument("--base_model", required=True, metavar="DIR_OR_HUB_ID", help="a LLaMA")
    inputs.add_argument(
        "--tokenizer", required=True, metavar="DIR", help="folder of the larger tokenizer.model"
    )
    rows = parser.add_argument_group("new rows")
    rows.add_argument(
        "--init",
        default="subtokens",
        choices=("subtokens", "mean", "zeros", "normal"),
        help="subtokens: the mean of the rows of a token's old pieces; mean: of all old rows; "
        "normal: random, as transformers initialises (default: %(default)s)",
    )
    rows.add_argument("--seed", type=int, default=0, help="for normal (default: %(default)s)")
    rows.add_argument(
        "--pad_to_multiple_of",
        type=int,
        metavar="N",
        help="more rows, up to a multiple; padding begins as the mean of all old rows",
    )
    output = add_output_options(parser)
    output.add_argument("--output_dir", required=True, metavar="DIR", help="where to")
    add_resource_options(parser)
    add_output_volume_options(parser)
    return parser


def _resize(args: argparse.Namespace) -> int:
    from ..jobs.resize_vocabulary import resize_vocabulary

    return carry_out(
        args,
        lambda on_progress: resize_vocabulary(
            args.base_model,
            args.tokenizer,
            args.output_dir,
            init=args.init,
            pad_to_multiple_of=args.pad_to_multiple_of,
            seed=args.seed,
            on_progress=on_progress,
            **job_options(args),
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
