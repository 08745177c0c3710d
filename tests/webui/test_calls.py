"""What happens on a click is also reachable by a program that sends whatever it likes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.served_page import Served, served
from tests.webui.conftest import SECRET

JOIN, RUN = "/gradio_api/queue/join", "/gradio_api/run/predict"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Gradio keeps files that pass through it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def page(root: Path, cache: Path) -> Iterator[Served]:
    pytest.importorskip("gradio")
    with served(root, GRADIO_TEMP_DIR=str(cache)) as there:
        yield there


def call(page: Served, number: int, data: list[Any], session: str) -> bytes:
    """Call the function of that number in the page's two ways; return all that comes of it."""
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session})
    told = page.request(RUN, "POST", body, Content_Type="application/json")[1]
    status, queued = page.request(JOIN, "POST", body, Content_Type="application/json")
    if status == 200:
        queued = page.request(f"/gradio_api/queue/data?session_hash={session}")[1]
    return told + queued


def odd_values(root: Path) -> Iterator[Any]:
    """Values of kinds that no field has, or that name files."""
    secret, inside = str(root.parent / "secret.txt"), str(root / "base" / "config.json")
    for path in (secret, inside, f"http://127.0.0.1/{secret}", f"{root}/../secret.txt"):
        yield {"path": path, "meta": {"_type": "gradio.FileData"}}
        yield {"path": path, "url": f"file://{path}", "orig_name": "x", "is_file": True}
    yield from (secret, [secret], [[secret]], {"a": secret}, None, 7, True, "\0", "x" * 100_000)


def test_no_call_reads_a_file_or_ends_the_page(page: Served, root: Path, cache: Path) -> None:
    config = json.loads(page.request("/config")[1])
    calls = [(one["id"], len(one["inputs"])) for one in config["dependencies"] if one["inputs"]]
    assert len(calls) > 5
    for number, inputs in calls:
        for turn, value in enumerate(odd_values(root)):
            told = call(page, number, [value] * inputs, f"s{number}x{turn}")
            assert SECRET not in told
            assert b"LlamaForCausalLM" not in told
    kept = [file for file in cache.rglob("*") if file.is_file()]
    assert [file for file in kept if SECRET in file.read_bytes()] == []
    assert page.request("/")[0] == 200


def test_a_request_that_is_too_large_or_no_json_is_refused(page: Served) -> None:
    for body in ("x" * 2_000_000, "{", "[" * 100_000, '"x"', '{"data": {"a": 1}}', '{"data": 1}'):
        for route in (JOIN, RUN):
            assert page.request(route, "POST", body)[0] == 400


def test_the_page_does_not_say_what_functions_it_has_by_name(page: Served) -> None:
    told = json.loads(page.request("/gradio_api/info")[1])
    assert told["named_endpoints"] == {}
