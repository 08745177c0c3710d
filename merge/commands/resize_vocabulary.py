"""``resize_llama_vocabulary``: grow embeddings and LM head to a larger tokenizer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .common import DONE, add_output_volume_options, run

_DESCRIPTION = """\
Grow a LLaMA's embeddings and LM head to a larger tokenizer, so that training can start from it.

Weights are streamed; rows are never taken away. The tokenizer must be an extension of the base's:
every old token keeps its id.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run(_parser(), _resize, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
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
    output = parser.add_argument_group("what is written")
    output.add_argument("--output_dir", required=True, metavar="DIR", help="where to")
    output.add_argument(
        "--output_type",
        default="huggingface",
        choices=("pth", "huggingface", "hf"),
        help="layout of the result (default: %(default)s)",
    )
    output.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float16", "bfloat16", "float32"),
        help="of the result; auto keeps the base's (default: %(default)s)",
    )
    output.add_argument("--max_shard_size", default="10GB", metavar="SIZE", help="largest shard")
    output.add_argument(
        "--safe_serialization", action="store_true", help="safetensors instead of .bin"
    )
    output.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    output.add_argument("--dry_run", action="store_true", help="check, say what would be done")
    add_output_volume_options(parser)
    return parser


def _resize(args: argparse.Namespace) -> int:
    from ..jobs.resize_vocabulary import resize_vocabulary
    from .progress import progress_bar

    with progress_bar(quiet=args.quiet) as on_progress:
        report = resize_vocabulary(
            args.base_model,
            args.tokenizer,
            args.output_dir,
            init=args.init,
            pad_to_multiple_of=args.pad_to_multiple_of,
            seed=args.seed,
            overwrite=args.overwrite,
            dry_run=args.dry_run,
            on_progress=on_progress,
            output_type="huggingface" if args.output_type == "hf" else args.output_type,
            dtype=args.dtype,
            max_shard_size=args.max_shard_size,
            safe_serialization=args.safe_serialization,
        )
    if not args.quiet:
        print(report.summary())
    return DONE


if __name__ == "__main__":
    sys.exit(main())
