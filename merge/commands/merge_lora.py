"""``merge_llama_with_chinese_lora``: the main job, from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..job_settings import MergeSettings, MergeToHuggingFaceSettings
from ..messages import tr
from .common import (
    add_options,
    add_output_volume_options,
    command_parser,
    run,
    run_with_progress,
)
from .given_options import add_file_options
from .language import say
from .machine import add_json_option, print_json

if TYPE_CHECKING:
    from ..jobs.verify_merge import Verification

_DESCRIPTION = tr("""\
Merge Chinese LoRA adapters into a LLaMA base model and write the full model.

The tokenizer of the last adapter that has one becomes the model's; embeddings and LM head grow with
it. Weights are streamed: memory stays the same however large the model is.
""")
_EXAMPLE = tr("""\
example, Chinese-Alpaca-Plus-7B (two adapters, in this order):
  %(prog)s --base_model llama-7b-hf \\
      --lora_model chinese-llama-plus-lora-7b,chinese-alpaca-plus-lora-7b \\
      --output_dir chinese-alpaca-plus-7b

exit codes: 0 done, 1 --verify found something wrong, 2 wrong input (one message says which),
130 interrupted
""")


# Options of other scripts, for what config.json and the adapters say.
_WITHOUT_EFFECT = ("model_size", "model_type")


def main(argv: Sequence[str] | None = None) -> int:
    """Write Meta's ``.pth`` by default."""
    return run(make_parser(), _merge, argv)


def main_to_hf(argv: Sequence[str] | None = None) -> int:
    """Write Hugging Face shards by default."""
    return run(make_parser(MergeToHuggingFaceSettings), _merge, argv)


def make_parser(kind: type[MergeSettings] = MergeSettings) -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EXAMPLE)
    add_options(parser, kind, _add_inputs(parser))
    parser.add_argument_group(tr("checks")).add_argument(
        "--verify",
        action="store_true",
        help=tr(
            "read the result at the end and check it as verify_merge.py does; "
            "exit code 1 if anything is wrong with it"
        ),
    )
    add_output_volume_options(parser)
    add_json_option(parser)
    add_file_options(parser, "merge")
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group(tr("what is merged"))
    group.add_argument(
        "--base_model",
        required=True,
        metavar="DIR_OR_HUB_ID",
        help=tr(
            "LLaMA, in Hugging Face's layout, in Meta's (consolidated.*.pth, "
            "params.json) or in GGUF (file or folder); for --output_type "
            "huggingface any decoder in Hugging Face's"
        ),
    )
    group.add_argument(
        "--lora_model",
        required=True,
        nargs="+",
        action="extend",
        metavar="DIR_OR_HUB_ID",
        help=tr(
            "one or more adapters in the order of merging: a,b or a b or the "
            "option repeated; folders of PEFT's, zipped or not, or .gguf files"
        ),
    )
    group.add_argument(
        "--output_dir", default="./", metavar="DIR", help=tr("output folder (default: %(default)s)")
    )
    group.add_argument(
        "--delta_model",
        metavar="DIR_OR_HUB_ID",
        help=tr("a dense delta, such as Vicuna's, that is added to the base before the adapters"),
    )
    group.add_argument(
        "--tokenizer",
        metavar="DIR",
        help=tr(
            "folder of the result's tokenizer, or a .gguf file that has it "
            "(default: the last adapter that has one, else the base)"
        ),
    )
    for pasted in _WITHOUT_EFFECT:  # of recipes for other scripts
        group.add_argument(f"--{pasted}", help=argparse.SUPPRESS)
    return group


def _merge(args: argparse.Namespace) -> int:
    from ..jobs.merge_lora import merge_lora
    from .progress import progress_bar
    from .verify_merge import describe_verification, get_exit_code, print_verification

    if args.lora_weights:
        args.lora_weights = " ".join(args.lora_weights)
    with progress_bar(args.quiet, tr("checking the base")) as on_verify:
        report = run_with_progress(args, merge_lora, tr("merging"), on_verify=on_verify)
    if not (args.quiet or args.as_json):
        say(report.summary())
        for name in filter(lambda name: getattr(args, name) is not None, _WITHOUT_EFFECT):
            say(tr("  note: --{name} changes nothing here: the base's own files say it", name=name))
    found = _verify(args)
    if args.as_json:
        print_json({**report.as_json(), "verification": found and describe_verification(found)})
    elif found is not None:
        print_verification(found, quiet=args.quiet, verbose=args.verbose)
    return get_exit_code(found)


def _verify(args: argparse.Namespace) -> Verification | None:
    """Check what was just written, with the inputs just read, where that was asked for."""
    from ..jobs.merge_lora import verify_result
    from .progress import progress_bar

    if not args.verify or args.dry_run:
        return None
    try:
        with progress_bar(args.quiet, tr("checking")) as on_progress:
            return verify_result(vars(args), on_progress)
    except KeyboardInterrupt as interruption:
        interruption.args = (tr("the result is written; it was being checked"),)
        raise


if __name__ == "__main__":
    sys.exit(main())
