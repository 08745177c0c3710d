"""A Ray cluster of several machines on loopback, in a process of its own, that ends with the test.

Run as a program, it reads one command a line and answers each with one line; when its input ends,
for whatever reason, it takes the cluster down.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.kit.run import ROOT, quick_environment

# Dead machines are noticed within a second instead of a quarter of a minute.
_QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 250,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
_MACHINE: dict[str, Any] = {"object_store_memory": 80 << 20}
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # other processes may take the memory
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
}


class RayCluster:
    """The test's side: ``address`` is what ``--ray_address`` takes, ``machines`` the nodes' ids."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.machines: list[str] = []
        self.address = self._ask("start")

    def add_machine(self, cpus: int = 1, **environment: str) -> str:
        """Add a machine with variables of its own; return its id."""
        self.machines.append(self._ask("add", cpus, environment))
        return self.machines[-1]

    def kill_machine(self, machine: str) -> None:
        """Kill a machine's Ray as SIGKILL does; its processes notice a little later."""
        self._ask("kill", machine)
        self.machines.remove(machine)

    def _ask(self, *command: object) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("answer: "):  # Ray may print too
                return line.removeprefix("answer: ").strip()
        raise AssertionError("the cluster's process has ended")


@contextmanager
def ray_cluster(*machines: int) -> Iterator[RayCluster]:
    """A cluster whose driver's machine runs no tasks, with a machine for each number of CPUs."""
    with (
        # Paths of sockets have to be short.
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as place,
        subprocess.Popen(
            [sys.executable, "-m", "tests.kit.ray_clusters"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=quick_environment(PYTHONPATH=str(ROOT), RAY_TMPDIR=place, **_ENVIRONMENT),
            encoding="utf-8",
            start_new_session=True,
        ) as process,
    ):
        try:
            cluster = RayCluster(process)
            for cpus in machines:
                cluster.add_machine(cpus)
            yield cluster
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


def _serve() -> None:
    """Do what standard input says, until it ends."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, **_MACHINE}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": _QUICK})
    nodes: dict[str, Any] = {}
    try:
        for line in sys.stdin:
            name, *values = json.loads(line)
            answer = cluster.address
            if name == "add":
                cpus, environment = values
                variables = {"env_vars": environment} if environment else {}
                node = cluster.add_node(num_cpus=cpus, **variables, **_MACHINE)
                answer = str(node.node_id)
                nodes[answer] = node
            elif name == "kill":
                cluster.remove_node(nodes.pop(values[0]), allow_graceful=False)
            print(f"answer: {answer}", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    _serve()
