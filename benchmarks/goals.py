"""What a merge has to reach, and whether the records say that it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import figures
from benchmarks.case import CP, DIRECT
from benchmarks.figures import MIB, Record, Spread

Records = dict[str, Record]
Get = Callable[[Records], Spread | None]
MERGE = "merge"


@dataclass(frozen=True)
class Goal:
    """One figure with its bounds; ``judged`` picks what is compared with them from a spread."""

    figure: str
    cases: tuple[str, ...]
    must: float
    strive: float
    get: Get
    unit: str = "×"
    by_largest: bool = False

    def row(self, records: Records) -> list[str]:
        """Figure, bounds, what was measured, verdict, experiments."""
        missing = [name for name in self.cases if name not in records]
        value = None if missing else self.get(records)
        bounds = [f"≤ {self.must:g} {self.unit}", f"≤ {self.strive:g} {self.unit}"]
        shown = "not measured" if value is None else f"{value} {self.unit}"
        return [self.figure, *bounds, shown, self._verdict(value), ", ".join(self.cases)]

    def _verdict(self, value: Spread | None) -> str:
        if value is None:
            return ""
        judged = value.high if self.by_largest else value.middle
        if judged <= self.strive:
            return "better than striven for"
        return "reached" if judged <= self.must else "**missed**"


def _ratio(case: str, floor: str) -> Get:
    return lambda records: figures.ratios(records[case], MERGE, floor)


def _peak(case: str) -> Get:
    return lambda records: figures.column(records[case], MERGE, "peak_rss", MIB)


def _growth(records: Records) -> Spread | None:
    """Largest peak of the 7B shape less the largest of the 1.1B shape."""
    small, large = _peak("1b-bin")(records), _peak("7b-bin")(records)
    return figures.spread([large.high - small.high]) if small and large else None


def _written(cases: Sequence[str]) -> Get:
    """The worst of all experiments."""

    def get(records: Records) -> Spread | None:
        found = [figures.amplification(records[case], MERGE) for case in cases]
        return max((f for f in found if f), key=lambda f: f.middle, default=None)

    return get


def _slowest_plan(records: Records) -> Spread | None:
    record = records["70b-dry-run"]
    found = [figures.column(record, step, "total") for step in figures.steps(record)]
    return max((f for f in found if f), key=lambda f: f.middle, default=None)


def _variant(step: str) -> Get:
    return lambda records: figures.ratios(records["variants"], step, "plain")


VARIANTS = (
    *("DoRA", "rank 64", "rank 256", "bfloat16 base and result", "float32 adapter"),
    "two adapters",
)
LARGE = {
    "7b-pth": "7B → .pth, 1 shard, not cached",
    "7b-safetensors": "7B → safetensors, not cached",
    "13b-pth2": "13B, 20 of 40 layers → .pth, 2 shards, not cached",
}
CACHED = {
    "1b-bin": "1.1B → .bin, cached",
    "1b-safetensors": "1.1B → safetensors, cached",
    "1b-pth1": "1.1B → .pth, 1 shard, cached",
    "1b-pth2": "1.1B → .pth, 2 shards, cached",
}
MEMORY = {"1b-bin": "1.1B", "7b-bin": "7B", "70b": "70B"}
WRITTEN = ("7b-bin", *LARGE, *CACHED)
GOALS = (
    Goal("7B .bin → .bin, not cached / cp + sync", ("7b-bin",), 0.7, 0.45, _ratio("7b-bin", CP)),
    Goal("the same / O_DIRECT copy", ("7b-bin",), 1.6, 1.2, _ratio("7b-bin", DIRECT)),
    *(Goal(f"{text} / cp + sync", (c,), 0.8, 0.5, _ratio(c, CP)) for c, text in LARGE.items()),
    *(Goal(f"{text} / cp + sync", (c,), 1.2, 0.9, _ratio(c, CP)) for c, text in CACHED.items()),
    *(
        Goal(f"peak memory, {text}", (c,), 400, 320, _peak(c), "MiB", True)
        for c, text in MEMORY.items()
    ),
    Goal("peak memory, 7B above 1.1B", ("1b-bin", "7b-bin"), 32, 32, _growth, "MiB", True),
    Goal("bytes written / bytes of output, the worst", WRITTEN, 1.01, 1.004, _written(WRITTEN)),
    Goal("--dry_run of a 70B plan, the slowest", ("70b-dry-run",), 3, 2, _slowest_plan, "s"),
    *(Goal(f"{v} / plain, 1.1B, cached", ("variants",), 1.3, 1.1, _variant(v)) for v in VARIANTS),
)


def table(records: Records) -> list[list[str]]:
    """All goals."""
    heading = ["figure", "must", "strive for", "measured", "", "experiment"]
    return [heading, *(goal.row(records) for goal in GOALS)]
