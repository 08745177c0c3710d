"""What tests of every package share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from tests.kit.browser import browser
from tests.kit.fixtures import inputs, models, publish_files, small_chinese, small_llama
from tests.kit.grown_llama3 import grown
from tests.kit.refusals import checked
from tests.kit.small_disk import disk

__all__ = [
    "browser",
    "disk",
    "grown",
    "inputs",
    "models",
    "publish_files",
    "small_chinese",
    "small_llama",
]

# The same examples in every run: a change is what turns a test red. To look for others:
# pytest --hypothesis-profile=default, and make fuzz.
settings.register_profile("repeatable", derandomize=True, print_blob=True)
settings.load_profile("repeatable")

# A job in the background of a shell may ignore Ctrl-C, which commands under test would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A program of its own, which would be imported for the examples in its docstrings.
collect_ignore = [] if find_spec("llama_cpp") else ["oracles/llama_cpp_quantizer.py"]

REAL_DATA = "CHINESE_LLAMA_MERGE_TEST_DATA"


@pytest.fixture(autouse=True)
def refusals_are_checked() -> Iterator[None]:
    """Every refusal names options that its command has, and files that exist or are missing."""
    with checked():
        yield


@pytest.fixture(scope="session", autouse=True)
def extensions_are_compiled_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """PEFT's CUDA extension, for BOFT: torch waits without end for a compilation that was killed,
    which has left a lock in the user's cache.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("extensions")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of published tokenizers, adapters and models, which the project may not carry."""
    folder = os.environ.get(REAL_DATA)
    if not folder:
        pytest.skip(f"needs published files: set {REAL_DATA} to the folder that holds them")
    return Path(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many changed files the fuzzing tried."""
    reports = [
        report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)
    ]
    properties = [item for report in reports for item in getattr(report, "user_properties", ())]
    tried = sum(int(value) for name, value in properties if name == "fuzzed inputs")
    if tried:
        terminalreporter.write_line(f"fuzzing: {tried:,} inputs tried")
