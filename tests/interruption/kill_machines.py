"""Merges on a Ray cluster of two machines, of which one is killed on the way; equal bytes.

    python -m tests.interruption.kill_machines --runs 10

Machines are killed when a file appears in the output folder, and another one takes their place.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

from tests.kit.ray_clusters import ray_cluster
from tests.kit.ray_merges import POINTS, LongMerge, merge_and_kill


def main() -> int:
    """Kill machines at every point in turn; print what was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    runs: int = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name, ray_cluster(1, 1) as cluster:
        long = LongMerge.make(Path(name))
        for number, point in zip(range(runs), itertools.cycle(POINTS), strict=False):
            watcher = merge_and_kill(cluster, long, point)
            again = "begun again" if watcher.was_begun_again else "whole by then"
            print(f"{number + 1}: killed when {point}: {watcher.found}, {again}", flush=True)
            cluster.add_machine()
    print(f"{runs} machines killed; all bytes equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
