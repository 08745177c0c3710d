"""Checks of the values of options. Each raises ``UsageError`` for a value that it does not allow.

The values come from Python as well as from the command line, so their types are checked too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import UsageError
from .messages import compose, tr
from .sizes import parse_size

LEAST_MEMORY = 1_000_000
"""Least budget for buffers, in bytes."""
# Of a file, in bytes, on every system.
_LONGEST_NAME = 255


def require_one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Require one of an option's values."""
    if value not in choices:
        close = get_close_matches(str(value), choices, 1)
        raise UsageError(
            tr("--{name} is not one of its values", name=name),
            expected=", ".join(choices),
            found=repr(value),
            remedy=tr("did you mean {close}?", close=close[0]) if close else None,
        )


def require_bool(name: str, value: object) -> None:
    """Require ``True`` or ``False`` for a switch; any text would be true."""
    if not isinstance(value, bool):
        raise UsageError(
            tr("--{name} is a switch", name=name), expected=tr("True or False"), found=repr(value)
        )


def require_integer(name: str, value: object) -> int:
    """Require a whole number; return it."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(
            tr("--{name} must be a whole number", name=name),
            expected=tr("such as 1"),
            found=repr(value),
        )
    return value


def require_positive(name: str, value: object) -> None:
    """Require a whole number of at least 1."""
    if require_integer(name, value) < 1:
        raise UsageError(
            tr("--{name} is too small", name=name), expected=tr("at least 1"), found=value
        )


def require_finite(name: str, value: object) -> None:
    """Require a number that is neither NaN nor infinite, nor a whole one beyond all floats."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not _is_finite(value):
        raise UsageError(
            tr("--{name} must be a finite number", name=name),
            expected=tr("such as 1.5"),
            found=repr(value),
        )


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # of an int
        return False


def require_path(name: str, value: object) -> None:
    """Require the path of a folder, as text or ``Path``."""
    if not isinstance(value, (str, Path)):
        raise UsageError(
            tr("--{name} must be a path", name=name), expected=tr("text or Path"), found=repr(value)
        )


def require_size(name: str, value: object) -> None:
    """Require a size of at least 1 byte."""
    require_positive(name, size_in_bytes(name, value))


def require_memory(name: str, value: object) -> None:
    """Require a size that has room for a buffer."""
    if size_in_bytes(name, value) < LEAST_MEMORY:
        raise UsageError(
            tr("--{name} is too small for a buffer", name=name), expected=tr("1MB"), found=value
        )


def require_texts(name: str, value: object) -> None:
    """Require one text or a sequence of them."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise UsageError(
            tr("--{name} must be a list of names", name=name),
            expected=tr('such as ["a.bin"]'),
            found=repr(value),
        )


def size_in_bytes(name: str, value: object) -> int:
    """Read a size: a number of bytes, or text such as "64MB"."""
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise UsageError(
            tr("--{name} is not a size", name=name),
            expected=tr("256MB, or a number of bytes"),
            found=repr(value),
        )
    try:
        return parse_size(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError(compose("--{name}: {error}", name=name, error=str(error))) from None


def parse_numbers(name: str, value: object) -> tuple[float, ...]:
    """Read finite numbers: a sequence of them, or text with commas or spaces."""
    try:
        parts: Any = value.replace(",", " ").split() if isinstance(value, str) else value or ()
        numbers = tuple(float(part) for part in parts)
    except (OverflowError, TypeError, ValueError):
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise UsageError(
            tr("--{name} must be finite numbers", name=name),
            expected=tr("such as 1.0,0.5"),
            found=value,
        )
    return numbers


def require_model_name(name: str) -> None:
    """Require a model's name that can be a folder's name and text in a file."""
    last = Path(name).name
    is_text = not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in last)
    if last == ".." or not is_text or len(last.encode()) > _LONGEST_NAME:
        raise UsageError(
            tr("this cannot be the name of a model"),
            expected=tr(
                "a name that a folder can have, of at most {longest_name} bytes of UTF-8",
                longest_name=_LONGEST_NAME,
            ),
            found=repr(name),
            remedy=tr("write into a folder of another name, or give model_name"),
        )


def require_gguf() -> None:
    """Require llama.cpp's package ``gguf`` to be installed."""
    found = find_spec("gguf")
    if found is None or found.origin is None:  # a mere folder of that name
        raise UsageError(
            tr("GGUF needs llama.cpp's package gguf, which is not installed"),
            remedy=tr("pip install 'chinese-llama-merge[gguf]'"),
        )


def require_ray() -> None:
    """Require Ray to be installed."""
    found = find_spec("ray")
    if found is None or found.origin is None:  # a mere folder of that name
        raise UsageError(
            tr("--engine ray needs Ray, which is not installed"),
            remedy=tr("pip install 'chinese-llama-merge[ray]', on every machine of the cluster"),
        )


def require_address(name: str, value: object) -> None:
    """Require ``host:port``, or one of the words that Ray knows in place of it."""
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if value not in ("auto", "local") and not (host and "/" not in host and port.isdecimal()):
        raise UsageError(
            tr("--{name} is not the address of a Ray cluster", name=name),
            expected=tr("host:port, as `ray start --head` tells it"),
            found=repr(value),
            remedy=tr(
                "run the command on a machine of the cluster; ray:// addresses are "
                "for Ray's client, which cannot watch over tasks"
            ),
        )


def require_report_libraries() -> None:
    """Require what draws and lays out a report to be installed."""
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise UsageError(
            tr("a report is drawn by libraries that are not installed"),
            expected=tr("jinja2 and matplotlib"),
            found=tr("no {missing}", missing=" and no ".join(missing)),
            remedy=tr("pip install 'chinese-llama-merge[report]'"),
        )


COUNT: Mapping[str, Any] = {"type": int, "metavar": "N", "check": require_positive}
SIZE: Mapping[str, Any] = {"metavar": "SIZE", "check": require_size}
"""Arguments of ``options.option`` for a whole number from 1, and for a size."""
