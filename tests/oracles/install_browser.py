"""Find the browser in which tests look at pages; install Debian's where there is none.

Run by the Makefile. Takes Chromium or Chrome that is there, or the one that PLAYWRIGHT_CHROMIUM
names. Installing needs apt-get and a user who may use it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

VARIABLE = "PLAYWRIGHT_CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_ATTEMPTS = (
    (("apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium"),),
    (
        ("apt-get", "update", "-q"),
        ("apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium"),
    ),
)


def find_browser() -> Path | None:
    """The browser's program, None where there is none."""
    if named := os.environ.get(VARIABLE):
        return Path(named) if Path(named).is_file() else None
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    return Path(found) if found else None


def main() -> int:
    """Return 0 when there is a browser, 1 when none could be had; a line says which or why."""
    if (browser := find_browser()) is not None:
        print(f"browser: {browser}", flush=True)
        return 0
    if os.environ.get(VARIABLE):
        print(f"browser: {VARIABLE} names no file", file=sys.stderr)
        return 1
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        print(
            "browser: there is none, and only root may install one with apt-get; install Chromium, "
            f"or name one in {VARIABLE}",
            file=sys.stderr,
        )
        return 1
    print("browser: installing chromium with apt-get", flush=True)
    started = time.monotonic()
    if not any(all(map(_run, steps)) for steps in _ATTEMPTS) or find_browser() is None:
        print("browser: apt-get could not install chromium", file=sys.stderr)
        return 1
    print(f"browser: installed in {time.monotonic() - started:.0f} s", flush=True)
    return 0


def _run(command: tuple[str, ...]) -> bool:
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=quiet, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
