"""What a reader should look at: conditions on the numbers of a report, by code and values.

The words are in ``finding_texts.py``; codes and values are the same in every language.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

Finding = dict[str, Any]

ROUNDING_THRESHOLD = 0.1
"""Share of the change that rounding may take before it is a finding."""
NEAR_LIMIT = 32752.0
"""Half of float16's largest number: a sum of two such values is infinite."""
_OUTLIER_RATIO, _LEAST_LAYERS = 3.0, 4
# Normal values of standard deviation s make rows of n columns whose norms have a standard deviation
# of s / sqrt(2): quartiles of norms, by their median, are 1.349 / sqrt(2 n) apart.
_NORMAL_SPREAD = 1.349 / math.sqrt(2)
_LIKE_NORMAL, _NARROWER_THAN_OLD = 1.5, 0.5
_LISTED = 5


def find_findings(report: Mapping[str, Any]) -> list[Finding]:
    """Every finding of a report, the graver kinds first."""
    return [
        *_find_idle_parts(report),
        *_find_order(report),
        *_find_nonfinite(report["tensors"]),
        *_find_large_values(report["tensors"]),
        *_find_untrained_rows(report),
        *_find_rounding_loss(report),
        *_find_outliers(report["heat_map"]),
    ]


def _make(code: str, **values: Any) -> Finding:
    return {"code": code, "values": values}


def _find_idle_parts(report: Mapping[str, Any]) -> Iterator[Finding]:
    if report["kind"] != "merge":
        if report["changes"]["change"] == 0:
            yield _make("nothing_changed")
        return
    for number, part in enumerate(report["inputs"]["adapters"]):
        touched = [entry["by_adapter"][number] for entry in report["tensors"]]
        replaced = any(
            step["adapter"] == number + 1 and step["action"] == "replaced"
            for entry in report["tensors"]
            for step in entry["steps"]
        )
        if not replaced and not any(one["change"] for one in touched if one is not None):
            yield _make("adapter_adds_nothing", adapter=number + 1, name=part["name"])


def _find_order(report: Mapping[str, Any]) -> Iterator[Finding]:
    if unusual := report["inputs"].get("unusual_order"):
        yield _make("unusual_order", **unusual)


def _find_nonfinite(tensors: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    broken = [one["name"] for one in tensors if not one["finite"]]
    if broken:
        yield _make("nonfinite_values", tensors=len(broken), names=broken[:_LISTED])


def _find_large_values(tensors: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    large = [
        one
        for one in tensors
        if one["dtype"] == "float16" and (one["largest"] or 0.0) >= NEAR_LIMIT
    ]
    if large:
        worst = max(large, key=lambda one: one["largest"])
        yield _make(
            "near_float16_limit", tensors=len(large), name=worst["name"], largest=worst["largest"]
        )


def _find_untrained_rows(report: Mapping[str, Any]) -> Iterator[Finding]:
    vocabulary = report["vocabulary"]
    if filled := vocabulary.get("filled_rows"):
        yield _make("new_rows_filled", rows=filled, init=vocabulary["new_token_init"])
        return
    columns = {one["name"]: one["shape"][-1] for one in report["tensors"]}
    for name, norms in vocabulary["norms"].items():
        if _look_untrained(norms, columns.get(name, 1)):
            new = norms["new"]
            yield _make(
                "new_rows_untrained",
                tensor=name,
                rows=new["rows"],
                median=new["median"],
                spread=new["spread"],
                zeros=new["zeros"],
            )


def _look_untrained(norms: Mapping[str, Any], columns: int) -> bool:
    """Whether the norms of new rows are as alike as those of random or equal rows.

    Training pulls rows apart. The old rows are the measure of how far.
    """
    old, new = norms["old"], norms["new"]
    if new is None or new["rows"] < _LISTED:
        return False
    if new["zeros"] > new["rows"] / 2 or new["spread"] is None:
        return True
    like_normal = new["spread"] <= _LIKE_NORMAL * _NORMAL_SPREAD / math.sqrt(columns)
    narrower = old is None or new["spread"] <= _NARROWER_THAN_OLD * (old["spread"] or math.inf)
    return bool(like_normal and narrower)


def _find_rounding_loss(report: Mapping[str, Any]) -> Iterator[Finding]:
    lost = report["changes"]["lost"]
    if lost is not None and lost > ROUNDING_THRESHOLD:
        known = [one for one in report["tensors"] if one["lost"] is not None]
        worst = max(known, key=lambda one: one["lost"])
        yield _make(
            "rounding_loss",
            share=lost,
            dtype=worst["dtype"],
            tensors=sum(one["lost"] > ROUNDING_THRESHOLD for one in known),
            name=worst["name"],
            worst=worst["lost"],
        )


def _find_outliers(heat_map: Mapping[str, Any]) -> Iterator[Finding]:
    """Layers in which a module changed several times as much as it does in the middle."""
    for column, module in enumerate(heat_map["modules"]):
        cells = {
            layer: row[column]
            for layer, row in zip(heat_map["layers"], heat_map["total"], strict=True)
            if row[column] is not None
        }
        if len(cells) < _LEAST_LAYERS:
            continue
        middle = median(cells.values())
        outside = [layer for layer, value in cells.items() if value > _OUTLIER_RATIO * middle]
        if outside and middle:
            largest = max(cells[layer] for layer in outside)
            yield _make(
                "outlier_layers",
                module=module,
                layers=outside,
                relative=largest,
                ratio=largest / middle,
            )
