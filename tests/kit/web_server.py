"""A web server for files, with ranges and versions, which can be made to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Web:
    """What a server serves, how it fails, and what it has been asked for.

    ``busy``, ``cut`` and ``short`` count answers by file name: so many times 503, an end in
    mid-body, or a part that is shorter than its ``Content-Range`` says. A file in ``stalled`` is
    answered with headers alone until ``stop`` is set. ``before_part`` is called with the name and
    how many parts of it were asked for before.
    """

    root: Path
    ranges: bool = True
    validators: bool = True
    busy: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    short: dict[str, int] = field(default_factory=dict)
    stalled: set[str] = field(default_factory=set)
    status: int | None = None
    before_part: Callable[[str, int], None] = lambda name, count: None
    url: str = ""
    sent: dict[str, int] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def nbytes(self) -> int:
        """Bytes of bodies sent."""
        return sum(self.sent.values())

    def take(self, counts: dict[str, int], name: str) -> bool:
        """Whether a fault is due; then there is one fewer."""
        with self.lock:
            left = counts.get(name, 0)
            counts[name] = max(0, left - 1)
            return left > 0

    def count(self, counts: dict[str, int], name: str, number: int) -> int:
        """Add to a count; return what it was."""
        with self.lock:
            before = counts.get(name, 0)
            counts[name] = before + number
            return before


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        web = self.web
        path = web.root / self.path.partition("?")[0].lstrip("/")
        if web.status is not None:
            return self._send(web.status, b"", {}, with_body)
        if not path.is_file():
            return self._send(404, b"", {}, with_body)
        if with_body and web.take(web.busy, path.name):
            return self._send(503, b"", {}, with_body)
        wanted = self.headers.get("Range")
        if wanted and with_body:
            web.before_part(path.name, web.count(web.parts, path.name, 1))
        status = path.stat()
        etag = f'"{status.st_size}-{status.st_mtime_ns}"'
        headers = {"ETag": etag} if web.validators else {}
        if self.headers.get("If-Match") not in (None, etag):
            return self._send(412, b"", headers, with_body)
        if wanted and web.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, status.st_size)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{status.st_size}"
            with path.open("rb") as stream:
                stream.seek(start)
                part = stream.read(stop - start)
            if web.take(web.short, path.name):  # as of a file that is being written
                part = part[: len(part) // 2]
            return self._send(206, part, headers, with_body, path.name)
        return self._send(200, path.read_bytes(), headers, with_body, path.name)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], with_body: bool, name: str = ""
    ) -> None:
        web = self.web
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not with_body:
            return
        if name in web.stalled:
            web.stop.wait()
        if name and web.take(web.cut, name):
            body = body[: len(body) // 2]
            self.close_connection = True
        web.count(web.sent, name, len(body))  # before the client can go on
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: what was asked for is counted."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hangs up, as one does that wanted a part and was sent the whole."""


@contextmanager
def serve_files(root: Path) -> Iterator[Web]:
    """Serve the files below ``root`` on loopback."""
    web = Web(root)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"web": web}))
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        web.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()
