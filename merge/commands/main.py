"""``chinese-llama``: every command under one name; the one that is named is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from ..errors import UsageError
from ..messages import compose, find_language, join, tr, used_language
from ..version import __version__
from .common import DONE, WRONG_INPUT, command_parser, exit_immediately
from .completion import complete, is_completing, read_words
from .language import chosen_language, say

PROGRAM = "chinese-llama"
_DESCRIPTION = tr(
    """\
Merge Chinese LoRA adapters into LLaMA, and all that goes with it.

Each command has its own --help, and a file of its name in scripts/.
"""
)


@dataclass(frozen=True)
class Command:
    """A command: its module in this package, and what it does in one line.

    A group has commands in place of a module.
    """

    text: str
    module: str = ""
    commands: Mapping[str, Command] | None = None

    def load(self) -> Any:
        """Import the module, which has ``main`` and ``make_parser``."""
        return import_module(f".{self.module}", __package__)


COMMANDS: Mapping[str, Command] = {
    "merge": Command(tr("merge adapters into a base and write the full model"), "merge_lora"),
    "merge-many": Command(tr("run the merges that a file lists"), "merge_many"),
    "apply-delta": Command(tr("add a dense delta, such as Vicuna's, to its base"), "apply_delta"),
    "make-delta": Command(
        tr("subtract a base from a model, to publish the difference"), "make_delta"
    ),
    "convert": Command(tr("write a model in another layout"), "convert_checkpoint"),
    "convert-meta": Command(
        tr("Meta's folder to Hugging Face's, with transformers' options"),
        "convert_llama_weights_to_hf",
    ),
    "resize": Command(tr("grow embeddings and LM head to a larger tokenizer"), "resize_vocabulary"),
    "inspect": Command(tr("say what an adapter holds, and whether it fits"), "inspect_adapter"),
    "verify": Command(tr("check a result: files, digests, every element"), "verify_merge"),
    "compare": Command(tr("compare two models tensor by tensor"), "compare_checkpoints"),
    "report": Command(tr("show what a merge changed, as one page"), "report"),
    "verify-sha256": Command(tr("compare files with published checksums"), "verify_sha256"),
    "chat": Command(tr("talk to a model, beside its base"), "chat"),
    "webui": Command(tr("a page in the browser, to merge and to try models out"), "webui"),
    "tokenizer": Command(
        tr("vocabularies: merge, train, extend, compare"),
        commands={
            "merge": Command(tr("append Chinese pieces to LLaMA's tokenizer"), "merge_tokenizers"),
            "train": Command(tr("train a SentencePiece model on text"), "train_chinese_tokenizer"),
            "extend-llama3": Command(
                tr("grow Llama 3's tokenizer by training on text"), "extend_llama3_tokenizer"
            ),
            "compare": Command(tr("measure tokenizers on a text"), "compare_tokenizers"),
        },
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first words name, as its own script would.

    Without ``argv`` the process is the command's alone, and ends here.
    """
    if is_completing():
        _complete()
    words = list(sys.argv[1:] if argv is None else argv)
    code = _run([PROGRAM], COMMANDS, words)
    if argv is None:
        exit_immediately(code)
    return code


def _run(path: Sequence[str], commands: Mapping[str, Command], words: Sequence[str]) -> int:
    name, rest = (words[0] if words else ""), words[1:]
    if name in ("-h", "--help"):
        parser = _make_parser(path, commands)
        with chosen_language(rest, parser):
            parser.print_help()
        return DONE
    if name == "--version" and path == [PROGRAM]:
        print(f"{PROGRAM} {__version__}")
        return DONE
    command = commands.get(name)
    if command is None:
        with used_language(find_language()):
            say(tr("error: {error}", error=_unknown_error(path, commands, name)), sys.stderr)
        return WRONG_INPUT
    if command.commands is not None:
        return _run([*path, name], command.commands, rest)
    sys.argv = [" ".join([*path, name]), *rest]  # argparse takes the name in usage from there
    code: int = command.load().main()
    return code


def _unknown_error(path: Sequence[str], commands: Mapping[str, Command], name: str) -> UsageError:
    program = " ".join(path)
    if not name:
        return UsageError(
            tr("a command is missing"),
            expected=", ".join(commands),
            remedy=tr("{program} --help lists them", program=program),
        )
    return UsageError(
        tr("there is no command {name}", name=name),
        expected=", ".join(commands),
        found=name,
        remedy=_suggest(commands, name) or tr("{program} --help lists them", program=program),
    )


def _suggest(commands: Mapping[str, Command], name: str) -> str | None:
    """The nearest command; the names of scripts are known too."""
    script = name.removesuffix(".py")
    for known, command in commands.items():
        if command.module == script:
            return tr("did you mean {known}?", known=known)
        for below, one in (command.commands or {}).items():
            if one.module == script:
                return tr("did you mean {known} {below}?", known=known, below=below)
    close = get_close_matches(script.replace("_", "-"), commands, 1)
    return tr("did you mean {close}?", close=close[0]) if close else None


def _make_parser(path: Sequence[str], commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """A parser for ``--help``, which lists the commands."""
    width = max(map(len, commands))
    lines = (
        compose("  {name}  {text}", name=name.ljust(width), text=command.text)
        for name, command in commands.items()
    )
    text = _DESCRIPTION if path == [PROGRAM] else COMMANDS[path[-1]].text
    parser = command_parser(text, join("\n", [tr("commands:"), *lines]))
    parser.usage = f"{' '.join(path)} [-h] COMMAND ..."
    _add_version(parser, path)
    return parser


def _add_version(parser: argparse.ArgumentParser, path: Sequence[str]) -> None:
    if path == [PROGRAM]:
        text = f"{PROGRAM} {__version__}"
        parser.add_argument("--version", action="version", version=text)


def _complete() -> None:
    """Print the words that may follow, for a shell; does not return."""
    words, place = read_words()
    path, commands = [PROGRAM], COMMANDS
    for name in words[place:]:
        if name not in commands:
            break
        path.append(name)
        place += 1
        command = commands[name]
        if command.commands is None:
            complete(command.load().make_parser(), place)
        commands = command.commands or {}
    parser = argparse.ArgumentParser(prog=" ".join(path))
    _add_version(parser, path)
    listed = parser.add_subparsers()
    for name, command in commands.items():
        listed.add_parser(name, help=command.text, add_help=False)
    complete(parser, place)


if __name__ == "__main__":
    sys.exit(main())
