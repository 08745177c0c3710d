"""What fsspec's reader for web servers lacks: a second try, and a look at what comes back."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import aiohttp

from ..messages import tr
from .urls import (
    ATTEMPTS,
    CONNECT_SECONDS,
    SILENT_SECONDS,
    SMALL_BYTES,
    ChangedError,
    NoRangesError,
)

if TYPE_CHECKING:
    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

# Answers after which a server may be asked again.
_BUSY = (408, 429, 500, 502, 503, 504)
_PARTIAL = 206
_FIRST_WAIT = 0.25
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/", re.ASCII)
_VALIDATORS = ("ETag", "Last-Modified")


def make_client_options() -> dict[str, Any]:
    """Arguments of ``aiohttp.ClientSession``: timeouts, and the middleware below."""
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
    )
    return {"timeout": timeout, "middlewares": (_CarefulClient(),), "trust_env": True}


def _is_small(answer: ClientResponse) -> bool:
    return answer.content_length is not None and answer.content_length <= SMALL_BYTES


def _count_promised(answer: ClientResponse) -> int:
    """Bytes of the part that ``Content-Range: bytes FIRST-LAST/SIZE`` announces, 0 without it."""
    span = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
    return int(span[2]) - int(span[1]) + 1 if span else 0


class _CarefulClient:
    """Asks again where a server is busy or a connection breaks, and compares versions.

    The body of a part, or of a small file, is read here, so that a connection that breaks in it
    counts as well, and so does a part that is shorter than its ``Content-Range`` says: the server's
    file is being written. Answers for one URL must all be of the version that the first one was of.
    """

    def __init__(self) -> None:
        self._versions: dict[str, dict[str, str]] = {}

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        wait = _FIRST_WAIT
        for left in reversed(range(ATTEMPTS)):
            try:
                answer = await self._ask(request, handler)
                if left == 0 or answer.status not in _BUSY:
                    return answer
                answer.release()
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError):
                if left == 0:
                    raise
            await asyncio.sleep(wait)
            wait *= 2
        raise AssertionError("the last attempt returns or raises")

    async def _ask(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        answer = await handler(request)
        wants_part = request.method == "GET" and "Range" in request.headers
        if answer.status >= 300 or request.method not in ("GET", "HEAD"):
            return answer
        self._require_same_version(request, answer)
        if wants_part and answer.status != _PARTIAL:
            answer.close()
            raise NoRangesError(
                tr("status {status} instead of {partial}", status=answer.status, partial=_PARTIAL)
            )
        if wants_part or (request.method == "GET" and _is_small(answer)):
            body = await answer.read()
            if wants_part and len(body) < _count_promised(answer):
                raise aiohttp.ClientPayloadError(
                    tr("{n_content:,} bytes came", n_content=len(body))
                )
        return answer

    def _require_same_version(self, request: ClientRequest, answer: ClientResponse) -> None:
        found = {name: answer.headers[name] for name in _VALIDATORS if name in answer.headers}
        if answer.status == _PARTIAL:
            found["size"] = answer.headers.get("Content-Range", "").rpartition("/")[2]
        elif "Content-Encoding" not in answer.headers and "Content-Length" in answer.headers:
            found["size"] = answer.headers["Content-Length"]
        first = self._versions.setdefault(str(request.url), found)
        for name in first.keys() & found.keys():
            if first[name] != found[name]:
                answer.close()
                raise ChangedError(
                    tr(
                        "{name} {found} instead of {first}",
                        name=name,
                        found=found[name],
                        first=first[name],
                    )
                )
