"""The page's child process on a disk that can be made to wait: while a file ``hold`` is there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge.interruption import raise_if_interrupted
from merge.webui import worker

HOLD = "hold"


def main() -> None:
    """Do what the page's child does, but let a merge wait after half of its bytes."""
    run = worker._run_merge

    def run_held(request: Mapping[str, Any], **more: Any) -> Any:
        show = more.get("on_progress", lambda done, total: None)

        def show_and_wait(done: int, total: int) -> None:
            show(done, total)
            while 2 * done > total and Path(HOLD).exists():
                raise_if_interrupted()
                time.sleep(0.01)

        held = {**more, "on_progress": show_and_wait} if "on_progress" in more else more
        return run(request, **held)

    worker._run_merge = run_held
    worker.main()
