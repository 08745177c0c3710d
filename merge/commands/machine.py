"""``--json``: one JSON object on standard output, for programs; docs/json.md has its keys."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from ..errors import MergeError, as_merge_error
from ..messages import tr

FORMAT = 1
"""Number of the format; it changes when a key changes its meaning or goes away."""
FLAG = "--json"


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, which sets ``as_json``."""
    parser.add_argument(
        FLAG,
        dest="as_json",
        action="store_true",
        help=tr("print one JSON object in place of text, also of an error (docs/json.md)"),
    )


def print_json(content: Mapping[str, Any]) -> None:
    """Print the object; what is not ASCII is escaped, so that any name of a file survives."""
    print(json.dumps({"format": FORMAT, **content}, indent=1, allow_nan=False))


def describe_error(error: MergeError | OSError) -> dict[str, Any]:
    """The facts of an error; what it does not say is null."""
    mistake = as_merge_error(error)
    keys = ("file", "tensor", "expected", "found", "remedy")
    facts = {key: mistake.facts.get(key) for key in keys}
    see = mistake.topic.page if mistake.topic else None
    return {"kind": mistake.kind, "message": mistake.sentence, **facts, "see": see}
