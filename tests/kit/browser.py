"""A browser for tests: one process for the tests of a module, a fresh profile for each page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.oracles.install_browser import VARIABLE, find_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PHONE, WIDE = (360, 740), (1280, 900)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window; the test is skipped where there is none.

    Ended with its module: while it is there, an event loop runs in this thread, in which nobody
    else can run one.
    """
    program = find_browser()
    if program is None:
        pytest.skip(f"needs Chromium or Chrome: install it, or name one in {VARIABLE}")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=program, args=list(_FLAGS))
        yield made
        made.close()


@dataclass
class Seen:
    """A page that was opened from disk, with whatever it complained of or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript on the page."""
        return self.page.evaluate(script)


@contextmanager
def open_page(
    browser: Browser, file: Path, size: tuple[int, int] = WIDE, scheme: str = "light"
) -> Iterator[Seen]:
    """Open a file as a user does who clicks on it."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,  # type: ignore[arg-type]
        offline=True,
    )
    try:
        seen = Seen(context.new_page())
        seen.page.on("console", lambda message: seen.complaints.append(message.text))
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        seen.page.on("dialog", lambda dialog: seen.complaints.append(dialog.message))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.goto(file.as_uri(), wait_until="load")
        yield seen
    finally:
        context.close()
