"""The page in a browser, from the choice of a base to the answers of both models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file

from merge.webui import texts
from merge.webui.languages import translate_to
from tests.kit.held_worker import HOLD
from tests.kit.page_models import AFTER, BEFORE
from tests.kit.served_page import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

# A child process imports torch first, which takes long on a machine that is busy.
_PATIENCE = 180_000
_IS_NEW = """([kind, before]) => {
  const plan = document.querySelector('#plan');
  return plan.innerHTML !== before && plan.querySelector('.clm-' + kind) !== null;
}"""


@dataclass
class Tab:
    """A tab of a browser that shows the page, with what it complained of and asked for."""

    page: Page
    language: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def part(self, name: str) -> Locator:
        """The component of that name."""
        return self.page.locator(f"#{name}")

    def see(self, selector: str, text: str | None = None) -> Locator:
        """Wait until something is there, with a text of the page or another one."""
        found = self.page.locator(selector)
        if text is not None:
            found = found.filter(has_text=translate_to(self.language, text))
        found.first.wait_for(timeout=_PATIENCE)
        return found.first

    def choose(self, base: str, adapters: list[str], output: str) -> None:
        """Fill in the form."""
        self.type_in("base", base)
        for adapter in adapters:
            self.part("adapters").locator("input").fill(adapter)
            self.page.keyboard.press("Enter")
            self.see(f"#adapters .token:has-text('{adapter}')")
        self.page.keyboard.press("Escape")
        self.type_in("output", output)

    def type_in(self, name: str, value: str) -> None:
        """Name a model or a folder."""
        self.part(name).locator("input").fill(value)

    def pick(self, name: str, value: str) -> None:
        """Choose one of the values that a list offers."""
        self.part(name).locator("input").click()
        self.page.get_by_role("option", name=value, exact=True).click()

    def check(self, kind: str) -> Locator:
        """Click on Check, and wait for a box of that kind."""
        before = self.part("plan").inner_html()
        self.part("check").click()
        self.page.wait_for_function(_IS_NEW, arg=[kind, before])
        return self.see(f"#plan .clm-{kind}")

    def merge(self) -> None:
        """Click on Merge, or Resume, when that can be done."""
        self.see("#merge:not([disabled])").click()

    def is_enabled(self, name: str) -> bool:
        return self.part(name).is_enabled()


@contextmanager
def opened(browser: Browser, served: Served, language: str = "en", **options: Any) -> Iterator[Tab]:
    """Open the page in a browser of that language."""
    context = browser.new_context(locale={"en": "en-US", "zh": "zh-CN"}[language], **options)
    try:
        tab = Tab(context.new_page(), language)
        tab.page.set_default_timeout(_PATIENCE)
        tab.page.on("console", lambda one: tab.complaints.append(f"{one.text} {one.location}"))
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.page.on("request", lambda request: tab.requests.append(request.url))
        tab.page.goto(served.address)
        tab.see("#check:not([disabled])", texts.BUTTONS["check"])
        tab.see("#base [data-testid=block-info]", texts.LABELS["base"][0])
        tab.page.wait_for_function(f"document.documentElement.lang === '{language}'")
        yield tab
    finally:
        context.close()


@pytest.fixture
def held(page: Served) -> Iterator[Path]:
    """Merges wait after half of their bytes, until this file is removed."""
    file = page.root / HOLD
    file.touch()
    yield file
    file.unlink(missing_ok=True)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_from_the_plan_to_the_answers(
    browser: Browser, page: Served, held: Path, language: str
) -> None:
    output = f"merged-{language}"
    with opened(browser, page, language) as tab:
        assert not tab.is_enabled("merge")
        tab.part("suggestions").locator("option[value=base]").wait_for(state="attached")
        assert tab.page.evaluate("document.querySelector('#base input').list.options.length")
        tab.choose("base", ["adapters/first"], output)
        assert "base" in tab.check("good").inner_text()
        tab.see("#plan .clm-warning li")
        assert not (page.root / output).exists()

        tab.merge()
        tab.see("#progress progress[value]")
        tab.see("#cancel:not([disabled])").click()
        tab.see("#progress .clm-warning")
        assert not (page.root / output / "merge_manifest.json").exists()
        assert list((page.root / output).iterdir())

        held.unlink()
        tab.see("#merge", texts.RESUME)
        tab.merge()
        tab.see("#progress .clm-good")
        after = load_file(page.root.parent / "scratch" / "after" / "model.safetensors")
        weights = load_file(page.root / output / "model-00001-of-00001.safetensors")
        assert weights["lm_head.weight"].equal(after["lm_head.weight"].half())
        report = tab.page.frame_locator("#report iframe")
        report.locator("h1").first.wait_for(timeout=_PATIENCE)

        tab.pick("template", "alpaca")
        tab.part("prompt").locator("textarea").fill("你是谁？")
        tab.part("ask").click()
        for side, answer in (("base", BEFORE), ("merged", AFTER)):
            shown = tab.see(f"#chat_{side}_answer .clm-answer:text('{answer}')")
            assert shown.inner_text().strip() == answer
        assert tab.complaints == []
        outside = [url for url in tab.requests if not url.startswith(page.address)]
        assert [url for url in outside if not re.match(r"data:|blob:|about:", url)] == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_changed_form_has_to_be_checked_again(
    browser: Browser, page: Served, language: str
) -> None:
    with opened(browser, page, language) as tab:
        tab.choose("base", ["adapters/first"], "never")
        tab.check("good")
        tab.see("#merge:not([disabled])")
        tab.type_in("output", "other")
        tab.see("#merge[disabled]")
        tab.see("#plan .clm-quiet", texts.CHANGED)
        assert not (page.root / "never").exists()
        assert not (page.root / "other").exists()


def test_a_path_outside_of_the_root_is_refused(browser: Browser, page: Served) -> None:
    outside = page.root.parent / "scratch" / "after"
    link = page.root / "link"
    names = ["../scratch/after", str(outside), "owner/name"]
    try:
        link.symlink_to(outside)
        names.append("link")
    except OSError:
        pass
    with opened(browser, page) as tab:
        tab.choose("base", ["adapters/first"], "../out")
        assert "root of this page" in tab.check("error").inner_text()
        tab.type_in("output", "out")
        for name in names:
            tab.type_in("base", name)
            assert "root of this page" in tab.check("error").inner_text()
            assert not tab.is_enabled("merge")
        for name in names:
            tab.type_in("chat_merged", name)
            tab.part("ask").click()
            tab.see("#chat_merged_answer .clm-answer:text('root of this page')")
    link.unlink(missing_ok=True)
    assert not (page.root.parent / "out").exists()


def test_two_tabs_do_not_disturb_each_other(browser: Browser, page: Served, held: Path) -> None:
    with opened(browser, page) as one, opened(browser, page) as other:
        for tab, output in ((one, "one"), (other, "other")):
            tab.choose("base", ["adapters/first"], output)
            tab.check("good")
        one.merge()
        one.see("#progress progress[value]")
        other.merge()
        other.see("#progress [role=status]", "waiting")
        other.see("#cancel:not([disabled])").click()
        other.see("#progress .clm-warning")
        assert one.is_enabled("cancel")
        held.unlink()
        one.see("#progress .clm-good")
    assert (page.root / "one" / "merge_manifest.json").exists()
    assert not (page.root / "other").exists()


def test_a_merge_goes_on_when_its_tab_is_closed_and_another_can_cancel_it(
    browser: Browser, page: Served, held: Path
) -> None:
    with opened(browser, page) as tab:
        tab.choose("base", ["adapters/first"], "left")
        tab.check("good")
        tab.merge()
        tab.see("#progress progress[value]")
    with opened(browser, page) as tab:
        while not tab.part("adopt").is_visible():  # the server hears of a closed tab in a while
            tab.page.reload()
            tab.see("#check:not([disabled])")
        tab.part("adopt").click()
        tab.see("#progress progress[value]")
        tab.see("#cancel:not([disabled])").click()
        tab.see("#progress .clm-warning")
        held.unlink()
        tab.choose("base", ["adapters/first"], "left")
        assert "resumed" in tab.check("good").inner_text()
        tab.merge()
        tab.see("#progress .clm-good")
    assert (page.root / "left" / "merge_manifest.json").exists()


def test_the_language_can_be_changed_on_the_page(browser: Browser, page: Served) -> None:
    with opened(browser, page, "en") as tab:
        tab.part("language").locator("input[value=zh]").check()
        tab.language = "zh"
        tab.see("#check", texts.BUTTONS["check"])
        tab.page.wait_for_function("document.documentElement.lang === 'zh'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(browser: Browser, page: Served, scheme: Any) -> None:
    phone = {"width": 360, "height": 740}
    with opened(browser, page, color_scheme=scheme, viewport=phone) as tab:
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
