"""Figures by hand-made records, and the document that is made of the kept ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import figures, goals, report, results, tables
from benchmarks.case import CP
from benchmarks.cases import GROUPS, cases
from tests.kit.run import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"


def sample(step: str, total: float, **more: Any) -> dict[str, Any]:
    plain = {"cpu": 1.0, "peak_rss": 300 << 20, "read": 0, "written": 1010, "cached": 0.0}
    return {"step": step, "total": total, "output_bytes": 1000, "said": "", **plain, **more}


def record(*samples: dict[str, Any], case: str = "7b-bin") -> dict[str, Any]:
    return {
        "case": case,
        "command": f"python -m benchmarks.suite {case}",
        "date": "2023-05-04",
        "machine": {
            **{"system": "Linux 6", "processor": "a processor", "cpus": 2, "python": "3.11"},
            **{"memory_bytes": 24 << 30, "file_system": "ext4", "torch": "2.13"},
            **{"commit": "abc", "changed": False},
        },
        **{"cold": True, "runs": 2, "sink": False, "floors": [CP], "absent": {}},
        "jobs": {"merge": {"described": "a model", "output_bytes": 1000}},
        **{"verified": {"merge": True}, "comparison": {}, "samples": list(samples)},
    }


def test_ratio_is_to_the_mean_of_the_neighbours() -> None:
    turns = [
        *(sample(CP, 2.0), sample("merge", 6.0), sample("other", 1.0)),
        *(sample(CP, 4.0), sample("merge", 3.0), sample(CP, 8.0)),
    ]
    assert figures.ratios(record(*turns), "merge", CP) == figures.Spread(0.5, 1.25, 2.0)
    assert figures.ratios(record(*turns), "other", CP) == figures.Spread(1 / 3, 1 / 3, 1 / 3)


def test_goal_is_judged_by_the_median() -> None:
    turns = [sample(CP, 10.0), sample("merge", 6.9), sample(CP, 10.0)]
    rows = goals.table({"7b-bin": record(*turns)})
    assert rows[1][3:5] == ["0.69 / 0.69 / 0.69 ×", "reached"]
    turns[1]["total"] = 7.2
    assert goals.table({"7b-bin": record(*turns)})[1][4] == "**missed**"


def test_inputs_in_the_wrong_state_are_told() -> None:
    warm = record(sample("merge", 1.0, cached=0.3))
    assert "NOT AS ASKED FOR" in tables.shown(warm)
    assert "NOT AS ASKED FOR" not in tables.shown(record(sample("merge", 1.0)))


def test_wrong_and_absent_are_told() -> None:
    wrong = record(sample("merge", 1.0))
    wrong["verified"] = {"merge": False}
    wrong["absent"] = {"a peer": "absent: not installed"}
    shown = tables.shown(wrong)
    assert "DIFFERENT" in shown
    assert "a peer: absent: not installed" in shown


def test_document_is_filled_where_it_is_marked() -> None:
    text = "before\n<!-- begin goals -->\nold\n<!-- end goals -->\nafter\n"
    made = report.filled(text, {"7b-bin": record(sample(CP, 1.0), sample("merge", 0.4))})
    assert "old" not in made
    assert "better than striven for" in made
    assert report.filled(made, {}).startswith("before\n<!-- begin goals -->\n| figure |")
    with pytest.raises(KeyError):
        report.filled(text.replace("goals", "unknown"), {})


def test_every_experiment_is_in_a_group_and_every_goal_has_its_experiment(tmp_path: Path) -> None:
    known = cases(tmp_path)
    assert sorted(known) == sorted(GROUPS["all"])
    assert {name for goal in goals.GOALS for name in goal.cases} <= set(GROUPS["must"])


def test_document_is_that_of_the_kept_results() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert report.filled(text, results.read(results.RESULTS)) == text
    assert set(report.PLACE.findall(text)) == set(report.blocks({}))
