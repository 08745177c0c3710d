"""Time the project's command on a large model, in turns with copies of as many bytes and peers.

Models are made once and kept in the work folder. Every step runs as a process of its own and ends
when its last byte is on the disk. Whatever follows ``--`` is handed on to the command.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import case, chart, peers, results, tables
from benchmarks.case import Case
from benchmarks.job import OUTPUT_TYPES, SCRIPT, Job
from benchmarks.kinds import DTYPES, STEMS, AdapterKind, BaseKind
from benchmarks.shapes import LINEAR, SHAPES


def parser() -> argparse.ArgumentParser:
    """All options, by what they are about."""
    made = argparse.ArgumentParser(description=__doc__)
    model = made.add_argument_group("model")
    model.add_argument("--shape", choices=SHAPES, default="tiny")
    model.add_argument("--num_layers", type=int, help="keep only this many layers of the shape")
    model.add_argument("--container", choices=STEMS, default="bin", help="of the base model")
    model.add_argument("--base_dtype", choices=DTYPES, default="float16")
    model.add_argument("--sparse", action="store_true", help="base files are holes, all zeros")
    adapter = made.add_argument_group("adapter")
    adapter.add_argument("--rank", type=int, default=8)
    adapter.add_argument("--adapter_dtype", choices=DTYPES, default="float16")
    adapter.add_argument("--targets", nargs="+", choices=LINEAR, default=list(LINEAR))
    adapter.add_argument("--no_embeddings", dest="embeddings", action="store_false")
    adapter.add_argument("--dora", action="store_true")
    adapter.add_argument("--chain", action="store_true", help="two adapters, 49953 and 49954 rows")
    output = made.add_argument_group("output")
    output.add_argument("--output_type", choices=OUTPUT_TYPES, default="pth")
    output.add_argument("--safe_serialization", action="store_true")
    output.add_argument("--num_shards", type=int)
    output.add_argument("--outtype", help="of GGUF: f16, q8_0")
    output.add_argument("--sink", action="store_true", help="write into memory and discard it")
    _add_measuring(made.add_argument_group("measuring"))
    return made


def _add_measuring(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--runs", type=int, default=1)
    group.add_argument("--cold", action="store_true", help="drop the inputs from the page cache")
    group.add_argument("--no_floors", action="store_true", help="without the two copies")
    group.add_argument("--peers", nargs="+", choices=peers.NAMES, default=[])
    group.add_argument("--verify", action="store_true", help="compare the result with float64")
    group.add_argument("--keep_output", action="store_true", help="keep the last merged model")
    group.add_argument("--work_dir", type=Path, default=Path("benchmark-output"))
    group.add_argument("--script", type=Path, default=SCRIPT, help="another command to measure")


def parse(words: Sequence[str]) -> Case:
    """Read the options; what follows ``--`` goes to the command."""
    cut = words.index("--") if "--" in words else len(words)
    made = parser()
    args = made.parse_args(words[:cut])
    if args.cold and not hasattr(os, "posix_fadvise"):
        made.error("--cold needs posix_fadvise, which this system does not have")
    if args.runs < 1:
        made.error("--runs has to be 1 at least")
    job = Job(
        args.work_dir,
        args.shape,
        args.num_layers,
        BaseKind(args.container, args.base_dtype, args.sparse),
        AdapterKind(
            rank=args.rank,
            dtype=args.adapter_dtype,
            targets=tuple(args.targets),
            embeddings=args.embeddings,
            dora=args.dora,
        ),
        args.chain,
        args.output_type,
        args.safe_serialization,
        args.num_shards,
        args.outtype,
        args.script,
        tuple(words[cut + 1 :]),
    )
    return Case(
        _name(job, args.cold),
        {"merge": job},
        () if args.no_floors else ("cp", "direct"),
        tuple(args.peers),
        args.cold,
        args.runs,
        args.verify,
        args.keep_output,
        args.sink,
    )


def _name(job: Job, cold: bool) -> str:
    """Of the files with the figures."""
    parts = [job.base.name.removeprefix("base-"), *(folder.name for folder in job.adapters)]
    kind = "-".join([*parts, "to", *job.target.split(), "cold" if cold else "cached"])
    return f"merge-{kind}"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, 1 the result is wrong or a command failed, 2 wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    asked = parse(words)
    try:
        record = case.run(asked, case.command_line("run", words), lambda line: None)
    except case.NoRoomError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path = asked.job.folder(f"{asked.name}.json")
    results.write(path, {asked.name: record})
    print(tables.shown(record))
    print(f"chart: {chart.draw_in_process(path, path.with_suffix('.png')) or 'needs matplotlib'}")
    print(f"all figures: {path}")
    return 0 if case.is_right(record) else 1


if __name__ == "__main__":
    raise SystemExit(main())
