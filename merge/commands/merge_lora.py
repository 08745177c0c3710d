"""``merge_llama_with_chinese_lora``: the main job, from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..settings import DELTA_EMBEDDINGS
from .common import (
    add_context_length_option,
    add_delta_embeddings_option,
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

exit codes: 0 done, 1 --verify found something wrong, 2 wrong input (one message says which),
130 interrupted
"""


# Other scripts need to be told what config.json and the adapters say.
_WITHOUT_EFFECT = ("model_size", "model_type")


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
    _add_checks(parser)
    add_resource_options(parser)
    add_output_volume_options(parser)
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is merged")
    group.add_argument(
        "--base_model",
        required=True,
        metavar="DIR_OR_HUB_ID",
        help="LLaMA, in Hugging Face's layout or in Meta's (consolidated.*.pth, params.json); for "
        "--output_type huggingface any decoder in Hugging Face's",
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
        help="folder of the result's tokenizer (default: the last adapter that has one, else the "
        "base)",
    )
    group.add_argument(
        "--copy_code",
        action="store_true",
        help="copy the Python files of adapters into a Hugging Face folder; nothing here ever runs "
        "them",
    )
    group.add_argument(
        "--ignore_file",
        default=[],
        action="append",
        metavar="NAME",
        help="a weight file in an adapter's folder that is no part of it; may be repeated "
        "(default: weights that are not known are refused)",
    )
    for pasted in _WITHOUT_EFFECT:  # of recipes for other scripts
        group.add_argument(f"--{pasted}", help=argparse.SUPPRESS)
    add_delta_embeddings_option(group, DELTA_EMBEDDINGS, "auto")
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


def _add_checks(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checks")
    group.add_argument(
        "--verify_base",
        action="store_true",
        help="read the base's files first and hold them against SHA256.md; adapters and tokenizer "
        "are always",
    )
    group.add_argument(
        "--verify",
        action="store_true",
        help="read the result at the end and check it as verify_merge.py does; exit code 1 if "
        "anything is wrong with it",
    )


def _merge(args: argparse.Namespace) -> int:
    from ..jobs.merge_lora import merge_lora
    from .progress import progress_bar

    with progress_bar(args.quiet, "checking the base") as on_verify:
        code = carry_out(
            args,
            lambda on_progress: merge_lora(
                args.base_model,
                args.lora_model,
                args.output_dir,
                delta_model=args.delta_model,
                tokenizer=args.tokenizer,
                verify_base=args.verify_base,
                on_progress=on_progress,
                on_verify=on_verify,
                rounding=args.rounding,
                lora_weights=_weights(args),
                vocab_mismatch=args.vocab_mismatch,
                allow_unknown_combination=args.allow_unknown_combination,
                context_length=args.context_length,
                copy_code=args.copy_code,
                ignore_file=args.ignore_file,
                delta_embeddings=args.delta_embeddings,
                new_token_init=args.new_token_init,
                **job_options(args),
            ),
        )
    for name in _WITHOUT_EFFECT:
        if getattr(args, name) is not None and not args.quiet:
            print(f"  note: --{name} changes nothing here: the base's own files say it")
    if not args.verify or args.dry_run:
        return code
    try:
        return _verify(args)
    except KeyboardInterrupt as interruption:
        interruption.args = ("the result is written; it was being checked",)
        raise


def _weights(args: argparse.Namespace) -> str | None:
    return " ".join(args.lora_weights) if args.lora_weights else None


def _verify(args: argparse.Namespace) -> int:
    """Check what was just written, with the inputs that were just read."""
    from ..jobs.verify_merge import verify_merge
    from ..plan.inputs import split_list
    from .progress import progress_bar
    from .verify_merge import tell

    as_asked = _weights(args) or " ".join("1" for _ in split_list(args.lora_model))

    with progress_bar(args.quiet, "checking") as on_progress:
        found = verify_merge(
            args.output_dir,
            base_model=args.base_model,
            lora_model=args.lora_model,
            lora_weights=as_asked,
            delta_model=args.delta_model,
            rounding=args.rounding,
            context_length=args.context_length,
            num_workers=args.num_workers,
            offload_dir=args.offload_dir,
            on_progress=on_progress,
        )
    return tell(found, quiet=args.quiet, verbose=args.verbose)


if __name__ == "__main__":
    sys.exit(main())
