"""What a record says: spreads, ratios by interleaved neighbours, amplification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

MIB = 1 << 20
Record = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some values."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        digits = 0 if self.low >= 100 else 2
        return " / ".join(f"{value:.{digits}f}" for value in (self.low, self.middle, self.high))


def spread(values: Sequence[float | None]) -> Spread | None:
    """None where nothing is known.

    >>> str(spread([3.0, None, 1.0, 1.5]))
    '1.00 / 1.50 / 3.00'
    """
    known = [value for value in values if value is not None]
    return Spread(min(known), median(known), max(known)) if known else None


def steps(record: Record) -> list[str]:
    """Names in the order in which they first ran."""
    return list(dict.fromkeys(sample["step"] for sample in record["samples"]))


def column(record: Record, step: str, key: str, unit: float = 1) -> Spread | None:
    """One figure of all runs of a step."""
    found = [sample[key] for sample in record["samples"] if sample["step"] == step]
    return spread([None if value is None else value / unit for value in found])


def ratios(record: Record, step: str, floor: str, key: str = "total") -> Spread | None:
    """Each run of ``step`` over the mean of the nearest ``floor`` before it and after it."""
    samples = record["samples"]
    places = [number for number, sample in enumerate(samples) if sample["step"] == floor]
    found: list[float | None] = []
    for number, sample in enumerate(samples):
        if sample["step"] != step or step == floor:
            continue
        before = [place for place in places if place < number][-1:]
        after = [place for place in places if place > number][:1]
        around = [samples[place][key] for place in before + after]
        found.append(sample[key] * len(around) / sum(around) if around and sum(around) else None)
    return spread(found)


def amplification(record: Record, step: str) -> Spread | None:
    """Bytes written to the disk over bytes of output; None when no disk took part."""
    if record["sink"]:
        return None
    return spread(
        [
            sample["written"] / sample["output_bytes"]
            for sample in record["samples"]
            if sample["step"] == step and sample["written"] and sample["output_bytes"]
        ]
    )


def cache_state(record: Record) -> str:
    """How much of the inputs was in the page cache, and whether that is what was asked for."""
    shares = spread([sample["cached"] for sample in record["samples"]])
    if record["cold"] is None:
        return "page cache left as it was"
    wanted = "not cached" if record["cold"] else "cached"
    if shares is None:
        return f"inputs {wanted} (not checked: this system does not tell)"
    good = shares.high < 0.01 if record["cold"] else shares.low > 0.99
    seen = f"{shares.low:.1%} to {shares.high:.1%} of their pages were in the cache"
    return f"inputs {wanted}: {seen}" + ("" if good else " - NOT AS ASKED FOR")
