"""Writes docs/options.md: the options of every command, from the commands' own parsers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "options.md"
COMMANDS = {
    "merge_llama_with_chinese_lora.py": "merge_lora",
    "merge_many.py": "merge_many",
    "apply_delta.py": "apply_delta",
    "make_delta.py": "make_delta",
    "convert_checkpoint.py": "convert_checkpoint",
    "convert_llama_weights_to_hf.py": "convert_llama_weights_to_hf",
    "resize_llama_vocabulary.py": "resize_vocabulary",
    "inspect_adapter.py": "inspect_adapter",
    "verify_merge.py": "verify_merge",
    "report.py": "report",
    "verify_sha256.py": "verify_sha256",
    "compare_checkpoints.py": "compare_checkpoints",
    "chat.py": "chat",
    "webui.py": "webui",
    "merge_tokenizers.py": "merge_tokenizers",
    "train_chinese_tokenizer.py": "train_chinese_tokenizer",
    "extend_llama3_tokenizer.py": "extend_llama3_tokenizer",
    "compare_tokenizers.py": "compare_tokenizers",
}
_HEAD = """\
# Options

Every command in `scripts/` with its options, as `--help` prints them. This page is written by
`python docs/write_options.py`. In Python the options of a merge, a conversion, a delta and a resize
are keyword arguments of the same names and defaults: `merge_lora`, `convert_checkpoint`,
`apply_delta`, `make_delta`, `resize_vocabulary` of the package `merge`.

`merge_llama_with_chinese_lora_to_hf.py` is `merge_llama_with_chinese_lora.py` with
`--output_type huggingface` as the default. [many_merges.md](many_merges.md) describes the file of
`merge_many.py`, in which the options of a merge stand by their names.
"""


def get_parser(module: str) -> argparse.ArgumentParser:
    """The parser of a command."""
    made: argparse.ArgumentParser = import_module(f"merge.commands.{module}").make_parser()
    return made


_OPTION = re.compile(r"--[a-z_]+")


class Row(NamedTuple):
    """An option on the page."""

    names: str
    values: str
    default: str
    text: str


def list_options(parser: argparse.ArgumentParser) -> Iterator[Row]:
    """The options of a parser, in the order of ``--help``."""
    for action in parser._actions:
        if action.help in (None, argparse.SUPPRESS) or action.dest == "help":
            continue
        is_switch, is_named = action.nargs == 0, bool(action.option_strings)
        names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar}`"
        shown = action.choices or ([] if is_switch or not is_named else [action.metavar])
        text, _, default = str(action.help).partition(" (default: ")
        default = default.removesuffix(")").replace("%(default)s", str(action.default))
        if is_switch or action.required:
            default = "off" if is_switch else "required"
        elif default == str(action.default):
            default = f"`{default}`"
        text, default = (_OPTION.sub(r"`\g<0>`", words) for words in (text, default))
        yield Row(names, " \\| ".join(f"`{value}`" for value in shown), default, text)


def build_page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for script, module in COMMANDS.items():
        lines = [f"## {script}", "", "| option | values | default | |", "| :-- | :-- | :-- | :-- |"]
        lines += [f"| {' | '.join(row)} |" for row in list_options(get_parser(module))]
        parts.append("\n".join([*lines, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    DOCUMENT.write_text(build_page(), encoding="utf-8")
