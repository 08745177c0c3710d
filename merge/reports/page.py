"""``report.html``: the content of ``report.json`` laid out for people, in one file.

The page has no script and fetches nothing. Names of tensors, adapters and files are text from
elsewhere: jinja2 escapes every one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..messages import Message, get_language, translate
from ..sizes import size_text
from ..version import REPORT_MARK
from .figures import (
    classify,
    compute_rates,
    draw_heat_map,
    draw_norms,
    draw_pace,
    find_bounds,
)
from .finding_texts import FindingText, describe_finding
from .number_texts import format_percent, format_seconds, format_value

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(report: Mapping[str, Any]) -> bytes:
    """The page of a report, in the language of ``messages.used_language``."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["_"] = _translate
    environment.filters.update(
        percent=format_percent,
        value=format_value,
        seconds=format_seconds,
        size=size_text,
        count=lambda number: "–" if number is None else f"{number:,}",
    )
    template = environment.get_template("report.html.jinja")
    by_name = {entry["name"]: entry for entry in report["tensors"]}
    bounds = _find_bounds(report["heat_map"])
    text = template.render(
        report=report,
        mark=REPORT_MARK,
        language=get_language(),
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        title=list_names(report),
        findings=[
            FindingText(*map(translate, describe_finding(finding)))
            for finding in report["findings"]
        ],
        heat_maps=list(_list_heat_maps(report, bounds)),
        bounds=bounds,
        classify=classify,
        norms=list(_list_norms(report["vocabulary"])),
        pace=_draw_pace(report["run"]),
        most_changed=[by_name[name] for name in report["most_changed"]],
    )
    return text.encode("utf-8", "backslashreplace")


def _translate(template: str, **values: object) -> str:
    """A text of the template in the language of the page; jinja2 escapes it as a whole."""
    return translate(Message(template, **values))


def list_names(report: Mapping[str, Any]) -> list[str]:
    """What was merged, from the base on, by short names."""
    inputs = report["inputs"]
    names = [_shorten(inputs["base_model"]["source"])]
    if "delta_model" in inputs:
        names.append(_shorten(inputs["delta_model"]["source"]))
    return names + [one["published"] or one["name"] for one in inputs.get("adapters", ())]


def _shorten(source: str) -> str:
    return source.replace("\\", "/").rstrip("/").rpartition("/")[2] or source


def _find_bounds(heat_map: Mapping[str, Any]) -> list[float]:
    """Bounds of the classes of colour, the same for all heat maps of a page."""
    tables = [heat_map["total"], *heat_map["by_adapter"]]
    return find_bounds(c for table in tables for row in table for c in row if c is not None)


def _list_heat_maps(report: Mapping[str, Any], bounds: Sequence[float]) -> Iterator[dict[str, Any]]:
    """The heat map in total and, where there are several adapters, that of each."""
    heat_map, adapters = report["heat_map"], report["inputs"].get("adapters", ())
    if not heat_map["layers"] or not heat_map["modules"]:
        return
    tables: list[tuple[int | None, Sequence[Sequence[float | None]]]] = [(None, heat_map["total"])]
    if len(adapters) > 1:
        tables += list(enumerate(heat_map["by_adapter"]))
    for number, cells in tables:
        name = "heat-total" if number is None else f"heat-{number + 1}"
        drawing = draw_heat_map(name, heat_map["layers"], heat_map["modules"], cells, bounds)
        yield {
            "number": None if number is None else number + 1,
            "adapter": None if number is None else adapters[number]["name"],
            "drawing": Markup(drawing),
            "rows": list(zip(heat_map["layers"], cells, strict=True)),
        }


def _list_norms(vocabulary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for number, (tensor, norms) in enumerate(vocabulary["norms"].items(), start=1):
        if norms["edges"]:
            drawing = Markup(draw_norms(f"norms-{number}", norms))
            yield {"tensor": tensor, "drawing": drawing, **norms}


def _draw_pace(run: Mapping[str, Any]) -> dict[str, Any] | None:
    times, rates = compute_rates(run["progress"])
    if not times:
        return None
    drawing = Markup(draw_pace("pace", times, rates))
    return {"drawing": drawing, "points": list(zip(times, rates, strict=True))}
