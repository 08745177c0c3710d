"""``convert_llama_weights_to_hf``: the conversion by the name and the arguments people know."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..job_settings import HuggingFaceSettings
from ..messages import tr
from .common import add_options, add_output_volume_options, command_parser, run, run_job

_DESCRIPTION = tr("""\
Convert Meta's download of a LLaMA to Hugging Face's layout.

The tensors are those of the script of this name in transformers 4, in the dtype that the download
has (transformers 4.46 rounds to bfloat16: --dtype bfloat16). Weights are streamed.
""")
_EXAMPLE = tr("""\
example, where llama/ holds tokenizer.model and llama/13B/ the weights:
  %(prog)s --input_dir llama --model_size 13B \\
      --output_dir llama-13b-hf

exit codes: 0 done, 2 wrong input (one message says which), 130 interrupted
""")
# The context length that transformers' script writes for each version.
_CONTEXT_LENGTHS = {"1": 2048, "2": 4096, "3": 8192, "3.1": 131072, "3.2": 131072}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run(make_parser(), _convert, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EXAMPLE)
    group = parser.add_argument_group(tr("what is converted"))
    group.add_argument(
        "--input_dir",
        required=True,
        metavar="DIR",
        help=tr("folder with tokenizer.model and the folder of the size, or that folder itself"),
    )
    group.add_argument(
        "--model_size",
        metavar="SIZE",
        help=tr(
            "name of the size's folder: 7B, 13B, 30B, 33B, 34B, 65B, 70B, ... "
            "(default: the only one there)"
        ),
    )
    group.add_argument("--output_dir", required=True, metavar="DIR", help=tr("output folder"))
    group.add_argument(
        "--llama_version",
        choices=tuple(_CONTEXT_LENGTHS),
        help=tr("says the context length: 2048 of LLaMA 1, 4096 of LLaMA 2, and so on"),
    )
    add_options(parser, HuggingFaceSettings, group)
    add_output_volume_options(parser)
    return parser


def _convert(args: argparse.Namespace) -> int:
    from ..jobs.convert_checkpoint import convert_checkpoint, find_size, require_release
    from ..plan.places import resolve

    args.context_length = args.context_length or _CONTEXT_LENGTHS.get(args.llama_version)
    args.model = find_size(resolve(args.input_dir, tr("input folder")), args.model_size)
    require_release(args.model, args.llama_version)
    return run_job(args, convert_checkpoint, tr("converting"))


if __name__ == "__main__":
    sys.exit(main())
