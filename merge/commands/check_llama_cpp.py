"""``check_llama_cpp``: what llama.cpp's converters would make of a folder, from headers alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .common import DIFFERENT, DONE, add_output_volume_options, command_parser, run

if TYPE_CHECKING:
    from ..converters.findings import Report

_DESCRIPTION = """\
Say in advance what llama.cpp's own converters would complain of, or get wrong without a word:
examples/convert_legacy_llama.py for a folder with consolidated.*.pth, convert_hf_to_gguf.py for one
with Hugging Face's files. Only headers and small files are read. (--output_type gguf needs neither
converter.)
"""
_EPILOG = """\
stops:  the converter would refuse the folder
silent: it would write a file that is wrong, or that llama.cpp refuses

exit codes: 0 it can be converted, 1 it cannot, or not rightly, 2 the folder holds no such model
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Check one folder."""
    return run(_parser(), _check, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(_DESCRIPTION, _EPILOG)
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the model")
    add_output_volume_options(parser)
    return parser


def _check(args: argparse.Namespace) -> int:
    reports = reports_of(args.folder.expanduser())
    for report in reports:
        for line in _lines(report, args.folder):
            if not args.quiet:
                print(line)
    return DIFFERENT if any(report.findings for report in reports) else DONE


def reports_of(folder: Path) -> list[Report]:
    """A report for each converter that could be meant. Raises ``UsageError`` when none could."""
    if folder.is_dir():
        from ..converters import huggingface, legacy

        reports = [legacy.check(folder)] if legacy.applies(folder) else []
        if huggingface.has_weights(folder) or (not reports and huggingface.applies(folder)):
            reports.append(huggingface.check(folder))
        if reports:
            return reports
    is_gguf = folder.suffix == ".gguf" or any(True for _ in folder.glob("*.gguf"))
    raise UsageError(
        "there is no model for llama.cpp's converters",
        file=folder,
        expected="a folder with consolidated.*.pth, or with config.json and Hugging Face's weights",
        found=_contents(folder),
        remedy="none needed: llama.cpp runs GGUF as it is"
        if is_gguf
        else "give the folder of the model itself",
    )


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return "a file" if folder.exists() else "no such folder"
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "an empty folder"


def _lines(report: Report, folder: Path) -> Iterator[str]:
    yield f"folder     {folder}"
    yield f"converter  {report.converter}"
    for name, value in report.facts.items():
        yield f"{name:<10} {value}"
    for note in report.notes:
        yield f"note       {note}"
    for finding in report.findings:
        first, *rest = str(finding.problem).splitlines()
        yield f"{finding.outcome:<10} {first}"
        yield from (f"           {line.removeprefix('  ')}" for line in rest)
    found = len(report.findings)
    yield f"result     {f'{found} to mend' if found else 'nothing to complain of'}"


if __name__ == "__main__":
    sys.exit(main())
