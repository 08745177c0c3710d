"""The page's side of its child processes: start one, read its events, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_PACKAGES = Path(__file__).resolve().parent.parent.parent
# The child works in the root of the page, where nothing may be imported from.
_START = f"import sys; sys.path[0] = {str(_PACKAGES)!r}; import merge.webui.worker as w; w.main()"
_SECONDS_TO_END = 15.0


class Child:
    """A worker that has been given its request. ``worker`` tells what it does and answers."""

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        apart: dict[str, Any] = {"start_new_session": True}  # Ctrl-C is for the page to pass on
        if sys.platform == "win32":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, "PYTHONUTF8": "1"},
            **apart,
        )
        self.send(request)

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one line to it; it may have ended already."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def events(self) -> Iterator[dict[str, Any]]:
        """What it says, until it ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)

    def interrupt(self) -> None:
        """End its input, at which a merge stops where ``resume`` can go on, and a chat at once."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def wait(self) -> None:
        """Wait until it has ended after ``interrupt``, and end it if it does not."""
        self.interrupt()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
