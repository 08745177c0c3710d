"""Ctrl-C between any two lines of a command's main thread, as often as wanted.

``python -m tests.interruption.between_lines --runs 1000`` prints how many of these runs ended as
they should, and ends with exit code 1 unless all did. Each command runs in a forked process; its
lines, of this project and of the libraries that it calls, are counted by ``sys.settrace``, and at a
random one SIGINT is raised. The command must end with exit code 130 and without a traceback, with
nothing half done under a final name; the same command with ``--resume`` must end with 0, in the
bytes of an uninterrupted run.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from merge.commands import (
    apply_delta,
    common,
    convert_checkpoint,
    convert_llama_weights_to_hf,
    make_delta,
    merge_lora,
    merge_tokenizers,
)
from merge.commands import resize_vocabulary as resize
from merge.engines import writers as output_files
from merge.jobs import writing
from tests.interruption.final_names import require_nothing_half
from tests.interruption.kill_many import SMALL_WRITES, contents
from tests.kit.adapters import make_adapter
from tests.kit.llamas import make_base
from tests.kit.models import LLAMA_ROWS, adapter_tensors, base_tensors, save_adapter, save_base
from tests.kit.tokenizer_models import train_llama

Command = Callable[[Sequence[str]], int]
# Of the work of a command: never interrupted but counted, and neither.
NEVER, UNTRACED = 1 << 60, 0
# The grace of a command is for people; a traced one on a busy machine takes longer to its end.
GRACE_SECONDS = 20.0


@dataclass
class Kind:
    """A command with its arguments, but for the output folder, and what stands there before."""

    name: str
    command: Command
    output: str
    arguments: Sequence[str]
    earlier: Sequence[str] | None = None
    again: str = "--resume"
    before: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, str] = field(default_factory=dict)
    lines: int = 0
    first_written: int = 0

    def point(self, chance: random.Random) -> int:
        """A line at random, half of the time one after writing has begun."""
        return chance.randint(chance.choice((1, self.first_written)), self.lines)

    def run(self, out: Path, told: Path, at: int = NEVER, *more: str) -> tuple[int, int, int]:
        """Run the command in a process of its own; return exit code and number of lines, the
        latter also up to where writing begins.

        At line ``at`` of its work SIGINT is raised. What it says goes to the file ``told``.
        """
        arguments = [*self.arguments, self.output, str(out), *more]
        return in_a_process(lambda: self.command(arguments), told, at)

    def prepare(self, out: Path, told: Path) -> None:
        """Put an earlier result there, if there is to be one."""
        if self.earlier is not None:
            command = merge_lora.main
            code, *_ = in_a_process(
                lambda: command([*(self.earlier or ()), "--output_dir", str(out)]), told, UNTRACED
            )
            assert code == 0, told.read_text(encoding="utf-8")

    def measure(self, work: Path) -> None:
        """Run it undisturbed, for its bytes and the number of its lines."""
        out, told = work / "out", work / "told"
        self.prepare(out, told)
        self.before = contents(out)
        code, self.lines, self.first_written = self.run(out, told)
        assert code == 0, told.read_text(encoding="utf-8")
        self.wanted = contents(out)
        shutil.rmtree(out)


def in_a_process(work: Callable[[], int], told: Path, at: int) -> tuple[int, int, int]:
    """Fork, run ``work`` with SIGINT at its line ``at``; return what ``traced`` does."""
    reading, reporting = os.pipe()
    process = os.fork()
    if process == 0:
        handle = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        # A shell that starts this in the background has it ignore SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.dump_traceback_later(GRACE_SECONDS / 2)
        output_files._LEAST_WRITE = output_files._WRITE_BYTES = SMALL_WRITES
        common._GRACE_SECONDS = GRACE_SECONDS
        code, lines, first = traced(work, at)
        os.write(reporting, f"{lines} {first}".encode())
        common.exit_immediately(code)
    os.close(reporting)
    with os.fdopen(reading, "rb") as stream:
        lines, first = map(int, stream.read().split() or (0, 0))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), lines, first


def traced(work: Callable[[], int], at: int) -> tuple[int, int, int]:
    """Run ``work``, and raise SIGINT at line ``at`` of what it does while it handles signals.

    Returns its exit code, its lines, and those up to where a plan begins to be written.
    """
    count = first = 0
    usual = signal.getsignal(signal.SIGINT)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count, first
        if not first and frame.f_code is writing.write.__code__:
            first = count
        if event == "line" and signal.getsignal(signal.SIGINT) is not usual:
            count += 1
            if count == at:
                signal.raise_signal(signal.SIGINT)
        return trace

    if at != UNTRACED:
        sys.settrace(trace)
    try:
        code = work()
    finally:
        sys.settrace(None)
    return code, count, first


def kinds(folder: Path) -> list[Kind]:
    """Every command that writes a model, in each type of output."""
    save_base(folder / "base")
    save_adapter(folder / "llama", adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    delta = {name: tensor.flip(0) * 0.01 for name, tensor in base_tensors().items()}
    save_base(folder / "delta", delta)
    wide = make_base(folder / "wide", num_key_value_heads=4)
    make_adapter(folder / "wide_lora", wide, rows=131)
    make_tokenizer = folder / "llama"
    base, llama = str(folder / "base"), str(folder / "llama")
    merge = ["--base_model", base, "--lora_model", llama]
    wide_merge = ["--base_model", str(wide), "--lora_model", str(folder / "wide_lora")]
    hf = ["--output_type", "hf", "--max_shard_size", "5KB"]
    gguf = ["--output_type", "gguf", "--outtype", "f16"]
    to, overwrite = "--output_dir", "--overwrite"
    add = ["--base-model-path", base, "--delta-path", str(folder / "delta")]
    subtract = ["--base-model-path", base, "--target-model-path", str(folder / "delta")]
    grow = ["--base_model", base, "--tokenizer", str(make_tokenizer)]
    meta = folder / "meta"
    to_meta = ["--input", str(folder / "base"), "--output", str(meta), "--output_type", "pth"]
    code, *_ = in_a_process(lambda: convert_checkpoint.main(to_meta), folder / "told", UNTRACED)
    assert code == 0
    (folder / "tokenizer.model").write_bytes(llama_tokenizer())
    pad = ["--llama_tokenizer_dir", str(folder / "tokenizer.model"), "--pad_token"]
    main = merge_lora.main
    return [
        Kind("pth, 2 files", main, to, [*merge, "--num_shards", "2"]),
        Kind("bin, several files", main, to, [*merge, *hf]),
        Kind("safetensors", main, to, [*merge, *hf, "--safe_serialization"]),
        Kind("gguf, several files", main, to, [*merge, *gguf, "--split_max_size", "4kB"]),
        Kind("gguf, q8_0", main, to, [*wide_merge, "--output_type", "gguf", "--outtype", "q8_0"]),
        Kind("pth over bin", main, to, [*merge, overwrite], [*merge, *hf]),
        Kind(
            "bin over other bin",
            main,
            to,
            [*merge, *hf, overwrite],
            [*merge, *hf, "--lora_weights", "0.5"],
        ),
        Kind("convert", convert_checkpoint.main, "--output", ["--input", base, *hf]),
        Kind("apply_delta", apply_delta.main, "--target-model-path", [*add, *hf]),
        Kind("make_delta", make_delta.main, "--delta-path", [*subtract, *hf]),
        Kind("resize", resize.main, to, [*grow, *hf]),
        Kind("from Meta", convert_llama_weights_to_hf.main, to, ["--input_dir", str(meta)]),
        Kind("merge_tokenizers", merge_tokenizers.main, to, pad, again=overwrite),
    ]


def llama_tokenizer() -> bytes:
    """A small BPE model with the pieces of bytes that LLaMA's has."""
    model = train_llama(400)
    return bytes(model.SerializeToString())


def interrupted_run_is_right(kind: Kind, at: int, work: Path) -> bool:
    """Interrupt at a line, resume, compare. Raises ``RuntimeError`` for what is wrong."""
    out, told, lines = work / "out", work / "told", 0
    while lines < at:  # threads take turns differently, so a run may end before that line
        shutil.rmtree(out, ignore_errors=True)
        kind.prepare(out, told)
        at = min(at, lines or at)
        code, lines, _ = kind.run(out, told, at)
    text = told.read_text(encoding="utf-8")
    if code != 130 or "Traceback" in text or "without waiting" in text:
        raise RuntimeError(f"exit code {code}:\n{text}")
    require_nothing_half(contents(out), kind.before, kind.wanted)
    code, *_ = kind.run(out, told, UNTRACED, kind.again)
    if code != 0:
        raise RuntimeError(f"resume ended with {code}:\n{told.read_text(encoding='utf-8')}")
    if contents(out) != kind.wanted:
        raise RuntimeError(f"other bytes: {sorted(contents(out))}")
    return True


def main() -> int:
    """Run as many as are wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    chance, right = random.Random(args.seed), 0
    work = Path(tempfile.mkdtemp(prefix="interrupted-"))
    try:
        cases = kinds(work)
        for kind in cases:
            kind.measure(work)
            print(f"{kind.name}: {kind.lines} lines", flush=True)
        for number in range(args.runs):
            kind = cases[number % len(cases)]
            at = kind.point(chance)
            try:
                right += interrupted_run_is_right(kind, at, work)
            except RuntimeError as error:
                print(f"{kind.name}, line {at} of {kind.lines}: {error}", flush=True)
    finally:
        shutil.rmtree(work)
    print(f"{right} of {args.runs} interrupted commands ended as they should")
    return 0 if right == args.runs else 1


if __name__ == "__main__":
    sys.exit(main())
