"""The page in a browser: from disk alone, in both schemes, on a phone, by keyboard, read aloud."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from merge.reports.number_texts import format_percent
from merge.reports.report_files import render_report
from tests.kit.browser import PHONE, WIDE, Seen, open_page
from tests.kit.models import LAYERS, LINEAR
from tests.kit.reported import Reported, make_reported

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OPEN_ALL = "document.querySelectorAll('details').forEach(one => { one.open = true })"
# The least contrast, by WCAG, of every text with the nearest background behind it; [ratio, text].
LEAST_CONTRAST = """
(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = one => {
    for (; one; one = one.parentElement) {
      const color = parse(getComputedStyle(one).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  let least = [99, ''];
  for (const one of document.querySelectorAll('main *, header *, footer *')) {
    const own = [...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || one.closest('svg') || !one.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(behind(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least[0]) least = [ratio, one.textContent.trim().slice(0, 60)];
  }
  return least;
})()
"""


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    made = make_reported(tmp_path_factory.mktemp("page"))
    made.merge()
    return made


@pytest.fixture
def seen(browser: Browser, reported: Reported) -> Iterator[Seen]:
    with open_page(browser, reported.out / "report.html") as page:
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_opens_from_disk_without_complaint_or_request(
    browser: Browser, reported: Reported, scheme: str
) -> None:
    file = reported.out / "report.html"
    with open_page(browser, file, scheme=scheme) as seen:
        seen.run(OPEN_ALL)
        assert seen.complaints == []
        assert [url for url in seen.requests if not url.startswith("data:")] == [file.as_uri()]
        assert seen.page.title() == "Merge report: out"
        assert seen.run("document.documentElement.lang") == "en"
        assert seen.run("document.scripts.length") == 0


def test_numbers_on_the_page_are_those_of_float64(seen: Seen, reported: Reported) -> None:
    seen.run(OPEN_ALL)
    expected = []
    for layer in range(LAYERS):
        for module in LINEAR:
            name = f"model.layers.{layer}.{module}.weight"
            change = reported.product(0, name) + reported.product(1, name)
            norms = [
                float(torch.linalg.vector_norm(t.double())) for t in (change, reported.base[name])
            ]
            expected.append(format_percent(norms[0] / norms[1]))
    table = seen.page.get_by_role("region", name="Table of the relative change: All adapters")
    assert table.locator("td").all_inner_texts() == expected
    assert table.locator("thead th").all_inner_texts() == ["layer", *LINEAR]
    largest = seen.page.get_by_role("region", name="The tensors that changed most")
    assert largest.locator("tbody tr").count() == 10


def test_schemes_differ_and_all_text_can_be_read(browser: Browser, reported: Reported) -> None:
    pages = {}
    for scheme in ("light", "dark"):
        with open_page(browser, reported.out / "report.html", scheme=scheme) as seen:
            seen.run(OPEN_ALL)
            ratio, text = seen.run(LEAST_CONTRAST)
            assert ratio >= 4.5, f"{scheme}: {text}"
            pages[scheme] = seen.run("getComputedStyle(document.body).backgroundColor")
            heat = seen.run(
                "getComputedStyle(document.querySelector('.heat svg path[style*=heat]')).fill"
            )
            assert heat not in ("none", "rgb(0, 0, 0)"), "colours of drawings are the page's"
    assert pages["light"] != pages["dark"]


@pytest.mark.parametrize("size", [PHONE, (768, 900), WIDE], ids=["phone", "tablet", "wide"])
def test_page_never_scrolls_sideways(
    browser: Browser, reported: Reported, size: tuple[int, int]
) -> None:
    with open_page(browser, reported.out / "report.html", size) as seen:
        for _ in range(2):
            width, least = seen.run("[document.documentElement.scrollWidth, innerWidth]")
            assert width <= least
            seen.run(OPEN_ALL)


def test_figures_have_names_and_a_table_with_the_same_numbers(seen: Seen) -> None:
    figures = seen.page.get_by_role("figure")
    images = seen.page.get_by_role("img")
    assert figures.count() == images.count() == 6  # three heat maps, two histograms, the pace
    for number in range(images.count()):
        assert images.nth(number).get_attribute("aria-label")
        assert figures.nth(number).locator("details table").count() == 1
    assert seen.page.locator("svg:not([aria-hidden=true])").count() == 0


def test_structure_is_told_by_landmarks_and_headings(seen: Seen) -> None:
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert seen.page.get_by_role(role).count() == 1, role  # type: ignore[arg-type]
    levels = seen.run(
        "[...document.querySelectorAll('h1, h2, h3')].map(one => Number(one.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    unnamed = seen.run(
        "[...document.querySelectorAll('section, nav, [role=region]')].filter(one => "
        "!one.getAttribute('aria-label') && !document.getElementById("
        "one.getAttribute('aria-labelledby'))).length"
    )
    assert unnamed == 0
    headless = seen.run(
        "[...document.querySelectorAll('table')].filter(one => !one.querySelector('th')).length"
    )
    assert headless == 0
    ids = seen.run("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))


def test_keyboard_reaches_the_skip_link_and_opens_tables(seen: Seen) -> None:
    seen.page.keyboard.press("Tab")
    assert seen.run("document.activeElement.textContent") == "Skip to the content"
    summary = seen.page.get_by_text("Show as a table: All adapters together")
    region = seen.page.get_by_role("region", name="Table of the relative change: All adapters")
    assert not region.is_visible()
    summary.focus()
    seen.page.keyboard.press("Enter")
    assert region.is_visible()
    seen.page.keyboard.press("Tab")
    assert seen.run("document.activeElement.getAttribute('role')") == "region"


def test_names_from_files_are_text(browser: Browser, reported: Reported, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>$\\frac{1}{0}$\"'%s{{7*7}}"
    text = (reported.out / "report.json").read_text(encoding="utf-8")
    report: dict[str, Any] = json.loads(text)
    report["output"]["name"] = report["inputs"]["adapters"][0]["name"] = evil
    report["heat_map"]["modules"][0] = report["tensors"][0]["name"] = evil
    report["most_changed"][0] = evil
    report["inputs"]["base_model"]["source"] = f"/models/{evil}"
    report["findings"] = [{"code": "adapter_adds_nothing", "values": {"adapter": 1, "name": evil}}]
    for name, content in render_report(report).items():
        (tmp_path / name).write_bytes(content)
    with open_page(browser, tmp_path / "report.html") as seen:
        seen.run(OPEN_ALL)
        assert seen.complaints == []
        assert seen.run("document.images.length") == 0
        assert seen.page.get_by_role("heading", level=1).inner_text() == evil
        assert seen.page.get_by_role("heading", level=3).first.inner_text().count(evil) == 1
        assert evil in seen.page.locator(".heat svg").first.text_content()  # type: ignore[operator]


def test_page_of_one_adapter_without_findings_says_so(browser: Browser, reported: Reported) -> None:
    out = reported.folder / "one"
    reported.merge(lora_model=reported.inputs["lora_model"][0], output_dir=out)
    with open_page(browser, out / "report.html") as seen:
        assert seen.page.get_by_text("Nothing unusual was found").is_visible()
        assert seen.page.locator(".heat").count() == 1
