"""``verify_merge``: a result on disk, its files, its tensors, and the arithmetic."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..job_settings import MergeSettings
from ..messages import tr
from ..options import options_of
from .common import (
    DIFFERENT,
    DONE,
    add_option,
    add_output_volume_options,
    command_parser,
    keywords_of,
    run,
)
from .language import say
from .machine import add_json_option, describe_error, print_json

if TYPE_CHECKING:
    from ..jobs.verify_merge import Verification

_DESCRIPTION = tr("""\
Check a merged model on disk. Files are compared with the manifest by size and SHA-256, tensors by
their content digests; every element against base and adapters, by other code than the merge's; the
tokenizer against the rows. Inputs that are not named are those of the manifest.
""")
_EPILOG = tr("""\
examples:
  %(prog)s --output_dir chinese-alpaca-plus-7b
  %(prog)s --output_dir merged-elsewhere \\
      --base_model llama-7b-hf --lora_model chinese-alpaca-lora-7b

exit codes: 0 right, 1 something is wrong (each fault is printed), 2 wrong input, 130 interrupted
""")
_OF_THE_MERGE = ("rounding", "vocab_mismatch", "new_token_init", "delta_embeddings")


def main(argv: Sequence[str] | None = None) -> int:
    """Verify one result."""
    return run(make_parser(), _verify, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EPILOG)
    group = parser.add_argument_group(tr("what is checked"))
    add = group.add_argument
    add(
        "--output_dir",
        required=True,
        metavar="DIR",
        help=tr("the result: output folder of a merge"),
    )
    add("--base_model", metavar="DIR_OR_HUB_ID", help=tr("the base that was merged"))
    add(
        "--lora_model",
        nargs="+",
        action="extend",
        metavar="DIR_OR_HUB_ID",
        help=tr("the adapters, in the order in which they were merged"),
    )
    add("--lora_weights", nargs="+", metavar="W", help=tr("their factors, as in the merge"))
    add("--delta_model", metavar="DIR_OR_HUB_ID", help=tr("a dense delta that was added"))
    for name in _OF_THE_MERGE:
        otherwise = options_of(MergeSettings)[name].default or tr("none")
        text = tr(
            "as in the merge (default: as the manifest says, else {otherwise})", otherwise=otherwise
        )
        add_option(group, MergeSettings, name, default=None, help=text)
    add(
        "--files_only",
        action="store_true",
        help=tr("read no inputs: check files, content digests and tokenizer only"),
    )
    add_option(group, MergeSettings, "context_length")
    resources = parser.add_argument_group(tr("processors and disk"))
    for name in ("num_workers", "offload_dir"):
        add_option(resources, MergeSettings, name)
    add_output_volume_options(parser)
    add_json_option(parser)
    return parser


def _verify(args: argparse.Namespace) -> int:
    from ..jobs.verify_merge import verify_merge
    from .progress import progress_bar

    if args.lora_weights:
        args.lora_weights = " ".join(args.lora_weights)
    with progress_bar(args.quiet, tr("checking")) as on_progress:
        found = verify_merge(on_progress=on_progress, **keywords_of(verify_merge, args))
    if args.as_json:
        print_json(describe_verification(found))
    else:
        print_verification(found, quiet=args.quiet, verbose=args.verbose)
    return get_exit_code(found)


def get_exit_code(found: Verification | None) -> int:
    """1 where a check has found a fault."""
    return DIFFERENT if found is not None and found.faults else DONE


def describe_verification(found: Verification) -> dict[str, Any]:
    """What was found, for programs; docs/json.md has the keys."""
    exactness = found.exactness
    return {
        "output_dir": str(found.output_dir),
        "ok": not found.faults,
        "faults": [describe_error(fault) for fault in found.faults],
        "checked": list(found.checked),
        "unchecked": list(found.unchecked),
        "elements": exactness.elements,
        "identical": exactness.identical,
        "max_ulp": exactness.max_ulp,
        "seconds": found.seconds,
    }


_LISTED = 12


def print_verification(found: Verification, *, quiet: bool, verbose: bool) -> None:
    """Print what was found."""
    for fault in found.faults if verbose else found.faults[:_LISTED]:
        say(tr("FAILED: {fault}", fault=fault), file=sys.stderr)
    if not verbose and len(found.faults) > _LISTED:
        more = len(found.faults) - _LISTED
        say(tr("... and {more} more faults (--verbose lists them)", more=more), file=sys.stderr)
    if not quiet:
        say(found.summary())


if __name__ == "__main__":
    sys.exit(main())
