"""What of Gradio's routes is reachable, by whom, and what its pages may load.

Gradio serves files, uploads, proxies and more, and copies any file into its cache that a value of
a field names in Gradio's way. The page needs none of that, so that only the few routes that it uses
pass, whatever Gradio adds, with values that are text, numbers and lists. A page of another site
that is open in the same browser cannot use this one: neither under a name of its own (``Host``) nor
from its own address (``Origin``). The browser is told to load nothing from elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from secrets import compare_digest
from typing import Any
from urllib.parse import urlsplit

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

# A segment of a path, of the characters that Gradio's own names have; never "." or "..".
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_ALLOWED = {
    "GET": re.compile(
        rf"/|/favicon\.ico|/config/?|/theme\.css|/gradio_api/(?:info|queue/data|heartbeat/{_NAME})"
        rf"|/(?:assets|static|svelte)(?:/{_NAME})+"
    ),
    "POST": re.compile(r"/gradio_api/(?:queue/join|run/predict|cancel|reset/?)"),
}
_ALLOWED["HEAD"] = re.compile("/")
_MOST_BYTES = 1_000_000
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' data: blob:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; object-src 'none'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'self'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True)
class Gate:
    """An ASGI application around Gradio's.

    ``login`` is the user's name and password, None for a page on this machine alone.
    """

    app: App
    login: tuple[str, str] | None

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        status = self._find_refusal(scope["method"], scope["path"], headers)
        if status is not None:
            await _refuse(send, status)
            return

        if scope["method"] == "POST":
            body = await _read(receive)
            if body is None or not are_plain(body):
                await _refuse(send, 400)
                return
            receive = _replay(body, receive)

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_encode(_HEADERS)]
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _find_refusal(self, method: str, path: str, headers: Mapping[str, str]) -> int | None:
        """The status of the refusal, None for a request that may pass."""
        host = headers.get("host", "")
        if self.login is None and urlsplit(f"//{host}").hostname not in LOOPBACK:
            return 421
        if "origin" in headers and urlsplit(headers["origin"]).netloc != host:
            return 403
        if not self._is_logged_in(headers.get("authorization", "")):
            return 401
        allowed = _ALLOWED.get(method)
        return None if allowed is not None and allowed.fullmatch(path) else 404

    def _is_logged_in(self, authorization: str) -> bool:
        if self.login is None:
            return True
        kind, _, coded = authorization.partition(" ")
        try:
            given = base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError):
            return False
        return kind.lower() == "basic" and compare_digest(given, ":".join(self.login).encode())


def are_plain(body: bytes) -> bool:
    """Whether the values of fields in a request are such as the page's own fields have.

    >>> are_plain(b'{"data": ["base", ["a", "b"], 0.2, true, null]}'), are_plain(b"[]")
    (True, False)
    >>> are_plain(b'{"data": [{"path": "/x", "meta": {"_type": "gradio.FileData"}}]}')
    False
    """
    try:
        values = json.loads(body or b"{}").get("data") or []
    except (ValueError, AttributeError, RecursionError):
        return False
    if not isinstance(values, list):
        return False
    flat = [part for one in values for part in (one if isinstance(one, list) else [one])]
    return not any(isinstance(part, (dict, list)) for part in flat)


async def _read(receive: _Receive) -> bytes | None:
    """The body of a request; None for one that is larger than any of the page's."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > _MOST_BYTES:
            return None
        if not message.get("more_body"):
            return body


def _replay(body: bytes, receive: _Receive) -> _Receive:
    """A function that gives what was read, then what comes after it."""
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> MutableMapping[str, Any]:
        return parts.pop() if parts else await receive()

    return give


async def _refuse(send: _Send, status: int) -> None:
    headers = {"content-type": "text/plain", **_HEADERS}
    if status == 401:
        headers["www-authenticate"] = 'Basic realm="Chinese LLaMA Merge", charset="UTF-8"'
    start = {"type": "http.response.start", "status": status, "headers": _encode(headers)}
    await send(start)
    await send({"type": "http.response.body", "body": b"refused\n"})


def _encode(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
