"""Memory: what a merged tensor needed goes with its reader; no kind of adapter needs more."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import ones

from merge.deltas.patches import LowRank
from merge.tensors.patched import PatchedTensor
from tests.kit.adapters import make_lora
from tests.kit.in_memory import lazy
from tests.kit.llamas import make_base
from tests.kit.run import command, run_python
from tests.kit.web_server import serve_files


@pytest.fixture
def without_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collection")
def test_factors_go_with_the_reader_and_wait_for_no_garbage_collection() -> None:
    start, patch = lazy(ones(300, 16)), LowRank(lazy(ones(4, 16)), lazy(ones(300, 4)), 0.5)
    reader = PatchedTensor(start.shape, start.dtype, start.origin, start, ((patch,),)).reader()
    out = torch.empty(100, 16)
    reader(150, 250, out)
    assert out.eq(3).all()
    gone = weakref.ref(reader)
    del reader
    assert gone() is None


# Runs a command and says its peak memory; a process of its own, since a child counts what its
# parent held when it was started.
MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
MIB = 1024 if sys.platform == "linux" else 1 << 20  # of ru_maxrss


def measure(*words: object) -> float:
    """MiB that a command takes at its peak."""
    done = run_python("-c", MEASURED, *words)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / MIB


def peak(base: object, adapter: Path, output: Path, *more: str) -> float:
    """MiB that a merge takes at its peak."""
    merge = command("--base_model", base, "--lora_model", adapter, "--output_dir", output)
    return measure(*merge, "--output_type", "huggingface", *more)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no peak memory of children")
def test_dora_on_the_embeddings_takes_no_more_memory_than_a_plain_lora(tmp_path: Path) -> None:
    """The embeddings in float32 are 156 MiB."""
    sizes: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1}
    base = make_base(tmp_path / "base", vocab_size=80_000, max_shard_size="1GB", **sizes)
    linear = ["q_proj", "up_proj", "down_proj"]
    kinds: dict[str, dict[str, Any]] = {
        "plain": {"target_modules": linear},
        "dora": {"target_modules": [*linear, "embed_tokens"], "use_dora": True},
    }
    peaks = []
    for name, config in kinds.items():
        adapter = make_lora(tmp_path / name, base, dtype=torch.float16, std=0.02, **config)
        peaks.append(peak(base, adapter, tmp_path / f"{name}-out"))
    assert peaks[1] < peaks[0] + 24, peaks
    torch_alone = measure(sys.executable, "-c", "import torch")  # a build for CUDA takes far more
    assert peaks[1] < torch_alone + 180, (torch_alone, peaks)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no peak memory of children")
def test_files_side_by_side_keep_to_one_budget(tmp_path: Path) -> None:
    """The model has 200 MB in a dozen files."""
    sizes: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 8}
    base = make_base(tmp_path / "base", vocab_size=40_000, max_shard_size="1GB", **sizes)
    adapter = make_lora(
        tmp_path / "lora", base, dtype=torch.float16, std=0.02, target_modules=["up_proj"]
    )
    peaks = {}
    for streams, memory in ((1, "64MB"), (2, "64MB"), (8, "128MB")):
        options = ("--max_shard_size", "16MB", "--num_workers", str(streams))
        out = tmp_path / str(streams)
        peaks[streams] = peak(base, adapter, out, *options, "--max_memory", memory)
        assert len(list(out.glob("*.bin"))) > 8
    assert peaks[2] < peaks[1] + 24, peaks
    assert peaks[8] < peaks[1] + 100, peaks


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no peak memory of children")
@pytest.mark.parametrize("shards", ["16MB", "1GB"])
def test_base_behind_a_url_takes_little_more_memory_than_a_local_one(
    tmp_path: Path, shards: str
) -> None:
    """The model has 200 MB, of which the server keeps nothing in the process that merges."""
    sizes: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 8}
    base = make_base(
        tmp_path / "base",
        vocab_size=40_000,
        container=".safetensors",
        max_shard_size=shards,
        **sizes,
    )
    adapter = make_lora(
        tmp_path / "lora", base, dtype=torch.float16, std=0.02, target_modules=["up_proj"]
    )
    local = peak(base, adapter, tmp_path / "local")
    with serve_files(tmp_path) as web:
        there = peak(f"{web.url}/base", adapter, tmp_path / "out")
        assert web.nbytes > 200e6
    assert there < local + 64, (local, there)
