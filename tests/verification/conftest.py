"""The model and the adapter that most checks are tried on."""

from __future__ import annotations

from pathlib import Path

import pytest

from merge import merge_lora
from tests.kit.adapters import make_adapter
from tests.kit.llamas import make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight heads with four of keys and values, 101 rows of vocabulary."""
    return make_base(tmp_path_factory.mktemp("base"), num_key_value_heads=4)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on every linear layer, with whole embeddings and head of 151 rows."""
    return make_adapter(tmp_path_factory.mktemp("adapter"), base, rows=151)


@pytest.fixture(scope="module")
def merged(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "out"
    merge_lora(base, adapter, folder, output_type="huggingface")
    return folder


@pytest.fixture(scope="module")
def merged_pth(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "out"
    merge_lora(base, adapter, folder, output_type="pth")
    return folder


@pytest.fixture(scope="module")
def merged_safetensors(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "out"
    merge_lora(base, adapter, folder, output_type="huggingface", safe_serialization=True)
    return folder
