"""``verify_sha256``: identify files by the checksums in ``SHA256.md``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MergeError, UsageError, shown
from ..messages import compose, tr
from .common import DIFFERENT, DONE, add_output_volume_options, command_parser, run
from .language import say

if TYPE_CHECKING:
    from ..checksums.check_files import CheckedFile

_DESCRIPTION = tr("""\
Identify files by their published SHA-256 (SHA256.md), and list missing parts of their models and
unknown files. Files of a model that was merged here are compared with its merge_manifest.json.
""")
_EPILOG = tr("""\
examples:
  %(prog)s llama-7b-hf chinese-alpaca-plus-lora-7b
  %(prog)s chinese-alpaca-plus-lora-7b --expect "Chinese-Alpaca-Plus-7B"

exit codes: 0 nothing contradicts, 1 not what --expect or a manifest says, 2 wrong input,
130 interrupted
""")


def main(argv: Sequence[str] | None = None) -> int:
    """Check files and folders."""
    return run(make_parser(), _verify, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EPILOG)
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help=tr("files, or folders with models in them"),
    )
    parser.add_argument(
        "--expect",
        metavar="MODEL",
        help=tr(
            'name of a model in SHA256.md, such as "Chinese-Alpaca-Plus-7B" or '
            '"13B": every weight file must be the part that its name says, and '
            "all parts must be there; of a file given by itself only the "
            "contents count"
        ),
    )
    add_output_volume_options(parser)
    return parser


def _verify(args: argparse.Namespace) -> int:
    from ..checksums.check_files import find_files, find_mismatches, require_known_model
    from ..checksums.known_files import CHECKSUMS, load_known_files
    from ..version import MANIFEST_NAME

    if not load_known_files():
        raise UsageError(tr("the published checksums are not installed"), file=CHECKSUMS)
    if args.expect is not None:
        require_known_model(args.expect)
    files = list(dict.fromkeys(file for path in args.paths for file in find_files(path)))
    merged = [path for path in args.paths if (path / MANIFEST_NAME).is_file()]
    found = {file for path in args.paths if path.is_dir() for file in find_files(path)}
    checked, faults = _check(files, set(files) - found, merged, args.quiet)
    if args.expect is not None:
        faults += find_mismatches(checked, args.expect)
    if not args.quiet:
        _print_files(checked)
    for fault in faults:
        say(tr("MISMATCH: {fault}", fault=fault), file=sys.stderr)
    if faults:
        return DIFFERENT
    if args.expect is not None and not args.quiet:
        say(_describe_match(checked, args.expect))
    return DONE


def _describe_match(checked: Sequence[CheckedFile], model: str) -> str:
    if all(file.known for file in checked):
        return tr("all of it is {model}, as published", model=model)
    return tr("all weights are {model}, as published; of its tokenizer no checksum is", model=model)


def _check(
    files: Sequence[Path], alone: Container[Path], merged: Sequence[Path], quiet: bool
) -> tuple[list[CheckedFile], list[MergeError]]:
    """Read every file once, with progress, and compare those of merged models with manifests.

    ``alone`` are the files that were given themselves, not by their folder.
    """
    from ..checksums.check_files import check_file
    from ..verification import manifest
    from .progress import progress_bar

    manifests = {folder: manifest.read_manifest(folder) for folder in merged}
    listed = [path for item in manifests.items() for path in manifest.list_files(*item)]
    everything = list(dict.fromkeys([*files, *listed]))
    digests: dict[Path, CheckedFile] = {}
    with progress_bar(quiet, tr("reading")) as show:
        on_bytes = _byte_counter(show, sum(path.stat().st_size for path in everything))
        for path in everything:
            digests[path] = check_file(path, on_bytes, path in alone)
    faults: list[MergeError] = []
    for folder, content in manifests.items():
        found = list(manifest.check_files(folder, content, lambda path: digests[path].sha256))
        faults += found
        if not found and not quiet:
            name, count = shown(str(folder)), len(content.files)
            say(tr("{name}: all {count} files are as the merge wrote them", name=name, count=count))
    return [digests[path] for path in files], faults


def _byte_counter(show: Callable[[int, int], object], total: int) -> Callable[[int], None]:
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        show(done, total)

    return on_bytes


def _print_files(checked: Sequence[CheckedFile]) -> None:
    from ..checksums.check_files import find_missing_parts, group_by_folder

    for file in checked:
        path, about = shown(str(file.path)), file.describe()
        say(compose("{sha256}  {path}\n    {about}", sha256=file.sha256, path=path, about=about))
    for folder, files in group_by_folder(checked).items():
        where = tr(" in {folder}", folder=shown(str(folder))) if folder else ""
        for here, lacking in find_missing_parts(files):
            names = ", ".join(part.file_name for part in lacking)
            say(
                tr(
                    "missing from {model} · {kind}{where}: {names}",
                    model=here.model,
                    kind=here.kind,
                    where=where,
                    names=names,
                )
            )
    if unknown := sum(file.known is None for file in checked):
        say(tr("unknown: {unknown} of {n_checked} files", unknown=unknown, n_checked=len(checked)))


if __name__ == "__main__":
    sys.exit(main())
