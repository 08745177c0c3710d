"""``merge_llama_with_chinese_lora``: the main job, from the command line."""

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
    parser = command_parser(_DESCRIPTION, _EXAMPLE)
    _add_inputs(parser)
    _add_vocabulary(parser)
    output = add_output_options(parser, output_type, dtype="float16")
    output.add_argument(
        "--output_dir", default="./", metavar="DIR", help="where to (default: %(default)s)"
    )
    _add_arithmetic(parser)
    add_resource_options(parser)
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


def _add_arithmetic(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("arithmetic")
    group.add_argument(
        "--rounding",
        default="once",
        choices=("once", "per_adapter"),
        help="once: exact to the last place; per_adapter: as tools that round to float16 after "
        "each adapter (default: %(default)s)",
    )


def _merge(args: argparse.Namespace) -> int:
    from ..jobs.merge_lora import merge_lora

    return carry_out(
        args,
        lambda on_progress: merge_lora(
            args.base_model,
            args.lora_model,
            args.output_dir,
            delta_model=args.delta_model,
            tokenizer=args.tokenizer,
            on_progress=on_progress,
            rounding=args.rounding,
            lora_weights=" ".join(args.lora_weights) if args.lora_weights else None,
            vocab_mismatch=args.vocab_mismatch,
            allow_unknown_combination=args.allow_unknown_combination,
            context_length=args.context_length,
            new_token_init=args.new_token_init,
            **job_options(args),
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
