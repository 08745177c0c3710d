"""Fuzz every reader: ``python -m tests.fuzz.run --inputs 100000``. Says how many it tried.

With ``--atheris`` the coverage of the readers leads the search (for one subject); without, edits
are drawn at random from ``--seed``, so a finding can be repeated.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from types import FunctionType, ModuleType

from tests.fuzz.subjects import Subject, all_subjects, edits_of, try_input

# A plan of a whole merge takes ten times as long as opening one file.
_WEIGHT = {"zip.bin": 4, "zip.bin, inside": 6, "legacy.bin": 6, "w.safetensors": 4, "w.gguf": 4}
_SLOW_SECONDS = 5.0
# What was found is kept: torch's old container holds addresses, so it differs between runs.
FINDINGS = Path("fuzz-findings")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="SUBJECT")
    parser.add_argument("--atheris", action="store_true")
    args = parser.parse_args()
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subjects = all_subjects(folder)
        if args.only:
            subjects = {args.only: subjects[args.only]}
        if args.atheris:
            return _with_atheris(subjects, folder, args.inputs)
        return _at_random(subjects, folder, args.inputs, args.seed)


def _at_random(subjects: dict[str, Subject], folder: Path, inputs: int, first: int) -> int:
    order = [name for name in subjects for _ in range(_WEIGHT.get(name, 1))]
    tried: Counter[str] = Counter()
    read: Counter[str] = Counter()
    findings = 0
    started = time.monotonic()
    for seed in range(first, first + inputs):
        name = order[seed % len(order)]
        begun = time.monotonic()
        tried[name] += 1
        try:
            read[name] += try_input(subjects[name], edits_of(seed), folder)
        except BaseException as error:  # noqa: BLE001 - any is what is looked for
            if isinstance(error, KeyboardInterrupt):
                break
            findings += 1
            subject = subjects[name]
            kept = FINDINGS / f"{name.replace('/', '-')}-{seed}"
            FINDINGS.mkdir(exist_ok=True)
            kept.write_bytes(subject.change(edits_of(seed), subject.content))
            print(f"FINDING {name}, seed {seed}: {kept}", flush=True)
            traceback.print_exc(limit=-6)
        if time.monotonic() - begun > _SLOW_SECONDS:
            findings += 1
            print(f"SLOW {name}, seed {seed}: {time.monotonic() - begun:.1f} s", flush=True)
    for name in subjects:
        print(f"{name:36} {tried[name]:>8,} inputs, {read[name]:>7,} read, the others refused")
    seconds = time.monotonic() - started
    print(f"{tried.total():,} inputs in {seconds:.0f} s from seed {first}; {findings} findings")
    return 1 if findings else 0


def _with_atheris(subjects: dict[str, Subject], folder: Path, inputs: int) -> int:
    """libFuzzer's own search, led by which lines of the readers an input reaches."""
    import atheris

    name, subject = next(iter(subjects.items()))
    with tempfile.TemporaryDirectory() as corpus:
        Path(corpus, "seed").write_bytes(subject.content)

        def one(content: bytes) -> None:
            subject.check(content, folder)

        _instrument(atheris)
        print(f"{name}: {inputs:,} inputs", flush=True)
        atheris.Setup([sys.argv[0], f"-runs={inputs}", "-max_len=8192", corpus], one)
        atheris.Fuzz()
    return 0


def _instrument(atheris: ModuleType) -> None:
    """Watch the readers alone: all of torch would take minutes."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("merge.formats", "merge.zip_files", "merge.json_text", "pickletools")):
            for value in list(vars(module).values()):
                if isinstance(value, FunctionType) and value.__module__ == name:
                    atheris.instrument_func(value)


if __name__ == "__main__":
    sys.exit(main())
