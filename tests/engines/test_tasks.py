"""A plan in tasks: every tensor in one of them, and none larger than it may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merge import merge_lora
from merge.engines.tasks import count_part_bytes, divide, select
from merge.output.attempts import find_attempts, get_attempt_path, get_part_name, measure_attempts
from merge.output.preflight import OutputFolder
from merge.plan.placement import Plan
from tests.kit.models import LLAMA_ROWS, adapter_tensors, save_adapter, save_base


def plan(folder: Path, **options: Any) -> Plan:
    base = save_base(folder / "base")
    lora = folder / "llama"
    save_adapter(lora, adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    return merge_lora(base, lora, folder / "out", dry_run=True, **options).plan


@pytest.mark.parametrize("size", [1, 700, 3000, 10**9])
@pytest.mark.parametrize(
    "options",
    [{"output_type": "huggingface", "max_shard_size": "4KB"}, {"num_shards": 2}],
    ids=["bin", "pth"],
)
def test_every_tensor_is_in_one_task(tmp_path: Path, options: dict[str, Any], size: int) -> None:
    whole = plan(tmp_path, **options)
    tasks = [task for stream in whole.streams for task in divide(whole, stream, size)]
    assert sorted(n for task in tasks for n in task.tensors) == list(range(len(whole.placed)))
    for task in tasks:
        nbytes = select(whole, task).tensor_bytes
        assert nbytes <= size or task.part is None or len(task.tensors) == 1
    parts = sum(select(whole, task).tensor_bytes for task in tasks if task.part is not None)
    assert count_part_bytes(whole, size) == parts


def test_files_that_share_tensors_are_written_by_one_task(tmp_path: Path) -> None:
    whole = plan(tmp_path, num_shards=2)
    (stream,) = whole.streams
    (task,) = divide(whole, stream, 10**9)
    assert task.files == ("consolidated.00.pth", "consolidated.01.pth")


def test_attempts_are_found_and_count_as_leftovers(tmp_path: Path) -> None:
    part = get_part_name("model.gguf", 1)
    sizes = {"model.gguf": (3, 5), part: (7,), "model.gguf2": (9,)}
    for name, counts in sizes.items():
        for number, count in enumerate(counts):
            get_attempt_path(tmp_path, name, f"{number}-ab").write_bytes(bytes(count))
    found = {path.name for path in find_attempts(tmp_path, ["model.gguf"])}
    assert found == {
        ".model.gguf.partial.0-ab",
        ".model.gguf.partial.1-ab",
        ".model.gguf.part-0001.safetensors.partial.0-ab",
    }
    assert measure_attempts(tmp_path, ["model.gguf", part]) == {"model.gguf": 5, part: 7}
    assert found <= {path.name for path in OutputFolder(tmp_path).leftovers}
