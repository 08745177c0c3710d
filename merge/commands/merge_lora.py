"""``merge_llama_with_chinese_lora``: the main job, from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .common import DONE, add_context_length_option, add_output_volume_options, run

_DESCRIPTION = """\
Merge Chinese LoRA adapters into a LLaMA base model and write the full model.

The tokenizer of the last adapter that has one becomes the model's; embeddings and LM head grow with
it. Weights are streamed: memory stays the same however large the model is.
"""
_EXAMPLE = """\
example, Chinese-Alpaca-Plus-7B (two adapters, in this order):
  %(prog)s --base_model llama-7b-hf \\
      --lora_model chinese-llama-plus-lora-7b,chinese-alpaca-plus-lora-7b \\
      --output_dir chinese-alpaca-plus-7b

exit codes: 0 done, 2 wrong input (one message says which), 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write Meta's ``.pth`` unless told otherwise."""
    return run(_parser("pth"), _merge, argv)


def main_to_hf(argv: Sequence[str] | None = None) -> int:
    """Write Hugging Face shards unless told otherwise."""
    return run(_parser("huggingface"), _merge, argv)


def _parser(output_type: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_inputs(parser)
    _add_vocabulary(parser)
    _add_output(parser, output_type)
    _add_arithmetic(parser)
    _add_resources(parser)
    add_output_volume_options(parser)
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is merged")
    group.add_argument(
        "--base_model",
        required=True,
        metavar="DIR_OR_HUB_ID",
        help="LLaMA, in Hugging Face's layout or in Meta's (consolidated.*.pth, params.json)",
    )
    group.add_argument(
        "--lora_model",
        required=True,
        nargs="+",
        action="extend",
        metavar="DIR_OR_HUB_ID",
        help="one or more adapters in the order of merging: a,b or a b or the option repeated",
    )
    group.add_argument(
        "--lora_weights",
        nargs="+",
        metavar="W",
        help="factors for what the adapters add, one for each: 1.0,0.5 (default: 1 for all)",
    )
    group.add_argument(
        "--delta_model",
        metavar="DIR_OR_HUB_ID",
        help="a dense delta, such as Vicuna's, that is added to the base before the adapters",
    )
    group.add_argument(
        "--allow_unknown_combination",
        action="store_true",
        help="merge published adapters in an order that nobody published",
    )
    group.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="folder of the result's tokenizer.model (default: the last adapter that has one, "
        "else the base)",
    )
    add_context_length_option(group)


def _add_vocabulary(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("vocabulary")
    group.add_argument(
        "--vocab_mismatch",
        default="error",
        choices=("error", "keep_base_rows", "truncate"),
        help="when an adapter has fewer vocabulary rows than the model so far: refuse, keep the "
        "model's further rows, or drop them (default: %(default)s)",
    )
    group.add_argument(
        "--new_token_init",
        choices=("subtokens", "mean", "zeros", "normal"),
        help="how rows begin that the tokenizer asks for and no adapter has (default: refuse)",
    )


def _add_output(parser: argparse.ArgumentParser, output_type: str) -> None:
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--output_dir", default="./", metavar="DIR", help="where to (default: %(default)s)"
    )
    group.add_argument(
        "--output_type",
        default=output_type,
        choices=("pth", "huggingface", "hf"),
        help="pth: consolidated.*.pth for llama.cpp; huggingface (hf): .bin or safetensors shards "
        "for transformers (default: %(default)s)",
    )
    group.add_argument(
        "--dtype",
        default="float16",
        choices=("auto", "float16", "bfloat16", "float32"),
        help="of the result; auto keeps the base's (default: %(default)s)",
    )
    group.add_argument(
        "--max_shard_size",
        default="10GB",
        metavar="SIZE",
        help="largest Hugging Face shard (default: %(default)s)",
    )
    group.add_argument(
        "--safe_serialization", action="store_true", help="safetensors instead of .bin"
    )
    group.add_argument(
        "--num_shards",
        type=int,
        metavar="N",
        help="number of .pth files (default: as many as Meta uses for this size)",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace an earlier result in --output_dir"
    )
    group.add_argument(
        "--dry_run", action="store_true", help="check everything, say what would be done, stop"
    )


def _add_arithmetic(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("arithmetic")
    group.add_argument(
        "--rounding",
        default="once",
        choices=("once", "per_adapter"),
        help="once: exact to the last place; per_adapter: as tools that round to float16 after "
        "each adapter (default: %(default)s)",
    )


def _add_resources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory, disk and processors")
    group.add_argument(
        "--max_memory",
        default="64MB",
        metavar="SIZE",
        help="budget for buffers, at most 256MB (default: %(default)s)",
    )
    group.add_argument(
        "--num_workers", type=int, metavar="N", help="threads that compute (default: up to 2)"
    )
    group.add_argument(
        "--io",
        default="auto",
        choices=("auto", "direct", "buffered"),
        help="auto: past the page cache for what is not in it; direct: always past it; buffered: "
        "never (default: %(default)s)",
    )
    group.add_argument(
        "--offload_dir",
        metavar="DIR",
        help="where inputs are unpacked that cannot be read in place, and downloads go; emptied "
        "at the end (default: beside the output; downloads: the Hub's cache)",
    )


def _merge(args: argparse.Namespace) -> int:
    from ..jobs.merge_lora import merge_lora
    from .progress import progress_bar

    with progress_bar(quiet=args.quiet) as on_progress:
        report = merge_lora(
            args.base_model,
            args.lora_model,
            args.output_dir,
            delta_model=args.delta_model,
            tokenizer=args.tokenizer,
            offload_dir=args.offload_dir,
            overwrite=args.overwrite,
            dry_run=args.dry_run,
            on_progress=on_progress,
            output_type="huggingface" if args.output_type == "hf" else args.output_type,
            dtype=args.dtype,
            max_shard_size=args.max_shard_size,
            safe_serialization=args.safe_serialization,
            num_shards=args.num_shards,
            rounding=args.rounding,
            lora_weights=" ".join(args.lora_weights) if args.lora_weights else None,
            vocab_mismatch=args.vocab_mismatch,
            allow_unknown_combination=args.allow_unknown_combination,
            context_length=args.context_length,
            new_token_init=args.new_token_init,
            max_memory=args.max_memory,
            num_workers=args.num_workers,
            io=args.io,
        )
    if not args.quiet:
        print(report.summary())
    return DONE


if __name__ == "__main__":
    sys.exit(main())
