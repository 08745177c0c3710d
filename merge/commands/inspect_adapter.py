"""``inspect_adapter``: describe an adapter and what a merge would do with it, from headers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import MergeError
from ..settings import OUTPUT_TYPES
from .common import DIFFERENT, DONE, add_output_volume_options, command_parser, run
from .language import say

_DESCRIPTION = """\
Describe an adapter: kind, PEFT release, rank and scaling by module, vocabulary rows, dtypes,
digest and published name; and what a merge would add, replace or grow, or why it would be refused.
Only headers are read, and the weight file once for its digest. With --base_model the checks are
those of a merge of this adapter alone, with its default options; --verbose lists every module.
"""
_EPILOG = """\
exit codes: 0 it can be merged, 1 a merge would refuse it (the report says why), 2 wrong input
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect one adapter."""
    return run(make_parser(), _inspect, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EPILOG)
    parser.add_argument(
        "adapter", metavar="DIR", help="adapter folder, zipped folder, .gguf file or Hub id"
    )
    parser.add_argument(
        "--base_model",
        metavar="DIR_OR_HUB_ID",
        help="say whether it fits this base, and what would change",
    )
    parser.add_argument(
        "--output_type",
        choices=OUTPUT_TYPES,
        help="of the merge that is checked (default: pth and huggingface)",
    )
    parser.add_argument(
        "--no_digest",
        action="store_true",
        help="do not read the weights at all: published adapters are not recognised then",
    )
    add_output_volume_options(parser)
    return parser


def _inspect(args: argparse.Namespace) -> int:
    from ..deltas.adapter_config import AdapterFolder
    from ..jobs.inspect_adapter import QUICK_LAYOUTS, describe_adapter
    from ..plan.inputs import resolve
    from ..storage.offload import Offload

    with Offload(None, Path.cwd()) as offload:
        folder = AdapterFolder(resolve(args.adapter, "adapter", offload))
        base = resolve(args.base_model, "base model", offload) if args.base_model else None
        folder.require_adapter()
        lines = describe_adapter(
            folder,
            offload,
            base,
            digest=not args.no_digest,
            every_module=args.verbose,
            layouts=(args.output_type,) if args.output_type else QUICK_LAYOUTS,
        )
        try:
            for line in lines:
                if not args.quiet:
                    say(line)
        except MergeError as refusal:
            say(f"refused    {refusal}")
            return DIFFERENT
    return DONE


if __name__ == "__main__":
    sys.exit(main())
