"""Fuzz every reader: ``python -m tests.fuzz.run --inputs 100000``. Says how many it tried.

Where atheris is installed, the coverage of the readers leads the search, one process a subject.
Elsewhere, and with ``--seed``, edits are drawn at random from a seed, so a finding can be repeated.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from types import FunctionType, ModuleType

from tests.fuzz.folders import compared, configurations, manifests
from tests.fuzz.subjects import Subject, all_subjects, edits_of, try_input

# A plan of a whole merge takes ten times as long as opening one file.
_WEIGHT = {"zip.bin": 4, "zip.bin, inside": 6, "legacy.bin": 6, "w.safetensors": 4, "w.gguf": 4}
_SLOW_SECONDS = 5
# What was found is kept: torch's old container holds addresses, so it differs between runs.
FINDINGS = Path("fuzz-findings")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, help="draw edits at random, beginning with this seed")
    parser.add_argument("--only", metavar="SUBJECT")
    parser.add_argument("--engine", choices=("auto", "atheris", "random"), default="auto")
    args = parser.parse_args()
    faulthandler.enable()
    by_itself = importlib.util.find_spec("atheris") is not None and args.seed is None
    engine = args.engine if args.engine != "auto" else "atheris" if by_itself else "random"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subjects = all_subjects(folder) | manifests(folder / "result")
        subjects |= configurations(folder / "sizes") | compared(folder / "models")
        if args.only:
            subjects = {args.only: subjects[args.only]}
        if engine == "random":
            return _at_random(subjects, folder, args.inputs, args.seed or 0)
        if args.only:
            return _with_atheris(args.only, subjects[args.only], folder, args.inputs)
        return _each_with_atheris(list(subjects), folder, args.inputs)


def _at_random(subjects: dict[str, Subject], folder: Path, inputs: int, first: int) -> int:
    print(f"engine: edits drawn at random, from seed {first}", flush=True)
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


def _each_with_atheris(names: list[str], folder: Path, inputs: int) -> int:
    """A process for each subject, because libFuzzer ends the one it runs in."""
    print("engine: atheris, led by coverage; a subject ends at its first finding", flush=True)
    weights = {name: _WEIGHT.get(name, 1) for name in names}
    findings, started = 0, time.monotonic()
    for name, weight in weights.items():
        share = str(max(1, inputs * weight // sum(weights.values())))
        command = [sys.executable, "-m", "tests.fuzz.run", "--engine", "atheris", "--only", name]
        environment = os.environ | {"TMPDIR": str(folder)}  # libFuzzer leaves its files there
        findings += subprocess.run([*command, "--inputs", share], env=environment).returncode != 0
    print(f"{inputs:,} inputs in {time.monotonic() - started:.0f} s; {findings} findings")
    return 1 if findings else 0


def _with_atheris(name: str, subject: Subject, folder: Path, inputs: int) -> int:
    """libFuzzer's own search, led by which lines of the readers an input reaches."""
    import atheris

    FINDINGS.mkdir(exist_ok=True)
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(subject.content)

    def one(content: bytes) -> None:
        subject.check(content, folder)

    def mutated(content: bytes, most: int, seed: int) -> bytes:
        """Every second time an edit of ours, which also reaches what is packed or structured."""
        if seed % 2:
            try:
                changed = subject.change(edits_of(seed), content)
            except Exception:  # noqa: BLE001 - libFuzzer's own have spoilt the archive or document
                pass
            else:
                if len(changed) <= most:
                    return changed
        return bytes(atheris.Mutate(content, most))

    _instrument(atheris)
    print(f"{name}: {inputs:,} inputs", flush=True)
    limits = f"-runs={inputs}", f"-max_len={2 * len(subject.content) + 8192}"
    kept = f"-artifact_prefix={FINDINGS}/{name.replace('/', '-')}-"
    options = *limits, f"-timeout={6 * _SLOW_SECONDS}", "-verbosity=0", kept
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutated)
    atheris.Fuzz()
    return 0


def _instrument(atheris: ModuleType) -> None:
    """Watch the readers alone: all of torch would take minutes."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("merge.", "tokenizer_tools.", "pickletools")):
            classes = [value for value in vars(module).values() if isinstance(value, type)]
            for space in (module, *classes):
                for value in list(vars(space).values()):
                    if isinstance(value, FunctionType) and value.__module__ == name:
                        atheris.instrument_func(value)


if __name__ == "__main__":
    sys.exit(main())
