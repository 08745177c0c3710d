"""A base, and an adapter of it with nothing wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.adapters import make_lora
from tests.kit.llamas import make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multi-head LLaMA of 101 rows."""
    return make_base(tmp_path_factory.mktemp("deltas") / "base")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """An adapter with nothing wrong, to be spoiled in a copy."""
    return make_lora(tmp_path_factory.mktemp("lora"), base)
