"""Fixtures that tests in several folders ask for; ``tests/conftest.py`` makes them known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from merge.checksums import known_files
from tests.kit.inputs import Inputs, make_inputs
from tests.kit.tokenizer_models import train_chinese, train_llama

PublishFiles = Callable[[str, Iterable[tuple[str, Path]]], None]


@pytest.fixture
def publish_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PublishFiles]:
    """Replace the table of checksums by one of these files, under a heading of SHA256.md."""
    table = tmp_path / "SHA256.md"
    monkeypatch.setattr(known_files, "CHECKSUMS", table)

    def write(heading: str, files: Iterable[tuple[str, Path]]) -> None:
        rows = [
            f"| {model} | {number:02} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |"
            for number, (model, path) in enumerate(files)
        ]
        table.write_text("\n".join([f"## {heading}", *rows]), encoding="utf-8")
        known_files.load_known_files.cache_clear()

    yield write
    known_files.load_known_files.cache_clear()


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
