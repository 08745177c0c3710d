"""The merge that is stopped, in each container."""

from __future__ import annotations

from pathlib import Path

import pytest

from merge.engines import writers as output_files
from tests.kit.models import LLAMA_ROWS, adapter_tensors, save_adapter, save_base
from tests.kit.stopped import Merging


@pytest.fixture
def small_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages at a time instead of megabytes, so that tiny models reach the disk on the way."""
    for name in ("_WRITE_BYTES", "_LEAST_WRITE"):
        monkeypatch.setattr(output_files, name, 4096)


@pytest.fixture(
    params=[
        {"output_type": "pth", "num_shards": 2},
        {"output_type": "huggingface", "max_shard_size": "8KB"},
        {"output_type": "huggingface", "safe_serialization": True, "io": "buffered"},
    ],
    ids=["pth", "bin", "safetensors"],
)
def merging(request: pytest.FixtureRequest, tmp_path: Path, small_writes: None) -> Merging:
    made = Merging(tmp_path, dict(request.param))
    save_base(made.base)
    save_adapter(made.adapter, adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    return made


@pytest.fixture
def one(tmp_path: Path, small_writes: None) -> Merging:
    """The same in one layout, for what has nothing to do with layouts."""
    made = Merging(tmp_path, {"output_type": "pth", "num_shards": 2})
    save_base(made.base)
    save_adapter(made.adapter, adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    return made
