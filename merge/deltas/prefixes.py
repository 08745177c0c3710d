"""Adapters and bases that call layers ``model.layers...``, or with ``AutoModel`` ``layers...``.

``AutoModel`` has no LM head, and puts no ``model.`` before the names of what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import replace

from ..messages import tr
from .adapter import Adapter

_PREFIX = "model."


def rename_as_base(adapter: Adapter, names: Container[str]) -> Adapter:
    """The adapter with ``model.`` put before its names, or taken off, where exactly one of the two
    makes all of them names of the base; else the adapter as it is.
    """
    given = [*adapter.added, *adapter.replaced]
    if all(name in names for name in given):
        return adapter
    ways: dict[str, Callable[[str], str]] = {
        tr("put before"): lambda name: name if name in names else _PREFIX + name,
        tr("taken off"): lambda name: name.removeprefix(_PREFIX),
    }
    fitting = {word: way for word, way in ways.items() if all(way(name) in names for name in given)}
    if len(fitting) != 1:
        return adapter
    ((word, way),) = fitting.items()
    return replace(
        adapter,
        added={way(name): stage for name, stage in adapter.added.items()},
        replaced={way(name): tensor for name, tensor in adapter.replaced.items()},
        trained=frozenset(map(way, adapter.trained)),
        renamed=tr('its names matched with "{prefix}" {word}', prefix=_PREFIX, word=word),
    )
