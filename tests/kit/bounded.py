"""What a refusal may cost: little time, little memory, and one line for each fact."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import pytest

from merge.errors import MergeError

MIB = 1 << 20


def refused(read: Callable[[], object], *, seconds: float = 5, mib: int = 200) -> MergeError:
    """Require that ``read`` is refused within ``seconds`` and ``mib`` of Python's memory."""
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
    return caught.value


def require_one_message(error: MergeError) -> None:
    """A sentence, a file, a remedy; no control characters, no fact over several lines."""
    lines = str(error).splitlines()
    assert len(lines) == 1 + len(error.facts), lines
    assert all(line.isprintable() for line in lines)
    assert error.facts.get("file")
    assert error.facts.get("remedy")
