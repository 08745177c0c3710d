"""Single fields of an ``adapter_config.json``, read with a check of their kind.

Each function raises ``AdapterError`` for a value of another kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import AdapterError
from ..messages import compose, tr
from ..untrusted.safe_regex import is_plain
from .patterns import RULES

_LARGEST_RANK = 2**31
LARGEST_FLOAT32 = 3.4028234663852886e38
# Of expressions that are more than names, all together.
_LONGEST_PATTERNS = 4000
N = TypeVar("N", int, float)
OF_THIS_RUN = tr("take adapter_config.json from the run that trained the adapter")


def read_text(fields: Mapping[str, Any], key: str) -> str | None:
    """Read a field that is only shown to people."""
    value = fields.get(key)
    return value if isinstance(value, str) else None


def read_names(fields: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
    """Read a list of modules' names; null is an empty one."""
    value = fields.get(key) or ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise AdapterError(
            tr("the adapter configuration has a list of modules that is none"),
            file=path,
            expected=tr('"{key}": names of modules, or null', key=key),
            found=repr(value),
            remedy=OF_THIS_RUN,
        )
    return tuple(value)


def read_token_indices(
    fields: Mapping[str, Any], path: Path
) -> tuple[int, ...] | Mapping[str, tuple[int, ...]]:
    """Read ``trainable_token_indices``: a list of ids, or lists by modules."""
    value = fields.get("trainable_token_indices") or ()
    lists = list(value.values()) if isinstance(value, dict) else [value]
    for indices in lists:
        numbers = isinstance(indices, (list, tuple)) and all(
            isinstance(index, int) and index >= 0 for index in indices
        )
        if not numbers or len(set(indices)) != len(indices):
            raise AdapterError(
                tr("the adapter configuration lists trained tokens in a way that says no rows"),
                file=path,
                expected=tr(
                    '"trainable_token_indices": different numbers from 0 on, in a list '
                    "or in lists by modules"
                ),
                found=repr(value),
                remedy=OF_THIS_RUN,
            )
    if isinstance(value, dict):
        return {str(module): tuple(indices) for module, indices in value.items()}
    return tuple(value)


def read_pattern(
    fields: Mapping[str, Any],
    key: str,
    path: Path,
    read: Callable[[Any, str, Path], N],
) -> dict[str, N]:
    """Read numbers by regular expressions of modules' names; ``read`` reads one number."""
    pattern = fields.get(key) or {}
    if not isinstance(pattern, dict):
        raise AdapterError(
            tr("the adapter configuration has a pattern of another kind"),
            file=path,
            expected=tr('"{key}": {{"a module\'s name": a number, ...}}', key=key),
            found=repr(pattern),
            remedy=OF_THIS_RUN,
        )
    if sum(len(text) for text in pattern if not is_plain(text)) > _LONGEST_PATTERNS:
        raise _expression_error(
            path,
            key,
            tr(
                "more than {longest_patterns} characters of expressions",
                longest_patterns=_LONGEST_PATTERNS,
            ),
        )
    for text in pattern:
        try:
            for rule in RULES:
                rule.require_valid(text)
        except (re.error, OverflowError, RecursionError) as error:
            found = compose("{text!r}: {error}", text=text, error=str(error))
            raise _expression_error(path, key, found) from None
    return {
        text: read(value, tr('"{key}" of "{text}"', key=key, text=text), path)
        for text, value in pattern.items()
    }


def _expression_error(path: Path, key: str, found: str) -> AdapterError:
    return AdapterError(
        tr(
            "the adapter configuration has a pattern that is no regular "
            "expression for names of modules"
        ),
        file=path,
        expected=tr('"{key}" with the names of modules, or expressions for them', key=key),
        found=found,
        remedy=tr("write out the names of the modules, or ") + OF_THIS_RUN,
    )


def read_rank(value: Any, key: str, path: Path) -> int:
    """Read a rank; PEFT refuses those below 1."""
    return int(_require_within(value, key, path, tr("a whole number from 1 on"), 1, _LARGEST_RANK))


def read_number(value: Any, key: str, path: Path) -> float:
    """Read an alpha; PEFT takes zero and negative ones, which add nothing or subtract."""
    return float(
        _require_within(value, key, path, tr("a number"), -LARGEST_FLOAT32, LARGEST_FLOAT32)
    )


def _require_within(
    value: Any, key: str, path: Path, expected: str, low: float, high: float
) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or (high == _LARGEST_RANK and value != int(value)):
        raise AdapterError(
            tr("the adapter configuration lacks a number that the scaling is made of"),
            file=path,
            expected=compose("{key}: {expected}", key=key, expected=expected),
            found=repr(value)[:80],
            remedy=OF_THIS_RUN,
        )
    return float(value)
