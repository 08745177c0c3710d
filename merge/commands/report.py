"""``report``: the report of a result that is there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..job_settings import MergeSettings
from ..messages import tr
from .common import (
    DONE,
    add_option,
    add_output_volume_options,
    command_parser,
    keywords_of,
    run,
)
from .language import say

_DESCRIPTION = tr("""\
Write report.html and report.json into the folder of a merged model: what was merged with what, how
much each layer changed, the vocabulary before and after, and what to look at. A merge with --report
writes them itself. The page is one file that needs no network.

Where report.json is there, the page is made of it anew. Otherwise, or with an input named, the
inputs are read and every change is measured; those not named are where the manifest says.
""")
_EPILOG = tr("""\
examples:
  %(prog)s chinese-alpaca-plus-7b
  %(prog)s chinese-alpaca-plus-7b --base_model llama-7b-hf \\
      --lora_model chinese-llama-plus-lora-7b chinese-alpaca-plus-lora-7b

exit codes: 0 done, 2 wrong input (one message says what to change), 130 interrupted
""")


def main(argv: Sequence[str] | None = None) -> int:
    """Report on one result."""
    return run(make_parser(), _report, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EPILOG)
    parser.add_argument(
        "output_dir", metavar="DIR", help=tr("the result: output folder of a merge")
    )
    group = parser.add_argument_group(tr("inputs"))
    add = group.add_argument
    add("--base_model", metavar="DIR_OR_HUB_ID", help=tr("the base that was merged"))
    add(
        "--lora_model",
        nargs="+",
        action="extend",
        metavar="DIR_OR_HUB_ID",
        help=tr("the adapters, in the order in which they were merged"),
    )
    add("--delta_model", metavar="DIR_OR_HUB_ID", help=tr("the dense delta that was added"))
    add(
        "--tokenizer",
        metavar="DIR",
        help=tr("the tokenizer that was named (default: the result's)"),
    )
    add_option(group, MergeSettings, "context_length")
    resources = parser.add_argument_group(tr("processors and disk"))
    for name in ("num_workers", "offload_dir"):
        add_option(resources, MergeSettings, name)
    add_output_volume_options(parser)
    return parser


def _report(args: argparse.Namespace) -> int:
    from ..jobs.report import write_report
    from .progress import progress_bar

    with progress_bar(args.quiet, tr("measuring")) as on_progress:
        result = write_report(on_progress=on_progress, **keywords_of(write_report, args))
    if not args.quiet:
        say(result.summary())
    return DONE


if __name__ == "__main__":
    sys.exit(main())
