"""The page of ``webui.py`` in a process of its own, and how requests reach it."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_REPOSITORY = Path(__file__).resolve().parent.parent.parent
_WORKER = (
    f"import sys; sys.path[0] = {str(_REPOSITORY)!r}; import tests.kit.held_worker as w; w.main()"
)
_PAGE = f"""
import sys
sys.path[0] = {str(_REPOSITORY)!r}
from merge.webui import child
child._START = {_WORKER!r}
from merge.commands.webui import main
main()
"""


@dataclass(frozen=True)
class Served:
    """A page that answers at ``address``, and may use what is below ``root``."""

    address: str
    root: Path

    def request(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """Send a path as it is, without the clean-up that clients do; return status and body."""
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=60)
        try:
            connection.request(method, path, body, _with_dashes(headers))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _with_dashes(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@contextmanager
def served(root: Path, *options: str, **environment: str) -> Iterator[Served]:
    """Start the page on a free port, and end it as Ctrl-C does."""
    words = ["--root", str(root), "--port", "0", *options]
    process = subprocess.Popen(
        [sys.executable, "-c", _PAGE, *words],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=_environment(environment),
    )
    assert process.stdout is not None
    try:
        told = next((line for line in process.stdout if "http://" in line), "")
        assert told, "the page did not start"
        yield Served(told[told.index("http://") :].split(";")[0].split("；")[0].strip(), root)
    finally:
        process.send_signal(signal.SIGINT if sys.platform != "win32" else signal.SIGTERM)
        assert process.wait(60) in (0, 1)
        process.stdout.close()


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    import os

    # A proxy that somebody uses is no way to the own machine.
    return {**os.environ, "LANGUAGE": "en", "NO_PROXY": "127.0.0.1", **more}
