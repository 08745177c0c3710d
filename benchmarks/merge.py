"""Time the project's command on a large model, interleaved with ``cp`` of as many bytes.

Models are made once and kept in the work folder. Every step runs as a process of its own and ends
when its last byte is on the disk. Whatever follows ``--`` is handed on to the command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # this folder's merge.py must not be taken for the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import measure, report
from benchmarks.job import ROOT, Job, copy_sources, make_models
from benchmarks.measure import Usage
from benchmarks.models import STEMS
from benchmarks.shapes import SHAPES

SCRIPT = ROOT / "scripts" / "merge_llama_with_chinese_lora.py"
FLOOR = "cp + sync"


def prepare(job: Job, files: Sequence[Path], name: str) -> tuple[Path, float | None]:
    """An empty target folder, nothing waiting to be written, the cache as it was asked for."""
    for leftover in ("output", "copy"):
        shutil.rmtree(job.folder(leftover), ignore_errors=True)
    target = job.folder(name)
    target.mkdir()
    if hasattr(os, "sync"):
        os.sync()
    if job.cold:
        measure.drop_from_cache(files)
    else:
        measure.read_into_cache(files)
    return target, measure.cached_share(files)


def copy_once(job: Job, sources: Sequence[Path]) -> tuple[Usage, float | None]:
    """The floor: the same number of bytes, from the same files."""
    target, cached = prepare(job, sources, "copy")
    log = job.folder("copy.log")
    usage = measure.measure(measure.copy_command(sources, target), log, target)
    if usage.exit_code:
        raise SystemExit(f"cp failed: {log.read_text(encoding='utf-8', errors='replace')}")
    shutil.rmtree(target)
    return usage, cached


def merge_once(job: Job) -> tuple[Usage, float | None]:
    """The command, with its output left in place."""
    target, cached = prepare(job, job.inputs, "output")
    target.rmdir()
    log = job.folder("merge.log")
    usage = measure.measure(job.command, log, target)
    if usage.exit_code:
        said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"the merge ended with exit code {usage.exit_code}:\n{said}")
    return usage, cached


def verify(job: Job) -> tuple[bool, str]:
    """Compare the output with float64; the table that came out."""
    script = ROOT / "benchmarks" / "verify.py"
    words = [sys.executable, str(script), "--base_model", str(job.base), "--lora_model"]
    words += [*map(str, job.adapters), "--output_dir", str(job.folder("output"))]
    told = subprocess.run(words, capture_output=True, encoding="utf-8", check=False)
    return told.returncode == 0, told.stdout + told.stderr


def run(job: Job) -> dict[str, Any]:
    """cp, merge, cp, merge, ..., cp; the result as it goes into the JSON file."""
    sources = copy_sources(job)
    runs: dict[str, list[Usage]] = {FLOOR: [], "merge": []}
    cached: dict[str, list[float | None]] = {FLOOR: [], "merge": []}
    result: dict[str, Any] = {"verified": None}

    def note(step: str, measured: tuple[Usage, float | None]) -> None:
        runs[step].append(measured[0])
        cached[step].append(measured[1])

    note(FLOOR, copy_once(job, sources))
    for number in range(1, job.runs + 1):
        note("merge", merge_once(job))
        if number == job.runs:
            result["output_bytes"] = measure.folder_bytes(job.folder("output"))
            if job.verify:
                result["verified"], result["comparison"] = verify(job)
            if job.keep_output:
                kept = job.folder("kept-output")
                shutil.rmtree(kept, ignore_errors=True)
                job.folder("output").rename(kept)
        note(FLOOR, copy_once(job, sources))
    result["ratio_to_cp"] = report.ratios(runs, "merge", FLOOR)
    result["inputs_cached"] = cached
    result["runs"] = runs
    return result


def describe(job: Job) -> str:
    """The heading of the table."""
    shape = job.shape
    grown = " -> ".join(map(str, [shape.vocab_size, *job.rows]))
    state = "not cached" if job.cold else "cached"
    return (
        f"{job.name}: hidden {shape.hidden_size}, {shape.num_hidden_layers} layers, rows {grown}, "
        f"rank {job.rank}; {job.container} -> {job.target}; inputs {state}; {job.runs} runs, "
        "min / median / max"
    )


def show(job: Job, result: dict[str, Any]) -> str:
    """Heading, table, ratios, correctness."""
    written = [usage.written for usage in result["runs"]["merge"]]
    amplification = [None if w is None else w / result["output_bytes"] for w in written]
    shares = [share for shares in result["inputs_cached"].values() for share in shares]
    lines = [
        describe(job),
        report.table(result["runs"]),
        f"ratio to cp           {report.spread(result['ratio_to_cp'])}",
        f"written / output      {report.spread(amplification)}",
        f"share cached before   {report.spread(shares)}",
    ]
    if result["verified"] is not None:
        lines += ["against float64:", result["comparison"].rstrip()]
    return "\n".join(lines)


def save(job: Job, result: dict[str, Any]) -> Path:
    """Write everything that was measured; the path it went to."""
    runs = {step: [*map(dataclasses.asdict, usages)] for step, usages in result["runs"].items()}
    stages, state = ("-chain" if job.chain else ""), ("cold" if job.cold else "cached")
    kind = f"{job.container}-to-{job.target}".replace(" ", "-")
    path = job.folder(f"merge-{job.name}-r{job.rank}{stages}-{kind}-{state}.json")
    options = dataclasses.asdict(job)
    whole = {"options": options, "machine": report.machine(), **result, "runs": runs}
    path.write_text(json.dumps(whole, indent=2, default=str) + "\n", encoding="utf-8")
    return path


def parse(argv: Sequence[str] | None) -> Job:
    """Read the options; what follows ``--`` is in ``rest``."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", dest="shape_name", choices=SHAPES, default="tiny")
    parser.add_argument("--num_layers", type=int, help="keep only this many layers of the shape")
    parser.add_argument("--output_type", choices=("pth", "huggingface"), default="pth")
    parser.add_argument("--container", choices=STEMS, default="bin", help="of the base model")
    parser.add_argument("--safe_serialization", action="store_true")
    parser.add_argument("--num_shards", type=int)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--chain", action="store_true", help="two adapters, 49953 and 49954 rows")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--cold", action="store_true", help="drop the inputs from the page cache")
    parser.add_argument("--verify", action="store_true", help="compare the result with float64")
    parser.add_argument("--keep_output", action="store_true", help="keep the last merged model")
    parser.add_argument("--work_dir", type=Path, default=Path("benchmark-output"))
    parser.add_argument("--script", type=Path, default=SCRIPT, help="another command to measure")
    args = parser.parse_args(words[:cut])
    if args.cold and not hasattr(os, "posix_fadvise"):
        parser.error("--cold needs posix_fadvise, which this system does not have")
    if args.runs < 1:
        parser.error("--runs has to be 1 at least")
    return Job(**vars(args), rest=words[cut + 1 :])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, 1 the result is wrong or a command failed, 2 wrong usage."""
    job = parse(argv)
    job.work_dir.mkdir(parents=True, exist_ok=True)
    make_models(job)
    copies = 2 if job.keep_output else 1
    free = shutil.disk_usage(job.work_dir).free
    if free < copies * job.output_bytes * 1.02:
        print(f"error: {job.work_dir} has room for {free:,} bytes only", file=sys.stderr)
        return 2
    result = run(job)
    print(show(job, result))
    print(f"all figures: {save(job, result)}")
    return 1 if result["verified"] is False else 0


if __name__ == "__main__":
    raise SystemExit(main())
