"""Kinds of values in configurations, and the one refusal of a value that is of another kind.

JSON allows any value under any key. What is read of a file is named once, as a table from key to
``ValueKind``, and checked when the file is opened; whoever reads a value later need not ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import LayoutError
from ..messages import compose, tr

# Beyond every model, and small enough to make a list of its tensors.
_LARGEST = 1 << 40
_MOST = {"num_hidden_layers": 10_000, "n_layers": 10_000, "num_local_experts": 1024}


@dataclass(frozen=True)
class ValueKind:
    """What may stand under a key: ``description`` for people, ``accepts`` for values."""

    description: str
    accepts: Callable[[Any], bool]


ValueKinds = Mapping[str, ValueKind]


def optional(kind: ValueKind) -> ValueKind:
    """The same, or null, which says as little as no key at all."""
    return ValueKind(
        tr("{description}, or null", description=kind.description),
        lambda value: value is None or kind.accepts(value),
    )


def is_number(value: object) -> bool:
    """Whether a value is a number that float32 can hold; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 3e38


def is_positive(value: object) -> bool:
    """Whether a value is a positive number that float32 can hold."""
    return isinstance(value, (int, float)) and is_number(value) and value > 0


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_template(value: object) -> bool:
    """Text, or as transformers 4 saves several: a list of names with their templates."""
    if not isinstance(value, list):
        return isinstance(value, str)
    return all(
        isinstance(entry, Mapping)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("template"), str)
        for entry in value
    )


FLAG = ValueKind(tr("true or false"), lambda value: isinstance(value, bool))
NUMBER = ValueKind(tr("a number"), is_number)
POSITIVE = ValueKind(tr("a positive number"), is_positive)
# GGUF's uint32 and int32.
LENGTH = ValueKind(
    tr("a positive whole number, below 2^32"), lambda value: _is_whole(value, 1, (1 << 32) - 1)
)
_COUNT = ValueKind(
    tr("a whole number, below 2^31"), lambda value: _is_whole(value, -(1 << 31), (1 << 31) - 1)
)
NO_NEGATIVE = ValueKind(
    tr("no negative id"), lambda value: not isinstance(value, int) or value >= 0
)
TEXT = ValueKind("text", lambda value: isinstance(value, str))
OBJECT = ValueKind(tr("an object"), lambda value: isinstance(value, Mapping))
_TEMPLATE = ValueKind(tr('text, or a list of {"name": text, "template": text}'), _is_template)


def require_kinds(
    values: Mapping[str, Any], kinds: ValueKinds, source: object, within: str = ""
) -> None:
    """Raise ``LayoutError`` for a value of another kind than ``kinds`` says of its key.

    A key that is not there is none. ``source`` is the file, and ``within`` the key of the object in
    it that ``values`` are.
    """
    for key, kind in kinds.items():
        if key in values and not kind.accepts(values[key]):
            expected = compose('"{key}": {kind}', key=key, kind=kind.description)
            raise LayoutError(
                tr("a value of the configuration has the wrong type"),
                file=source,
                expected=compose('"{key}": {{{value}}}', key=within, value=expected)
                if within
                else expected,
                found=repr(values[key]),
                remedy=tr(
                    "correct this file, or take it from the place where the weights are from"
                ),
            )


def require_number(config: Mapping[str, Any], key: str, source: object) -> int:
    """A positive integer of a configuration, of a size that a model can have.

    Raises ``LayoutError`` when it is none.
    """
    value, most = config.get(key), _MOST.get(key, _LARGEST)
    if not _is_whole(value, 1, most):
        raise LayoutError(
            tr("the configuration lacks a number that the model cannot do without"),
            file=source,
            expected=tr('"{key}": a positive integer, at most {most:,}', key=key, most=most),
            found=repr(value),
            remedy=tr("take this file from the place where the weights are from"),
        )
    return int(value)  # type: ignore[arg-type]


# What llama.cpp's package reads of generation_config.json, by its keys and by transformers'.
GENERATION: ValueKinds = {
    **dict.fromkeys(("top_k", "penalty_last_n", "mirostat"), optional(_COUNT)),
    **dict.fromkeys(
        (
            *("temperature", "top_p", "min_p", "xtc_probability", "xtc_threshold"),
            *("penalty_repeat", "repetition_penalty", "mirostat_tau", "mirostat_eta"),
        ),
        optional(NUMBER),
    ),
    "sequence": optional(TEXT),
}
CHAT_TEMPLATE: ValueKinds = {"chat_template": optional(_TEMPLATE)}
