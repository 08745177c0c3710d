"""Fixtures that tests in several folders ask for; ``tests/conftest.py`` makes them known."""

from __future__ import annotations

from pathlib import Path

import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from tests.kit.inputs import Inputs, make_inputs
from tests.kit.tokenizer_models import train_chinese, train_llama


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """A tiny base with both adapters."""
    return make_inputs(tmp_path)


@pytest.fixture(scope="session")
def small_llama() -> ModelProto:
    """A tokenizer like LLaMA's."""
    return train_llama()


@pytest.fixture(scope="session")
def small_chinese() -> ModelProto:
    """A tokenizer of Chinese."""
    return train_chinese()


@pytest.fixture(scope="session")
def models(
    tmp_path_factory: pytest.TempPathFactory, small_llama: ModelProto, small_chinese: ModelProto
) -> Path:
    """A folder with the small models as ``llama.model`` and ``chinese.model``."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "llama.model").write_bytes(small_llama.SerializeToString())
    (folder / "chinese.model").write_bytes(small_chinese.SerializeToString())
    return folder
