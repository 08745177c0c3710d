"""A page for tests, with a base and an adapter below its root, and a secret beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from tests.kit.page_models import make_pair
from tests.kit.served_page import Served, served

SECRET = b"nobody may read this"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory, small_llama: ModelProto) -> Path:
    """A folder with models; outside of it a file, to which a link leads from a folder inside."""
    place = tmp_path_factory.mktemp("place")
    folder = place / "root"
    folder.mkdir()
    make_pair(folder, small_llama, place / "scratch")
    (place / "secret.txt").write_bytes(SECRET)
    return folder


@pytest.fixture(scope="module")
def page(root: Path) -> Iterator[Served]:
    """A page without a password."""
    pytest.importorskip("gradio")
    with served(root) as there:
        yield there
