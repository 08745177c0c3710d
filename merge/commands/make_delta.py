"""``make_delta``: target - base, with both spellings of FastChat's arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..job_settings import MakeDeltaSettings
from ..messages import tr
from .apply_delta import add_path, add_tokenizer_option
from .common import add_options, add_output_volume_options, command_parser, run, run_job
from .machine import add_json_option

_DESCRIPTION = tr("""\
Subtract a LLaMA from a model that was trained from it, to publish the difference.

apply_delta gives the model back. In float16 an element can come back changed where model and base
differ by more than a factor of two: by at most half a unit in the last place of the difference.
The summary counts such elements.
""")
_EXAMPLE = tr("""\
example:
  %(prog)s --base-model-path llama-13b --target-model-path vicuna-13b \\
      --delta-path vicuna-13b-delta

exit codes: 0 done, 2 wrong input (one message says which), 130 interrupted
""")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run(make_parser(), _make, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EXAMPLE)
    group = parser.add_argument_group(tr("what is subtracted"))
    add_path(group, "base_model", "--base-model-path --base", tr("LLaMA, in either layout"))
    add_path(group, "target_model", "--target-model-path --target", tr("the model trained from it"))
    add_path(group, "output_dir", "--delta-path --delta", tr("output folder"), "DIR")
    add_tokenizer_option(group)
    add_options(parser, MakeDeltaSettings, group)
    add_output_volume_options(parser)
    add_json_option(parser)
    return parser


def _make(args: argparse.Namespace) -> int:
    from ..jobs.apply_delta import make_delta

    return run_job(args, make_delta, tr("subtracting"))


if __name__ == "__main__":
    sys.exit(main())
