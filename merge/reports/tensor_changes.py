"""How much each tensor of a merge has changed, from the statistics that were collected."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..deltas.apply import WHOLE_ROWS, Step
from ..deltas.observed import Measurements
from ..tensors.lazy import get_dtype_name
from ..tensors.statistics import BlockStatistics, ChangeRecorder

Entry = dict[str, Any]

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.")
_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def split_name(name: str) -> tuple[int | None, str]:
    """The layer of a tensor, None for one outside the layers, and the module in it.

    Experts are one module: their numbers become stars.

    >>> split_name("model.layers.3.self_attn.q_proj.weight")
    (3, 'self_attn.q_proj')
    >>> split_name("model.layers.0.mlp.experts.7.w1.weight"), split_name("lm_head.weight")
    ((0, 'mlp.experts.*.w1'), (None, 'lm_head'))
    """
    match = _LAYER.search(name)
    rest = (name[match.end() :] if match else name).removesuffix(".weight")
    return (int(match[1]) if match else None), _NUMBER.sub(".*", rest)


def describe_changes(
    measured: Measurements, steps: Mapping[str, Sequence[Step]], parts: int
) -> list[Entry]:
    """An entry for each tensor that was measured; ``parts`` is the number of adapters.

    Norms are Frobenius norms. ``relative`` is the norm of the change by that of the tensor before;
    ``lost`` the norm of what rounding took, by that of the change. What is not known is null.
    """
    return [
        _describe_tensor(name, measured, steps.get(name, ()), parts) for name in measured.tensors
    ]


def _describe_tensor(name: str, measured: Measurements, steps: Sequence[Step], parts: int) -> Entry:
    tensor = measured.tensors[name]
    layer, module = split_name(name)
    recorder, rows = measured.changes.get(name), measured.rows.get(name)
    found = recorder.sum_up() if recorder is not None else BlockStatistics(0.0, 0.0, 0.0, None)
    before, change = found.before, found.change
    if rows is not None and rows.before is not None:
        whole = rows.sum_up()
        before, change = whole.before, whole.change
    entry: Entry = {
        "name": name,
        "layer": layer,
        "module": module,
        "shape": list(tensor.shape),
        "dtype": get_dtype_name(tensor.dtype),
        "norm": _root(before) if recorder is not None or _is_compared(measured, name) else None,
        **_describe_change(before, change),
        "lost": _divide(_root(found.lost), _root(found.change)),
        "lost_norm": _root(found.lost),
        "effective_rank": recorder.factors.rank if recorder and recorder.factors else None,
        "largest": _finite(found.largest),
        "finite": math.isfinite(found.before + found.change + before + change),
        "steps": [step.as_json() for step in steps],
    }
    entry["by_adapter"] = _describe_stages(entry, recorder, found, steps, parts)
    return entry


def _is_compared(measured: Measurements, name: str) -> bool:
    return name in measured.rows and measured.rows[name].before is not None


def _describe_change(before: float, change: float) -> Entry:
    return {"change": _root(change), "relative": _divide(_root(change), _root(before))}


def _describe_stages(
    entry: Entry,
    recorder: ChangeRecorder | None,
    found: BlockStatistics,
    steps: Sequence[Step],
    parts: int,
) -> list[Entry | None]:
    """What each adapter changed; None where it left the tensor, or where it cannot be told."""
    by_adapter: list[Entry | None] = [None] * parts
    if len(steps) == 1 and steps[0].action in WHOLE_ROWS:
        only = {key: entry[key] for key in ("change", "relative")}
        by_adapter[steps[0].adapter - 1] = only | {"effective_rank": None}
    kept: list[Step] = []
    for step in steps:  # whole rows take the place of what was added before
        if step.action == "replaced":
            kept.clear()
        elif step.action != "cut":
            kept.append(step)
    factors = recorder.factors if recorder is not None else None
    for number, step in enumerate(kept if found.stages else ()):
        by_adapter[step.adapter - 1] = {
            **_describe_change(found.before, found.stages[number]),
            "effective_rank": factors.ranks[number] if factors is not None else None,
        }
    return by_adapter


def build_heat_map(entries: Iterable[Entry], parts: int) -> Entry:
    """Relative changes by layer and module: in total and by each adapter; null where none is.

    The experts of a layer are one cell, as one matrix.
    """
    in_layers = [entry for entry in entries if entry["layer"] is not None]
    layers = sorted({entry["layer"] for entry in in_layers})
    matrices = [e for e in in_layers if len(e["shape"]) > 1]
    modules = list(dict.fromkeys(entry["module"] for entry in matrices))
    cells: dict[tuple[int, str], list[Entry]] = {}
    for entry in matrices:
        cells.setdefault((entry["layer"], entry["module"]), []).append(entry)

    def table(part: int | None) -> list[list[float | None]]:
        return [
            [_join_cell(cells.get((layer, module), ()), part) for module in modules]
            for layer in layers
        ]

    return {
        "layers": layers,
        "modules": modules,
        "total": table(None),
        "by_adapter": [table(part) for part in range(parts)],
    }


def _join_cell(entries: Sequence[Entry], part: int | None) -> float | None:
    changes = [
        e["change"] if part is None else (e["by_adapter"][part] or {}).get("change")
        for e in entries
    ]
    if all(change is None for change in changes):
        return None
    change = math.hypot(*(change or 0.0 for change in changes))
    return _divide(change, math.hypot(*(entry["norm"] or 0.0 for entry in entries)))


def sum_up_changes(entries: Sequence[Entry], parts: int) -> Entry:
    """The same figures over all tensors that were measured."""

    def norm(values: Iterable[float | None]) -> float:
        return math.hypot(*(value for value in values if value is not None))

    before = norm(entry["norm"] for entry in entries)
    summed = [entry for entry in entries if entry["lost"] is not None]
    changes = [
        norm(entry["by_adapter"][part]["change"] for entry in entries if entry["by_adapter"][part])
        for part in range(parts)
    ]
    change = norm(entry["change"] for entry in entries)
    return {
        "tensors": len(entries),
        "norm": before,
        "change": change,
        "relative": _divide(change, before),
        "lost": _divide(
            norm(entry["lost_norm"] for entry in summed), norm(e["change"] for e in summed)
        )
        if summed
        else None,
        "by_adapter": [{"change": one, "relative": _divide(one, before)} for one in changes],
    }


def list_most_changed(entries: Iterable[Entry], count: int = 10) -> list[str]:
    """Names of the tensors with the largest relative changes, the largest first."""
    known = [entry for entry in entries if entry["relative"] is not None]
    ordered = sorted(known, key=lambda entry: -entry["relative"])
    return [entry["name"] for entry in ordered[:count] if entry["relative"] > 0]


def _root(square: float) -> float | None:
    return math.sqrt(square) if math.isfinite(square) else None


def _divide(change: float | None, norm: float | None) -> float | None:
    """A ratio, None where there is nothing to divide by."""
    return change / norm if change is not None and norm else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def iter_ranks(entries: Iterable[Entry]) -> Iterator[tuple[int, str, int, float]]:
    """Adapter, module, rank and scaling of every low-rank step, each combination once."""
    seen = set()
    for entry in entries:
        for step in entry["steps"]:
            if "rank" in step:
                row = (step["adapter"], entry["module"], step["rank"], step.get("scaling", 1.0))
                if row not in seen:
                    seen.add(row)
                    yield row
