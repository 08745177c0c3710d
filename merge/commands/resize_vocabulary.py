"""``resize_llama_vocabulary``: grow embeddings and LM head to a larger tokenizer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..job_settings import ResizeSettings
from ..messages import tr
from .common import add_options, add_output_volume_options, command_parser, run, run_job
from .machine import add_json_option

_DESCRIPTION = tr("""\
Grow a LLaMA's embeddings and LM head to a larger tokenizer, so that training can start from it.

Weights are streamed; rows are never taken away. The tokenizer must be an extension of the base's:
every old token keeps its id.
""")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run(make_parser(), _resize, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION)
    inputs = parser.add_argument_group(tr("what is resized"))
    inputs.add_argument("--base_model", required=True, metavar="DIR_OR_HUB_ID", help=tr("a LLaMA"))
    inputs.add_argument(
        "--tokenizer", required=True, metavar="DIR", help=tr("folder of the larger tokenizer")
    )
    inputs.add_argument("--output_dir", required=True, metavar="DIR", help=tr("output folder"))
    add_options(parser, ResizeSettings, inputs)
    add_output_volume_options(parser)
    add_json_option(parser)
    return parser


def _resize(args: argparse.Namespace) -> int:
    from ..jobs.resize_vocabulary import resize_vocabulary

    return run_job(args, resize_vocabulary, tr("growing"))


if __name__ == "__main__":
    sys.exit(main())
