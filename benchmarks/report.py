"""The tables of a document, from the file of results.

A document marks the place of each with ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; the words
around them are written by hand.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks import chart, goals, machine, results, scaling, tables
from benchmarks.cases import GROUPS
from benchmarks.figures import Record

Records = dict[str, Record]
PLACE = re.compile(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->", re.DOTALL)


def blocks(records: Records) -> dict[str, str]:
    """Markdown by the name of its place."""
    return {
        "machine": _machine(records),
        "goals": tables.markdown(goals.table(records)),
        "experiments": _experiments(records),
        "sizes": tables.markdown(scaling.sizes(records)),
        "ranks": tables.markdown(scaling.ranks(records)),
        "shards": tables.markdown(scaling.shards(records)),
        "needs": _needs(records),
    }


def _machine(records: Records) -> str:
    """Machines and commits, with the experiments when there is more than one."""
    seen: dict[str, list[str]] = {}
    for name, record in records.items():
        host = record["machine"]
        changed = ", with changes that are in no commit" if host["changed"] else ""
        key = f"{machine.in_words(host)}; commit {host['commit']}{changed}"
        seen.setdefault(key, []).append(name)
    if len(seen) == 1:
        return f"Measured on {next(iter(seen))}."
    return "\n".join(f"- {', '.join(names)}: {key}" for key, names in seen.items())


def _needs(records: Records) -> str:
    rate = scaling.own_rate(records)
    if rate is None:
        return "Not measured."
    told = f"The merge itself at {rate / scaling.GB:.2f} GB of output a second, as measured here:"
    return f"{told}\n\n{tables.markdown(scaling.needs(records))}"


def _experiments(records: Records) -> str:
    """Every record in the order of the suite."""
    order = [name for name in GROUPS["all"] if name in records]
    return "\n\n".join(_experiment(records[name]) for name in order) or "None yet."


def _experiment(record: Record) -> str:
    lines = [f"### {record['case']}", ""]
    lines += [f"`{record['command']}` on {record['date']}, commit {record['machine']['commit']}."]
    lines += ["", *(f"- {line}" for line in tables.described(record)), ""]
    return "\n".join([*lines, tables.markdown(tables.rows(record))])


def filled(document: str, records: Records) -> str:
    """The document with every marked place filled. Raises ``KeyError`` for an unknown name."""
    made = blocks(records)

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- begin {name} -->\n{made[name]}\n<!-- end {name} -->"

    return PLACE.sub(fill, document)


def main(argv: Sequence[str] | None = None) -> int:
    """Fill a document and draw its chart beside it, or print the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    parser.add_argument("--write", type=Path, metavar="DOCUMENT")
    args = parser.parse_args(argv)
    records = results.read(args.results)
    if args.write is None:
        print(tables.text(goals.table(records)))
        return 0
    text = args.write.read_text(encoding="utf-8")
    args.write.write_text(filled(text, records), encoding="utf-8")
    if records:
        chart.draw(records, args.write.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
