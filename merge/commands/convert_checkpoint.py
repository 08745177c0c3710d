"""``convert_checkpoint``: pour a model into another layout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .common import (
    add_context_length_option,
    add_output_options,
    add_output_volume_options,
    add_resource_options,
    carry_out,
    command_parser,
    job_options,
    run,
)

_DESCRIPTION = """\
Write a LLaMA in another layout: Meta's consolidated.*.pth, Hugging Face .bin or safetensors.

Weights are streamed, bit for bit unless --dtype is given. Meta to Hugging Face to Meta gives the
same tensors.
"""
_EXAMPLE = """\
examples:
  %(prog)s --input llama/7B --output llama-7b-hf --output_type huggingface
  %(prog)s --input vicuna-13b --output vicuna-13b-pth --output_type pth --num_shards 2

exit codes: 0 done, 2 wrong input (one message says which), 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run(_parser(), _convert, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(_DESCRIPTION, _EXAMPLE)
    group = parser.add_argument_group("what is converted")
    group.add_argument(
        "--input", required=True, metavar="DIR_OR_HUB_ID", help="a LLaMA in either layout"
    )
    group.add_argument("--output", "--output_dir", required=True, metavar="DIR", help="where to")
    group.add_argument(
        "--tokenizer", metavar="DIR", help="folder of tokenizer.model (default: the input's own)"
    )
    add_context_length_option(group)
    add_output_options(parser)
    add_resource_options(parser)
    add_output_volume_options(parser)
    return parser


def _convert(args: argparse.Namespace) -> int:
    from ..jobs.convert_checkpoint import convert_checkpoint

    return carry_out(
        args,
        lambda on_progress: convert_checkpoint(
            args.input,
            args.output,
            tokenizer=args.tokenizer,
            context_length=args.context_length,
            on_progress=on_progress,
            **job_options(args),
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
