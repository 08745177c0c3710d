"""What of the page is reachable by HTTP, and by whom."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.kit.served_page import Served, served
from tests.webui.conftest import SECRET


def _forms(path: Path) -> list[str]:
    """Ways to write an absolute path behind a route."""
    plain = str(path)
    dotted = f"{path.parent}/x/../{path.name}"
    return [plain, quote(plain, safe=""), plain.replace("/", "//"), dotted, quote(dotted, safe="")]


ROUTES = [
    *("/gradio_api/file=", "/file=", "/gradio_api/file/", "/file/", "/gradio_api/FILE=", "//file="),
    *("/static/..", "/static/%2e%2e/..", "/assets/..", "/assets/%2e%2e%2f", "/svelte/..%2f.."),
    *("/gradio_api/proxy=", "/gradio_api/custom_component/", "/gradio_api/stream/"),
]


@pytest.mark.parametrize("route", ROUTES)
def test_no_route_serves_a_file_of_the_disk(page: Served, route: str) -> None:
    secret, model = page.root.parent / "secret.txt", page.root / "base" / "config.json"
    for path in (secret, model, Path("/proc/self/environ"), Path("/etc/passwd")):
        for form in _forms(path):
            status, body = page.request(route + form)
            assert status == 404, route + form
            assert SECRET not in body


def test_a_link_below_the_root_is_not_served_either(page: Served) -> None:
    there = page.root / "link.txt"
    try:
        there.symlink_to(page.root.parent / "secret.txt")
    except OSError:
        pytest.skip("this user may not make links")
    for route in ("/gradio_api/file=", "/file=", "/static/", "/"):
        for name in (str(there), "link.txt", "../link.txt"):
            status, body = page.request(route + name)
            assert status == 404
            assert SECRET not in body
    there.unlink()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", f"/gradio_api/{name}") for name in ("upload", "run/check", "call/check")),
        *(("POST", f"/gradio_api/{name}") for name in ("process_recording", "component_server")),
        *(("GET", f"/gradio_api/{name}") for name in ("runs", "openapi.json", "startup-events")),
        *(("GET", path) for path in ("/docs", "/openapi.json", "/monitoring", "/gradio_api/dev/")),
        *(("GET", path) for path in ("/login", "/token", "/gradio_api/token", "/app_id")),
        *(("PUT", "/"), ("DELETE", "/"), ("OPTIONS", "/"), ("TRACE", "/"), ("POST", "/login")),
        *(("GET", "/gradio_api/vibe-code/"), ("POST", "/gradio_api/vibe-edit")),
    ],
)
def test_routes_that_the_page_does_not_use_are_closed(page: Served, method: str, path: str) -> None:
    assert page.request(path, method, body="{}" if method == "POST" else None)[0] == 404


def test_the_page_itself_is_served_with_rules_for_the_browser(page: Served) -> None:
    status, body = page.request("/")
    assert status == 200
    assert b"fonts.googleapis" not in body
    assert b"cdn" not in body.lower()


def test_a_name_that_leads_to_this_machine_does_not_open_the_page(page: Served) -> None:
    assert page.request("/", Host="evil.example")[0] == 421
    assert page.request("/", Host="127.0.0.1.evil.example:80")[0] == 421
    assert page.request("/", Host=f"localhost:{urlsplit(page.address).port}")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "file://"])
def test_another_site_in_the_same_browser_cannot_use_the_page(page: Served, origin: str) -> None:
    assert page.request("/gradio_api/queue/join", "POST", "{}", Origin=origin)[0] == 403


@pytest.fixture(scope="module")
def locked(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page with a password, on every address of this machine."""
    pytest.importorskip("gradio")
    file = tmp_path_factory.mktemp("login") / "login"
    file.write_text("me:some:pass wörd\n", encoding="utf-8")
    with served(root, "--host", "0.0.0.0", "--auth_file", str(file)) as there:
        yield Served(there.address.replace("0.0.0.0", "127.0.0.1"), root)


def _basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/gradio_api/heartbeat/x", "/x"])
def test_nothing_is_served_without_the_password(locked: Served, path: str) -> None:
    assert locked.request(path)[0] == 401
    for wrong in ("me:", "me:some", "you:some:pass wörd", "me:some:pass wörd ", ""):
        assert locked.request(path, Authorization=_basic(wrong))[0] == 401
    for odd in ("Basic", "Basic ???", "Bearer x", "Basic " + "A" * 9000, "\xff"):
        assert locked.request(path, Authorization=odd)[0] == 401


def test_the_page_is_served_with_the_password(locked: Served) -> None:
    assert locked.request("/", Authorization=_basic("me:some:pass wörd"))[0] == 200
