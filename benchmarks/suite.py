"""Run the experiments that docs/performance.md reports, some or all, and keep what they gave.

Give names of experiments or of groups: must, scaling, further, all. What is measured again takes
the place of the earlier figures. ``benchmarks.report --write docs/performance.md`` makes tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import case, results, tables
from benchmarks.case import Case
from benchmarks.cases import GROUPS, cases
from benchmarks.job import SCRIPT


def chosen(words: Sequence[str], known: dict[str, Case]) -> list[Case]:
    """The experiments behind names and groups, each once. Raises ``KeyError`` for another name."""
    names = [name for word in words for name in GROUPS.get(word, (word,))]
    return [known[name] for name in dict.fromkeys(names)]


def tell(line: str) -> None:
    """Progress, so that a long run can be watched."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, 1 a result is wrong or a command failed, 2 wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: list what there is")
    parser.add_argument("--work_dir", type=Path, default=Path("benchmark-output"))
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    parser.add_argument("--runs", type=int, help="instead of each experiment's own number")
    parser.add_argument("--no_verify", action="store_true", help="do not compare with float64")
    parser.add_argument("--script", type=Path, default=SCRIPT, help="another command to measure")
    args = parser.parse_args(words)
    known = cases(args.work_dir, args.script)
    if not args.names:
        print("\n".join(f"{group}: {' '.join(names)}" for group, names in GROUPS.items()))
        return 0
    try:
        todo = chosen(args.names, known)
    except KeyError as error:
        parser.error(f"no experiment and no group has the name {error}")
    good = True
    for asked in todo:
        changed = dataclasses.replace(
            asked, runs=args.runs or asked.runs, verify=asked.verify and not args.no_verify
        )
        good &= _measure(changed, case.command_line("suite", [asked.name]), args.results)
    return 0 if good else 1


def _measure(asked: Case, command: str, path: Path) -> bool:
    """Run one experiment and keep its record; whether all went well."""
    tell(f"== {asked.name}")
    try:
        record = case.run(asked, command, tell)
    except (case.NoRoomError, SystemExit) as error:
        tell(f"{asked.name} was not measured: {error}")
        return False
    results.add(path, record)
    print(tables.shown(record))
    return case.is_right(record)


if __name__ == "__main__":
    raise SystemExit(main())
