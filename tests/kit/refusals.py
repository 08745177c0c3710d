"""What every refusal must be: about options and files that exist, cheap, and one message."""

from __future__ import annotations

import argparse
import re
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest

from merge import merge_lora
from merge.errors import AdapterError, MergeError
from merge.messages import Message, load_catalogue
from tests.kit.run import ROOT

COMMANDS = ROOT / "merge" / "commands"
MIB = 1 << 20
# Jobs whose commands are two; inspect_adapter and merge_many tell what the merge would say.
_ALSO = {
    "apply_delta": ("make_delta",),
    "convert_checkpoint": ("convert_llama_weights_to_hf",),
    "inspect_adapter": ("merge_lora",),
    "merge_many": ("merge_lora",),
}
_NO_COMMANDS = (
    "__init__",
    "common",
    "completion",
    "given_options",
    "language",
    "machine",
    "main",
    "progress",
)
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
# Another command of this project with its options, and whole commands of other programs.
_OTHER = re.compile(r"(?P<script>\w+)\.py(?P<words>(?: --?[\w-]+| [A-Za-z0-9_.]+)*)")
_QUOTED = re.compile(r"`[^`]*`")
_OF_LLAMA_CPP = {"--pad-vocab"}
SCRIPTS = {
    "merge_llama_with_chinese_lora": "merge_lora",
    "resize_llama_vocabulary": "resize_vocabulary",
}
# How a refusal says of a file that it is not there.
_MISSING = re.compile(
    r"\b((is|are) missing|does not exist|(has|holds) no|there is no|no such file|not the file)\b"
)

# And how it speaks of an output folder before it is made.
_NOT_MADE = re.compile(r"\b(no folder can be made|not enough disk space)\b")


@cache
def options_of(command: str) -> frozenset[str]:
    """Every option of a command, as its parser has it."""
    module: Any = import_module(f"merge.commands.{command}")
    parser: argparse.ArgumentParser
    parser = module.make_parser()
    return frozenset(option for action in parser._actions for option in action.option_strings)


def commands() -> list[str]:
    """The commands' modules."""
    return sorted(path.stem for path in COMMANDS.glob("*.py") if path.stem not in _NO_COMMANDS)


def faults(error: MergeError, job: str | None) -> Iterator[str]:
    """What is wrong with the words of a refusal in a job."""
    text = _QUOTED.sub("", str(error))
    for match in _OTHER.finditer(text):
        command = SCRIPTS.get(match["script"], match["script"])
        if command in commands():
            lost = set(_OPTION.findall(match["words"])) - options_of(command)
            yield from (f"{match['script']}.py has no {option}" for option in sorted(lost))
    named = set(_OPTION.findall(_OTHER.sub("", text))) - _OF_LLAMA_CPP
    chosen = [job, *_ALSO.get(job, ())] if job in commands() else commands()
    known = frozenset().union(*(options_of(name) for name in chosen if name))
    yield from (f"{job or 'no command'} has no {option}" for option in sorted(named - known))
    file = error.facts.get("file", "")
    if file.startswith("/") and "\\" not in file and " ... " not in file:
        try:
            is_there = Path(file).exists() or Path(file).is_symlink()
        except OSError:  # a folder that may not be read
            is_there = True
        words = text.lower().replace(file.lower(), "")
        if not is_there and not _MISSING.search(words) and not _NOT_MADE.search(words):
            yield f"{file} is not there, and is not called missing"


def untranslatable(error: MergeError) -> Iterator[str]:
    """Texts of ours in a refusal that stay English, since they are no messages any more."""
    for text in (error.sentence, *(t for label, t in error.facts.items() if label != "file")):
        for plain in _iter_plain(text):
            if lost := _find_own_words(plain):
                yield f"{lost!r} in {plain!r} cannot be translated"


def _iter_plain(text: object) -> Iterator[str]:
    """The texts in a message that no catalogue has."""
    if isinstance(text, Message):
        for value in text.values.values():
            yield from _iter_plain(value)
    elif isinstance(text, str):
        yield text


@cache
def _find_own_words(text: str) -> str | None:
    return next((words for words in _list_own_words() if words in text), None)


@cache
def _list_own_words() -> tuple[str, ...]:
    """Four words or more in a row of each template that has a translation."""
    templates = load_catalogue("zh")._catalog  # type: ignore[attr-defined]
    parts = (part.strip() for one in templates for part in re.split(r"\{[^}]*\}", str(one)))
    return tuple({part for part in parts if len(part.split()) > 3})


def _job() -> str | None:
    """The outermost job or command that is running."""
    found, step = None, cast("FrameType | None", sys._getframe(1))
    while step is not None:
        path = Path(step.f_code.co_filename)
        if path.parent.name in ("jobs", "commands") and path.parent.parent.name == "merge":
            found = path.stem if path.stem not in ("common", "writing", "planned") else found
        step = step.f_back
    return found


@contextmanager
def checked() -> Iterator[None]:
    """Check every refusal that is made meanwhile, and fail with all that is wrong."""
    made: list[tuple[MergeError, str]] = []
    init = MergeError.__init__

    def noted(self: MergeError, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        made.extend((self, fault) for fault in faults(self, _job()))
        made.extend((self, fault) for fault in untranslatable(self))

    MergeError.__init__ = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        MergeError.__init__ = init  # type: ignore[method-assign]
    told = "\n\n".join(f"{fault}:\n{error}" for error, fault in made)
    assert not made, told


def refused(
    read: Callable[[], object], *, file: Path | None = None, seconds: float = 5, mib: int = 200
) -> MergeError:
    """Require that ``read`` is refused within ``seconds`` and ``mib`` of Python's memory, and that
    the message names ``file``.
    """
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(MergeError) as caught:
            read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < seconds
    assert peak < mib * MIB
    require_one_message(caught.value)
    assert file is None or caught.value.facts["file"] == str(file)
    return caught.value


def refused_merge(base: Path, adapter: Path, out: Path) -> AdapterError:
    """Require that an adapter is refused with a remedy, and that nothing is written."""
    with pytest.raises(AdapterError) as caught:
        merge_lora(base, adapter, out)
    assert caught.value.facts["remedy"]
    assert not out.exists()
    return caught.value


def require_one_message(error: MergeError) -> None:
    """A sentence, a file, a remedy; no control characters, no fact over several lines."""
    lines = str(error).splitlines()
    assert len(lines) == 1 + len(error.facts), lines
    assert all(line.isprintable() for line in lines)
    assert error.facts.get("file")
    assert error.facts.get("remedy")
