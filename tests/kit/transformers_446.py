"""Run code under transformers 4.46, which lives in a folder beside the main environment.

The folder is made as requirements-transformers-4.46.txt says, and named by the environment
variable ``CHINESE_LLAMA_MERGE_TRANSFORMERS_446``. It shadows the installed transformers,
tokenizers and huggingface_hub of a child process; torch, numpy and sentencepiece are those of
the main environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "CHINESE_LLAMA_MERGE_TRANSFORMERS_446"


def missing_transformers_446() -> str:
    """Return why transformers 4.46 cannot be used here, or an empty string when it can."""
    folder = os.environ.get(VARIABLE, "")
    if not folder:
        return f"transformers 4.46 is not set up: {VARIABLE} does not name its folder"
    if not list(Path(folder).glob("transformers-4.46.*.dist-info")):  # what pip puts there last
        return f"transformers 4.46 is not set up: it is not in {folder}, named by {VARIABLE}"
    return ""


needs_transformers_446 = pytest.mark.skipif(
    bool(missing_transformers_446()), reason=missing_transformers_446() or "not skipped"
)


def run_in_transformers_446(code_or_script: str | Path, *args: object, timeout: float = 600) -> Any:
    """Run source text, or a script given as a ``Path``, and return the JSON it printed last.

    ``args`` arrive as ``sys.argv[1:]``, turned into text. Whatever is printed before the last
    line of standard output is ignored. The child has no network, one thread and a Hugging Face
    home of its own. A child that fails raises ``AssertionError`` with what it printed.
    Skips the calling test when the folder is not there.
    """
    if reason := missing_transformers_446():
        pytest.skip(reason)
    return _run(code_or_script, args, timeout, [str(Path(os.environ[VARIABLE]).resolve())])


def run_in_main_environment(code_or_script: str | Path, *args: object, timeout: float = 600) -> Any:
    """Do the same with the transformers of the main environment."""
    return _run(code_or_script, args, timeout, [])


def _run(
    code_or_script: str | Path, args: Sequence[object], timeout: float, python_path: list[str]
) -> Any:
    program = [str(code_or_script)] if isinstance(code_or_script, Path) else ["-c", code_or_script]
    with tempfile.TemporaryDirectory() as home:
        child = subprocess.run(
            [sys.executable, *program, *map(str, args)],
            env=_environment(python_path, home),
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )
    assert child.returncode == 0, f"exit code {child.returncode}\n{child.stdout}\n{child.stderr}"
    return json.loads(child.stdout.strip().splitlines()[-1])


def _environment(python_path: list[str], home: str) -> dict[str, str]:
    python_path = [*python_path, os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
        "PYTHONUTF8": "1",
        "HF_HOME": home,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "OMP_NUM_THREADS": "1",
    }
