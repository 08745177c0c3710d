"""Takes the commands out of a page and runs them as a reader would, in one folder after another."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kit.pages import FENCE
from tests.kit.run import ROOT, quick_environment

_OUTPUTS = ("--output_dir", "--target-model-path", "--output")
_HEADING = re.compile(r"^##? .*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code of a page: its section's heading, its language, its text."""

    heading: str
    language: str
    text: str


def list_blocks(page: str) -> Iterator[Block]:
    """The blocks of a page in order, each with the heading of the first or second level above."""
    for match in FENCE.finditer(page):
        above = FENCE.sub("", page[: match.start()])
        heading = _HEADING.findall(above)[-1].lstrip("# ")
        yield Block(heading, match[1], match[2])


def split_commands(text: str) -> list[list[str]]:
    """The commands of a block for a shell, in words, without what stands behind ``#``.

    >>> split_commands("cd a && ls \\\\\\n  -l  # list\\n")
    [['cd', 'a'], ['ls', '-l']]
    """
    lines = text.replace("\\\n", " ").splitlines()
    commands = []
    for line in lines:
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                commands.append(words)
                words = []
    return commands


def run_python(words: list[str]) -> int:
    """Run ``python SCRIPT ...`` in this process, where its libraries are imported already."""
    script = ROOT / words[1]
    loaded = runpy.run_path(str(script))
    main: Callable[[list[str]], int] = loaded.get("main") or loaded["main_to_hf"]
    try:
        return main(words[2:])
    except SystemExit as stop:
        return int(stop.code or 0)


def run_process(code: str, words: list[str]) -> int:
    """Run Python code with arguments in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=quick_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        encoding="utf-8",
    )
    print(done.stdout, done.stderr)
    return done.returncode


def find_outputs(block: Block) -> set[str]:
    """The folders into which a block writes, as it names them."""
    if block.language == "python":
        texts = (node for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Constant))
        calls = re.search(r"\bmerge_lora\(|\bwrite_", block.text)
        return {str(node.value) for node in texts} if calls else set()
    writing = (words for words in split_commands(block.text) if "verify" not in " ".join(words[:2]))
    words = [word for command in writing for word in command]
    return {words[n + 1] for n, word in enumerate(words[:-1]) if word in _OUTPUTS}


def remove_earlier(block: Block, inputs: Path) -> None:
    """Remove what an earlier block made, where a page shows another way to make the same."""
    for name in find_outputs(block):
        path = Path(name)
        if name and path.is_dir() and not (inputs / name).exists():
            shutil.rmtree(path)


def fill_folder(folder: Path, inputs: Path) -> None:
    """Link the models into an empty folder, so that what is written stays in it."""
    folder.mkdir()
    for entry in inputs.iterdir():
        (folder / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
    os.chdir(folder)
