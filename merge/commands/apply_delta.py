"""``apply_delta``: base + delta, with both spellings of FastChat's arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..job_settings import ApplyDeltaSettings
from ..messages import tr
from .common import add_options, add_output_volume_options, command_parser, run, run_job
from .given_options import add_file_options
from .language import say
from .machine import add_json_option

_DESCRIPTION = tr("""\
Add a delta, as Vicuna and LLaVA were published, to the LLaMA that it was made from.

The base may be Meta's own download. Deltas of v0 (32001 rows) and v1.1 (32000) are distinguished by
themselves. Weights are streamed: memory is always low, and no temporary copies are made.
""")
_EXAMPLE = tr("""\
example:
  %(prog)s --base-model-path llama-13b \\
      --delta-path vicuna-13b-delta-v1.1 --target-model-path vicuna-13b

exit codes: 0 done, 2 wrong input (one message says which), 130 interrupted
""")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run(make_parser(), _apply, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EXAMPLE)
    group = parser.add_argument_group(tr("what is added"))
    add_path(group, "base_model", "--base-model-path --base", tr("LLaMA, in either layout"))
    add_path(group, "delta_model", "--delta-path --delta", tr("the delta"))
    add_path(group, "output_dir", "--target-model-path --target", tr("output folder"), "DIR")
    add_tokenizer_option(group)
    group.add_argument(
        "--low-cpu-mem",
        action="store_true",
        help=tr("accepted and without effect: it is always low"),
    )
    add_options(parser, ApplyDeltaSettings, group)
    add_output_volume_options(parser)
    add_json_option(parser)
    add_file_options(parser, "apply-delta")
    return parser


def add_path(
    group: argparse._ArgumentGroup,
    name: str,
    fastchat: str,
    description: str,
    metavar: str = "DIR_OR_HUB_ID",
) -> None:
    """Add a required path under FastChat's two options for it and this project's own name."""
    options = (*fastchat.split(), f"--{name}")
    group.add_argument(*options, dest=name, required=True, metavar=metavar, help=description)


def add_tokenizer_option(group: argparse._ArgumentGroup) -> None:
    """Add ``--tokenizer`` of ``apply_delta`` and ``make_delta``."""
    group.add_argument(
        "--tokenizer",
        metavar="DIR",
        help=tr("folder of the result's tokenizer.model (default: the delta's or target's own)"),
    )


def _apply(args: argparse.Namespace) -> int:
    from ..jobs.apply_delta import apply_delta

    code = run_job(args, apply_delta, tr("adding"))
    if args.low_cpu_mem and not (args.quiet or args.as_json):
        say(tr("  note: --low-cpu-mem changes nothing: memory is always low here"))
    return code


if __name__ == "__main__":
    sys.exit(main())
