"""Time a merge on Ray clusters of one, two and more machines of a processor each.

Each machine is a Ray node whose processes are bound to a processor of its own. The models are made
when they are missing. Give a work directory on a disk that is not the limit, such as a RAM disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.job import Job, make_models

_OBJECT_STORE_BYTES = 80 << 20


@contextmanager
def cluster(machines: Sequence[int]) -> Iterator[None]:
    """Connect to a cluster with a machine on each of these processors."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    own = os.sched_getaffinity(0)
    small = {"object_store_memory": _OBJECT_STORE_BYTES}
    head = {"num_cpus": 0, "include_dashboard": False, **small}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for processor in machines:
            os.sched_setaffinity(0, {processor})
            made.add_node(num_cpus=1, **small)
        os.sched_setaffinity(0, own)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        made.shutdown()


def time_merge(job: Job, engine: dict[str, object]) -> float:
    """Merge once; return the seconds, planning on every machine included."""
    from merge import merge_lora

    out = job.folder("cluster-out")
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    merge_lora(job.base, job.adapters, out, output_type="huggingface", **engine)  # type: ignore[arg-type]
    seconds = time.perf_counter() - started
    shutil.rmtree(out)
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table: seconds of the first merge, in which processes start, and of the fastest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work_dir", type=Path, default=Path("benchmark-output"))
    parser.add_argument("--shape", default="1b")
    parser.add_argument("--num_layers", type=int, help="fewer than the shape has")
    parser.add_argument("--max_shard_size", default="300MB")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args(argv)
    job = Job(args.work_dir, args.shape, args.num_layers, output_type="huggingface")
    make_models(job)
    processors = sorted(os.sched_getaffinity(0))
    base = 0.0
    print("| machines | first merge (s) | fastest (s) | times as fast |\n| --: | --: | --: | --: |")
    for count in range(1, len(processors) + 1):
        with cluster(processors[:count]):
            options = {"engine": "ray", "max_shard_size": args.max_shard_size}
            seconds = [time_merge(job, options) for _ in range(args.runs)]
        base = base or min(seconds)
        print(f"| {count} | {seconds[0]:.1f} | {min(seconds):.1f} | {base / min(seconds):.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
