"""The Ray engine writes what the local one writes, on any number of machines."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from merge import apply_delta, convert_checkpoint, make_delta, merge_lora, merge_many
from merge.engines import ray_worker
from merge.errors import MergeError, NumberError, OutputError, UsageError
from merge.storage.lock import LOCK_NAME, FolderLock, end_run, name_run
from merge.version import REPORT_JSON
from tests.kit.files import tree, write_json
from tests.kit.models import LLAMA_ROWS, adapter_tensors, base_tensors, save_adapter, save_base
from tests.kit.ray_clusters import RayCluster, ray_cluster
from tests.kit.run import ROOT
from tests.kit.stopped import contents

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="clusters on loopback need POSIX")
# A path that means something in this process alone stands for a disk of its machine alone.
needs_own_paths = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="there are no paths of one process alone"
)

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


def test_deltas_and_conversions_run_there_too(
    connected: RayCluster, models: Path, tmp_path: Path
) -> None:
    for name in ("local", "ray"):
        tuned = {key: value * 1.5 for key, value in base_tensors().items()}
        if name == "local":
            save_base(tmp_path / "tuned", tuned)
            make_delta(models / "base", tmp_path / "tuned", tmp_path / "delta")
        out = tmp_path / name
        engine: dict[str, Any] = {"engine": name, "max_shard_size": "4KB"}
        convert_checkpoint(models / "base", out / "converted", dtype="float32", **engine)
        how = {"delta_embeddings": "difference", **engine}
        apply_delta(models / "base", tmp_path / "delta", out / "applied", **how)
    for name in ("converted", "applied"):
        assert contents(tmp_path / "ray" / name) == contents(tmp_path / "local" / name)


REPORTED = ("tensors", "changes", "heat_map", "ranks", "vocabulary", "most_changed", "findings")


@pytest.mark.parametrize("size", TASK_SIZES)
def test_reports_are_made_of_what_workers_measure(
    connected: RayCluster, models: Path, tmp_path: Path, size: str
) -> None:
    """All numbers are those of a local merge, and nothing is computed a second time for them."""
    save_base(tmp_path / "tuned", {key: value * 1.5 for key, value in base_tensors().items()})
    make_delta(models / "base", tmp_path / "tuned", tmp_path / "delta")
    engines: dict[str, dict[str, Any]] = {
        "local": {"report": True},
        "ray": {"report": True, "engine": "ray", "task_size": size},
    }
    reports = {}
    for name, how in engines.items():
        outs = [tmp_path / name / job for job in ("merged", "applied")]
        merge_lora(models / "base", models / "llama", outs[0], **how)
        how["delta_embeddings"] = "difference"
        apply_delta(models / "base", tmp_path / "delta", outs[1], **how)
        reports[name] = [json.loads((out / REPORT_JSON).read_bytes()) for out in outs]
    for local, ray in zip(reports["local"], reports["ray"], strict=True):
        assert ray["run"]["tensors_measured_again"] == 0
        assert {name: ray[name] for name in REPORTED} == {name: local[name] for name in REPORTED}


def save_infinite_base(folder: Path) -> Path:
    """A base with one element that is Inf."""
    tensors = base_tensors()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("inf")
    return save_base(folder, tensors)


def test_allowed_nonfinite_values_are_told(
    connected: RayCluster, models: Path, tmp_path: Path
) -> None:
    base = save_infinite_base(tmp_path / "base")
    inputs: dict[str, Any] = {"base_model": base, "lora_model": models / "llama"}
    texts, notes = [], []
    for engine in ("local", "ray"):
        out = {"output_dir": tmp_path / engine / "out", "engine": engine}
        with pytest.raises(NumberError) as caught:
            merge_lora(**inputs, **out)
        texts.append(str(caught.value))
        assert not (tmp_path / engine / "out").exists()
        report = merge_lora(**inputs, **out, allow_nonfinite=True)
        notes.append([line for line in report.summary().splitlines() if "NaN or Inf" in line])
    assert texts[0] == texts[1]
    assert notes[0] == notes[1]
    assert len(notes[0]) == 1


def test_refused_value_is_told_while_other_tasks_end(
    connected: RayCluster, models: Path, tmp_path: Path
) -> None:
    """Ray itself aborts a process that cancels a task just when it ends."""
    base = save_infinite_base(tmp_path / "base")
    for number in range(8):
        out = tmp_path / str(number) / "out"
        with pytest.raises(NumberError, match="NaN or Inf"):
            merge_lora(base, models / "llama", out, engine="ray", task_size=1 + number)
        assert not tree(out.parent)


def test_task_goes_on_as_long_as_the_lock_names_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_worker, "_WATCH_SECONDS", 0.0)
    monkeypatch.setattr(ray_worker, "describe_machine", lambda: "here")
    call: Any = SimpleNamespace(output=tmp_path)
    watch = ray_worker._EndWatch(ray_worker.Shipment(call, {}, "this run", "", ""))
    with FolderLock(tmp_path):
        name_run(tmp_path, "this run")
        watch(1)
        end_run(tmp_path)
        assert (tmp_path / LOCK_NAME).read_text() == str(os.getpid())
        with pytest.raises(OutputError, match="does not see the output folder"):
            watch(1)
    with pytest.raises(OutputError, match="does not see the output folder"):
        watch(1)
    (tmp_path / LOCK_NAME).mkdir()  # what cannot be read says nothing
    watch(1)


def test_progress_never_goes_back_or_beyond_the_end(
    connected: RayCluster, models: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    merge_lora(
        models / "base",
        models / "llama",
        tmp_path / "out",
        engine="ray",
        task_size="3KB",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {seen[-1][0]}


def refuse(kind: type[MergeError], models: Path, out: Path, **options: Any) -> MergeError:
    """Merge on Ray and be refused; nothing may have been written."""
    before = tree(out.parent)
    with pytest.raises(kind) as caught:
        merge_lora(options.pop("base", models / "base"), models / "llama", out, **options)
    assert tree(out.parent) == before
    return caught.value


@needs_own_paths
def test_machine_that_does_not_see_the_base_is_named(
    connected: RayCluster, models: Path, tmp_path: Path
) -> None:
    folder = os.open(models, os.O_RDONLY)
    try:
        base = Path(f"/proc/self/fd/{folder}/base")
        error = refuse(UsageError, models, tmp_path / "out", base=base, engine="ray")
    finally:
        os.close(folder)
    assert "does not see the inputs" in str(error)
    assert error.facts["file"] == str(base)
    assert any(machine in error.facts["found"] for machine in connected.machines)
    assert "storage that all machines mount" in error.facts["remedy"]


@needs_own_paths
def test_machine_that_does_not_see_the_output_is_named(
    connected: RayCluster, models: Path, tmp_path: Path
) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        out = Path(f"/proc/self/fd/{folder}/out")
        error = refuse(OutputError, models, out, engine="ray")
    finally:
        os.close(folder)
    assert "does not see the output folder" in str(error)
    assert any(machine in error.facts["found"] for machine in connected.machines)


def test_tasks_that_no_machine_has_room_for_are_refused(
    connected: RayCluster, models: Path, tmp_path: Path
) -> None:
    """Ray would wait for such a machine forever."""
    error = refuse(
        UsageError, models, tmp_path / "out", engine="ray", num_workers=64, max_memory="256MB"
    )
    assert "no machine of the cluster is large enough" in str(error)
    assert error.facts["expected"].startswith("64 CPUs and")


def test_address_where_nothing_answers_is_refused(models: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nobody listens there
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        error = refuse(UsageError, models, tmp_path / "out", engine="ray", ray_address=address)
    assert "no Ray cluster answers" in str(error)


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "10.0.0.1", "host:port", ""])
def test_addresses_that_are_none_are_refused(models: Path, tmp_path: Path, address: str) -> None:
    error = refuse(UsageError, models, tmp_path / "out", engine="ray", ray_address=address)
    assert "--ray_address is not the address" in str(error)


@pytest.mark.parametrize("options", [{"ray_address": "10.0.0.1:6379"}, {"task_size": "1GB"}])
def test_options_of_a_cluster_are_refused_without_one(
    models: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    error = refuse(UsageError, models, tmp_path / "out", **options)
    assert "means nothing for the local engine" in str(error)


def test_without_ray_the_extra_is_named(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    error = refuse(UsageError, models, tmp_path / "out", engine="ray")
    assert "chinese-llama-merge[ray]" in error.facts["remedy"]


def test_unpacked_inputs_are_removed_at_the_end(
    connected: RayCluster, models: Path, tmp_path: Path
) -> None:
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", models / "llama")
    for engine in ("local", "ray"):
        merge_lora(models / "base", packed, tmp_path / engine / "out", engine=engine)
    assert contents(tmp_path / "ray" / "out") == contents(tmp_path / "local" / "out")
    assert not list(tmp_path.rglob(".offload*"))


def test_machine_with_another_version_is_named(
    cluster: RayCluster, models: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(ROOT / "merge", other / "merge", ignore=shutil.ignore_patterns("__pycache__"))
    version = other / "merge" / "version.py"
    version.write_text(version.read_text().replace("__version__ = ", "__version__ = '9' + "))
    # Ray puts the driver's sys.path first, which here has the program itself.
    (other / "sitecustomize.py").write_text("import merge.version")
    machine = cluster.add_machine(PYTHONPATH=str(other))
    try:
        out, address = tmp_path / "to" / "out", cluster.address
        error = refuse(UsageError, models, out, engine="ray", ray_address=address)
    finally:
        cluster.kill_machine(machine)
    assert "another version of this program" in str(error)
    assert machine in error.facts["found"]


def test_machine_without_this_program_is_named(
    cluster: RayCluster, models: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import sys; sys.modules['merge'] = None")
    machine = cluster.add_machine(PYTHONPATH=str(other))
    try:
        out, address = tmp_path / "to" / "out", cluster.address
        error = refuse(UsageError, models, out, engine="ray", ray_address=address)
    finally:
        cluster.kill_machine(machine)
    assert "does not run on a machine" in str(error)
    assert machine in error.facts["found"]


def test_many_merges_run_there_one_after_the_other(
    connected: RayCluster, models: Path, tmp_path: Path
) -> None:
    for engine in ("local", "ray"):
        jobs = [
            {
                "lora_model": str(models / "llama"),
                "output_dir": str(tmp_path / engine / kind / "out"),
            }
            | {"engine": engine, **OUTPUTS[kind]}
            for kind in ("bin", "pth")
        ]
        file = tmp_path / f"{engine}.json"
        write_json(file, {"base_model": str(models / "base"), "jobs": jobs})
        assert not merge_many(file).failures
    for kind in ("bin", "pth"):
        merged = [contents(tmp_path / engine / kind / "out") for engine in ("local", "ray")]
        assert merged[0] == merged[1]


def test_planning_alone_needs_no_cluster(models: Path, tmp_path: Path) -> None:
    inputs = (models / "base", models / "llama")
    nowhere = "192.0.2.1:6379"
    report = merge_lora(*inputs, tmp_path / "out", engine="ray", ray_address=nowhere, dry_run=True)
    assert report.dry_run
    assert not (tmp_path / "out").exists()
