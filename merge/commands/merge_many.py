"""``merge_many``: the merges that a file lists, those over one base side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import shown
from ..job_settings import MergeSettings
from ..messages import join, tr
from .common import (
    DIFFERENT,
    DONE,
    add_option,
    add_output_volume_options,
    command_parser,
    run,
)
from .language import say

if TYPE_CHECKING:
    from ..jobs.many_results import JobResult

_DESCRIPTION = tr("""\
Run the merges that a YAML or JSON file lists, those over one base side by side, so that the base is
read once for all of them. All are checked and planned first; a job that fails then leaves the
others to go on. A table at the end says how each one ended.
""")
_EXAMPLE = tr("""\
example of a file; every option of a merge may stand in a job, and above jobs as a default of all:
  base_model: llama-7b-hf
  output_type: huggingface
  jobs:
    - lora_model: [chinese-llama-plus-lora-7b, chinese-alpaca-plus-lora-7b]
      output_dir: chinese-alpaca-plus-7b
    - lora_model: chinese-llama-lora-7b
      output_dir: chinese-llama-7b
      safe_serialization: true

Paths are relative to the current folder, as in a single merge.

exit codes: 0 done, 1 a job failed or verify: true found something wrong, 2 wrong input (one message
says which job; nothing is written), 130 interrupted
""")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs of one file."""
    return run(make_parser(), _merge, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EXAMPLE)
    parser.add_argument("jobs_file", metavar="FILE", help=tr("YAML or JSON file of the jobs"))
    group = parser.add_argument_group(tr("all jobs"))
    for name, text in {
        "resume": tr("resume the interrupted job, and run those that are not complete"),
        "dry_run": tr("check and plan every job, print the plans, write nothing"),
    }.items():
        add_option(group, MergeSettings, name, help=text)
    group.add_argument(
        "--together",
        type=int,
        metavar="N",
        help=tr(
            "at most so many jobs over one base at once; 1: one after the other "
            "(default: as many as --max_memory has room for, at most 10)"
        ),
    )
    add_output_volume_options(parser)
    return parser


def _merge(args: argparse.Namespace) -> int:
    from ..jobs.merge_many import merge_many
    from .progress import progress_bar

    def print_result(result: JobResult) -> None:
        _print_result(result, quiet=args.quiet, verbose=args.verbose)

    with (
        progress_bar(args.quiet, tr("checking the base")) as on_verify,
        progress_bar(args.quiet, tr("merging")) as on_progress,
    ):
        report = merge_many(
            args.jobs_file,
            resume=args.resume,
            dry_run=args.dry_run,
            together=args.together,
            on_job=print_result,
            on_progress=on_progress,
            on_verify=on_verify,
        )
    if not args.quiet:
        say(f"\n{report.summary()}")
    return DIFFERENT if report.failures else DONE


def _print_result(result: JobResult, *, quiet: bool, verbose: bool) -> None:
    head = tr(
        "job {number}, {output_dir}: {state}",
        number=result.number,
        output_dir=shown(str(result.output_dir)),
        state=result.describe_state(),
    )
    if result.is_failure:
        trace = result.trace if verbose else ""
        say(join("\n", [head, trace + result.text]), file=sys.stderr)
    elif not quiet:
        say(join("\n", [head, result.text]))


if __name__ == "__main__":
    sys.exit(main())
