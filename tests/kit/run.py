"""Run the project's commands as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MERGE = ROOT / "scripts" / "merge_llama_with_chinese_lora.py"
MERGE_TO_HF = ROOT / "scripts" / "merge_llama_with_chinese_lora_to_hf.py"


def command(*args: object, script: Path = MERGE) -> list[str]:
    """The words of a command line."""
    return [sys.executable, str(script), *map(str, args)]


def quick_environment(**variables: str) -> dict[str, str]:
    """The environment for a command in a test: one thread, and no Hub to be reached."""
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **offline, **variables}


def run_merge(
    *args: object, script: Path = MERGE, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the real command as a user does; ``variables`` are added to its environment."""
    return run_python(script, *args, cwd=cwd, **variables)


def run_python(
    *args: object, cwd: Path | None = ROOT, timeout: float = 120, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments; ``variables`` are added to its environment."""
    return subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        cwd=cwd,
        env=quick_environment(**variables),
        timeout=timeout,
    )
