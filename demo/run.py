#!/usr/bin/env python3
"""The whole job in under a minute: train a tiny base and a Chinese LoRA, merge, check, speak."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo import settings
from demo.checks import (
    Check,
    compare,
    continue_in_llama_cpp,
    continue_line,
    hf_logits,
    peft_logits,
    pth_logits,
)
from demo.settings import Folders
from demo.text import (
    extend_tokenizer,
    open_tokenizer,
    read_lines,
    train_base_tokenizer,
    train_chinese_pieces,
)
from demo.training import train_base, train_lora
from merge.commands.common import DIFFERENT, DONE, run
from merge.errors import MergeError, UsageError

MERGE_SCRIPT = settings.ROOT / "scripts" / "merge_llama_with_chinese_lora.py"
STEPS = 6


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when everything agrees, 1 when a check found a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output_dir",
        type=Path,
        help="an empty or new folder (default: demo-output of the project, made anew)",
    )
    return run(parser, _demo, argv)


def _demo(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    folders = Folders(_empty_folder(args.output_dir))
    english, chinese = read_lines("english"), read_lines("chinese")
    with _step(1, "Load torch, transformers and PEFT"):
        _prepare_libraries()
    with _step(2, "Train an English tokenizer and a tiny LLaMA"):
        _make_base(english, folders.base)
    with _step(3, "Extend the tokenizer, train a Chinese LoRA with PEFT"):
        _make_lora(chinese, folders)
    with _step(4, "Merge with the real script, into three layouts"):
        _merge(folders, "pth", folders.pth)
        _merge(folders, "huggingface", folders.hf)
        _merge(folders, "gguf", folders.gguf)
    with _step(5, "Compare the merged models with base + adapter under PEFT"):
        checks = _compare(folders, [*chinese, *english])
    with _step(6, "Let the base and the merged model continue a Chinese line"):
        before = continue_line(folders.base, settings.PROMPT)
        after = continue_line(folders.hf, settings.PROMPT)
        in_llama_cpp = continue_in_llama_cpp(folders.gguf, settings.PROMPT)
    lines = {"base goes on": before, "merged goes on": after, "llama.cpp goes on": in_llama_cpp}
    return _close(folders, checks, lines, time.perf_counter() - started)


def _empty_folder(wanted: Path | None) -> Path:
    """Make the default folder anew; never empty a folder that somebody else named."""
    folder = wanted or settings.DEFAULT_OUTPUT
    if wanted is None and folder.is_dir():
        shutil.rmtree(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            "the output folder of the demo is not empty",
            file=folder,
            remedy="name a new folder with --output_dir",
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _step(number: int, title: str) -> Iterator[None]:
    print(f"\n[{number}/{STEPS}] {title}", flush=True)
    started = time.perf_counter()
    yield
    print(f"      {time.perf_counter() - started:.1f} s", flush=True)


def _say(text: str) -> None:
    print(f"      {text}", flush=True)


def _prepare_libraries() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
    # PEFT asks transformers for an attribute that transformers has renamed.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is", FutureWarning)
    import peft
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(settings.THREADS)
    versions = (torch.__version__, transformers.__version__, peft.__version__)
    _say("torch {}, transformers {}, peft {}".format(*versions))


def _make_base(lines: list[str], folder: Path) -> None:
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(train_base_tokenizer(lines))
    loss = train_base(lines, folder)
    pieces, shards = open_tokenizer(folder).get_piece_size(), len(list(folder.glob("model-*")))
    _say(f"{pieces} pieces; loss {loss:.2f} on {len(lines)} English lines; {shards} fp16 shards")


def _make_lora(lines: list[str], folders: Folders) -> None:
    folders.lora.mkdir()
    folders.chinese.write_bytes(train_chinese_pieces(lines))
    extend_tokenizer(folders.base, folders.chinese, folders.lora / "tokenizer.model")
    loss = train_lora(lines, folders.base, folders.lora)
    before, after = (open_tokenizer(f).get_piece_size() for f in (folders.base, folders.lora))
    _say(f"{before} -> {after} pieces; loss {loss:.2f} on {len(lines)} Chinese lines")


def _merge(folders: Folders, output_type: str, output: Path) -> None:
    """Run the merge command as a user would, in a process of its own, and show what it says."""
    options = {
        "--base_model": folders.base,
        "--lora_model": folders.lora,
        "--output_type": output_type,
        "--output_dir": output,
    }
    words = [str(word) for pair in options.items() for word in pair] + ["--report"]
    _say(f"$ python scripts/{MERGE_SCRIPT.name} --output_type {output_type} --report ...")
    done = subprocess.run(
        [sys.executable, str(MERGE_SCRIPT), *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 0:
        raise MergeError(f"the merge ended with exit code {done.returncode}:\n{done.stderr}")
    for line in done.stdout.splitlines():
        _say(f"  {line}")


def _compare(folders: Folders, lines: list[str]) -> list[Check]:
    reference = peft_logits(folders, lines)
    checks = [
        compare("hf  (transformers)", hf_logits(folders.hf, lines), reference),
        compare("pth (Meta's forward pass)", pth_logits(folders.pth, lines), reference),
    ]
    numbers = sum(logits.numel() for logits in reference)
    spread = max(float(logits.max() - logits.min()) for logits in reference)
    _say(f"{numbers:,} logits of {len(lines)} lines, spread over {spread:.0f}")
    return checks


def _close(
    folders: Folders, checks: list[Check], lines: Mapping[str, str | None], seconds: float
) -> int:
    """Print the closing table and return the exit code; the base alone may go on otherwise."""
    rule, right = "-" * 72, True
    print(f"\n{rule}")
    for check in checks:
        print(
            f"{check.name:<28}max |difference| {check.difference:.4f}"
            f" (at most {check.tolerance}){_verdict(check.passed):>9}"
        )
    print(f"{'the line':<28}{settings.PROMPT}")
    for who, line in lines.items():
        if line is None:
            print(f"{who:<28}(not installed: make llama_cpp, or pip install llama-cpp-python)")
            continue
        verdict = "" if who.startswith("base") else _verdict(line == settings.CONTINUATION)
        right = right and verdict != "FAILED"
        print(f"{who:<28}{_one_line(line)}  {verdict}".rstrip())
    if not right:
        print(f"{'expected':<28}{settings.CONTINUATION}")
    print(f"{rule}\n{seconds:.0f} s; everything is in {folders.root}")
    print(f"what the merge changed: {folders.hf / 'report.html'}")
    return DONE if right and all(check.passed for check in checks) else DIFFERENT


def _verdict(passed: bool) -> str:
    return "ok" if passed else "FAILED"


def _one_line(text: str) -> str:
    """Show control characters and undecodable bytes as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    sys.exit(main())
