"""Machines of a Ray cluster that die, and drivers: what they cost, and how a run goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest

from merge.output.journal import JOURNAL_NAME
from tests.kit.ray_clusters import RayCluster, ray_cluster
from tests.kit.ray_merges import LATER_FILE, SHARDS, WHOLE_FILE, LongMerge, Watcher, merge_and_kill
from tests.kit.run import MERGE, command, quick_environment

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="clusters on loopback need POSIX")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(1, 1) as made:
        yield made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> LongMerge:
    return LongMerge.make(tmp_path_factory.mktemp("long"))


@pytest.fixture
def long(models: LongMerge) -> Iterator[LongMerge]:
    yield models
    shutil.rmtree(models.out, ignore_errors=True)


# The others are for make kill-machines.
IN_SHORT = ["the last file is begun", "parts are joined"]


@pytest.mark.parametrize("point", IN_SHORT)
def test_machine_that_dies_costs_its_tasks_alone(
    cluster: RayCluster, long: LongMerge, point: str
) -> None:
    try:
        merge_and_kill(cluster, long, point)
    finally:
        cluster.add_machine()


def stop(
    long: LongMerge, number: int, pattern: str, count: int, **options: object
) -> tuple[int, str]:
    """Merge with a command, and send it a signal when so many such files are there; return its
    code and errors.
    """
    with subprocess.Popen(
        command(*long.words(**options), script=MERGE),
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=quick_environment(),
    ) as process:
        watcher = Watcher(long.out, pattern, lambda _: os.kill(process.pid, number), count)
        with watcher.watching():
            _, told = process.communicate(timeout=120)
    return process.returncode, told


@pytest.mark.parametrize(("first", "second"), [("ray", "local"), ("local", "ray")])
def test_run_whose_driver_died_goes_on_with_either_engine(
    cluster: RayCluster, long: LongMerge, first: str, second: str
) -> None:
    address = {"ray_address": cluster.address}
    engines = {"local": {"num_workers": 1}, "ray": {"engine": "ray", **address}}
    # The driver notes a file after it has given it this name, and before it takes the next one.
    pattern, count = {"local": (LATER_FILE, 1), "ray": (WHOLE_FILE, 2)}[first]
    code, _ = stop(long, signal.SIGKILL, pattern, count, **SHARDS, **engines[first])
    assert code == -signal.SIGKILL
    assert (long.out / JOURNAL_NAME).exists()
    report = long.merge(**SHARDS, **engines[second], resume=True)
    assert any(note.startswith("resumed after") for note in report.notes)
    long.require_whole(**SHARDS)


def test_ctrl_c_keeps_what_is_whole(cluster: RayCluster, long: LongMerge) -> None:
    on_cluster = {"engine": "ray", "ray_address": cluster.address}
    code, told = stop(long, signal.SIGINT, WHOLE_FILE, 2, **SHARDS, **on_cluster)
    assert code == 130
    assert "what was written is kept" in told
    left = {path.name for path in long.out.iterdir()}
    assert not any(".partial." in name for name in left), left
    report = long.merge(**SHARDS, **on_cluster, resume=True)
    assert any(note.startswith("resumed after") for note in report.notes)
    long.require_whole(**SHARDS)
