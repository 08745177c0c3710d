"""``convert_checkpoint``: pour a model into another layout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..job_settings import ConvertSettings
from ..messages import tr
from .common import add_options, add_output_volume_options, command_parser, run, run_job
from .given_options import add_file_options
from .machine import add_json_option

_DESCRIPTION = tr("""\
Write a LLaMA in another layout: Meta's consolidated.*.pth, Hugging Face .bin or safetensors.

Weights are streamed, bit for bit unless --dtype is given. Meta to Hugging Face to Meta gives the
same tensors.
""")
_EXAMPLE = tr("""\
examples:
  %(prog)s --input llama/7B --output llama-7b-hf \\
      --output_type huggingface
  %(prog)s --input vicuna-13b --output vicuna-13b-pth \\
      --output_type pth --num_shards 2

exit codes: 0 done, 2 wrong input (one message says which), 130 interrupted
""")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run(make_parser(), _convert, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EXAMPLE)
    group = parser.add_argument_group(tr("what is converted"))
    group.add_argument(
        "--input",
        dest="model",
        required=True,
        metavar="DIR_OR_HUB_ID",
        help=tr("a LLaMA in either layout"),
    )
    group.add_argument(
        "--output",
        "--output_dir",
        dest="output_dir",
        required=True,
        metavar="DIR",
        help=tr("output folder"),
    )
    group.add_argument(
        "--tokenizer",
        metavar="DIR",
        help=tr("folder of tokenizer.model (default: the input's own)"),
    )
    add_options(parser, ConvertSettings, group)
    add_output_volume_options(parser)
    add_json_option(parser)
    add_file_options(parser, "convert")
    return parser


def _convert(args: argparse.Namespace) -> int:
    from ..jobs.convert_checkpoint import convert_checkpoint

    return run_job(args, convert_checkpoint, tr("converting"))


if __name__ == "__main__":
    sys.exit(main())
