"""The Ray engine writes what the local one writes, on any number of machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from merge import merge_lora
from tests.kit.models import LLAMA_ROWS, adapter_tensors, save_adapter, save_base
from tests.kit.ray_clusters import RayCluster, ray_cluster
from tests.kit.stopped import contents

pytest.importorskip("ray")

OUTPUTS: dict[str, dict[str, Any]] = {
    "bin": {"output_type": "huggingface", "max_shard_size": "4KB"},
    "safetensors": {"output_type": "huggingface", "safe_serialization": True},
    "pth": {"output_type": "pth", "num_shards": 2},
    "gguf": {"output_type": "gguf", "split_max_size": "4KB"},
}
# One task for each file; several for each; one for each tensor.
TASK_SIZES = ["10GB", "3KB", "1"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """One machine at first; tests may add others."""
    with ray_cluster(1) as made:
        yield made


@pytest.fixture(scope="module")
def connected(cluster: RayCluster) -> Iterator[RayCluster]:
    """The same, with this process connected to it: processes there live from run to run."""
    import ray

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    save_base(folder / "base")
    save_adapter(folder / "llama", adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    return folder


@pytest.mark.parametrize("machines", [1, 2, 3])
def test_bytes_are_those_of_the_local_engine(
    connected: RayCluster, models: Path, tmp_path: Path, machines: int
) -> None:
    """The manifest is among them, with its digests of files and tensors."""
    while len(connected.machines) < machines:
        connected.add_machine()
    for kind, options in OUTPUTS.items():
        inputs = (models / "base", models / "llama")
        merge_lora(*inputs, tmp_path / kind / "local" / "out", **options)
        for size in TASK_SIZES:
            out = tmp_path / kind / size / "out"
            merge_lora(*inputs, out, **options, engine="ray", task_size=size)
            assert contents(out) == contents(tmp_path / kind / "local" / "out"), (kind, size)
