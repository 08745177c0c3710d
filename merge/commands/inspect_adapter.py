"""``inspect_adapter``: describe an adapter and what a merge would do with it, from headers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MergeError
from ..messages import tr
from ..settings import OUTPUT_TYPES
from .common import DIFFERENT, DONE, add_output_volume_options, command_parser, explain, run
from .language import say
from .machine import add_json_option, describe_error, print_json

if TYPE_CHECKING:
    from ..deltas.adapter_config import AdapterFolder
    from ..settings import OutputType
    from ..storage.offload import Offload

_DESCRIPTION = tr("""\
Describe an adapter: kind, PEFT release, rank and scaling by module, vocabulary rows, dtypes,
digest and published name; and what a merge would add, replace or grow, or why it would be refused.
Only headers are read, and the weight file once for its digest. With --base_model the checks are
those of a merge of this adapter alone, with its default options; --verbose lists every module.
""")
_EPILOG = tr("""\
exit codes: 0 it can be merged, 1 a merge would refuse it (the report says why), 2 wrong input
""")


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect one adapter."""
    return run(make_parser(), _inspect, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EPILOG)
    parser.add_argument(
        "adapter", metavar="DIR", help=tr("adapter folder, zipped folder, .gguf file or Hub id")
    )
    parser.add_argument(
        "--base_model",
        metavar="DIR_OR_HUB_ID",
        help=tr("say whether it fits this base, and what would change"),
    )
    parser.add_argument(
        "--output_type",
        choices=OUTPUT_TYPES,
        help=tr("of the merge that is checked (default: pth and huggingface)"),
    )
    parser.add_argument(
        "--no_digest",
        action="store_true",
        help=tr("do not read the weights at all: published adapters are not recognised then"),
    )
    add_output_volume_options(parser)
    add_json_option(parser)
    return parser


def _inspect(args: argparse.Namespace) -> int:
    from ..deltas.adapter_config import AdapterFolder
    from ..jobs.inspect_adapter import QUICK_LAYOUTS
    from ..plan.places import resolve
    from ..storage.offload import Offload
    from ..storage.urls import is_url

    with Offload(None, Path.cwd()) as offload:
        folder = AdapterFolder(resolve(args.adapter, tr("adapter"), offload))
        base = args.base_model or None
        if base is not None and not is_url(base):  # which says at once what is not there
            base = resolve(base, tr("base model"), offload)
        folder.require_adapter()
        layouts = (args.output_type,) if args.output_type else QUICK_LAYOUTS
        inspect = _print_json if args.as_json else _print_lines
        return inspect(args, folder, base, layouts, offload)


def _print_lines(
    args: argparse.Namespace,
    folder: AdapterFolder,
    base: Path | None,
    layouts: Sequence[OutputType],
    offload: Offload,
) -> int:
    from ..jobs.inspect_adapter import describe_adapter

    lines = describe_adapter(
        folder,
        offload,
        base,
        digest=not args.no_digest,
        every_module=args.verbose,
        layouts=layouts,
    )
    try:
        for line in lines:
            if not args.quiet:
                say(line)
    except MergeError as refusal:
        refusal.rename_paths(offload.copies)
        say(tr("refused    {refusal}", refusal=explain(refusal)))
        return DIFFERENT
    return DONE


def _print_json(
    args: argparse.Namespace,
    folder: AdapterFolder,
    base: Path | None,
    layouts: Sequence[OutputType],
    offload: Offload,
) -> int:
    from ..jobs.adapter_facts import check_fit, collect_facts

    found: dict[str, Any] = {"adapter": None, "fits": None, "refused": None}
    try:
        found["adapter"] = collect_facts(folder, offload, not args.no_digest)
        if base is not None:
            found["fits"] = check_fit(folder, base, offload, layouts, not args.no_digest)
    except MergeError as refusal:
        refusal.rename_paths(offload.copies)
        found["refused"] = describe_error(refusal)
    print_json(found)
    return DIFFERENT if found["refused"] else DONE


if __name__ == "__main__":
    sys.exit(main())
