"""A merge on a Ray cluster that takes a while, in which machines can be killed."""

from __future__ import annotations

import itertools
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge import merge_lora
from merge.jobs.job_report import Report
from tests.kit.files import save_tensors, write_json
from tests.kit.llamas import make_base
from tests.kit.models import adapter_config, random_tensor
from tests.kit.ray_clusters import RayCluster
from tests.kit.stopped import contents

HIDDEN, LAYERS = 1024, 4
# How a merge is run on the cluster: four files, or one file in four parts.
SHARDS: dict[str, Any] = {"output_type": "huggingface", "max_shard_size": "30MB"}
PARTS: dict[str, Any] = {"output_type": "huggingface", "task_size": "30MB"}
# When a machine is killed: what has then appeared in the output folder, and how the merge is run.
POINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "the first file is begun": (r"\..*\.bin\.partial\.(\w+)-\w+", SHARDS),
    "the last file is begun": (r"\..*-0000(\d)-of-0000\1\.bin\.partial\.(\w+)-\w+", SHARDS),
    "a part is begun": (r"\..*part-0001.*\.partial\.(\w+)-\w+", PARTS),
    "parts are joined": (r"\..*\.bin\.partial\.(\w+)-\w+", PARTS),
}
# A file is whole in a run on a cluster; there are whole ones in a run of the local engine.
WHOLE_FILE = r"\..*\.bin\.partial"
LATER_FILE = r"\..*-00003-of-.*\.bin\.partial"


@dataclass(frozen=True)
class LongMerge:
    """A base of 100 MB and an adapter in ``folder``."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> LongMerge:
        """Write the models."""
        sizes = {"hidden_size": HIDDEN, "intermediate_size": 2816, "num_hidden_layers": LAYERS}
        make_base(folder / "base", **sizes)
        tensors = {}
        for layer, half in itertools.product(range(LAYERS), "AB"):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{half}.weight"
            shape = (8, HIDDEN) if half == "A" else (HIDDEN, 8)
            tensors[name] = random_tensor(*shape, seed=layer)
        lora = folder / "lora"
        lora.mkdir()
        save_tensors(lora / "adapter_model.bin", tensors)
        write_json(lora / "adapter_config.json", adapter_config(r=8, modules_to_save=None))
        return cls(folder)

    @property
    def out(self) -> Path:
        """Where results are written that are to be compared."""
        return self.folder / "out"

    def merge(self, **options: Any) -> Report:
        """Merge in this process."""
        output = options.pop("output_dir", self.out)
        return merge_lora(self.folder / "base", self.folder / "lora", output, **options)

    def words(self, **options: Any) -> list[str]:
        """The same as words of a command line."""
        given = {"base_model": self.folder / "base", "lora_model": self.folder / "lora"}
        given |= {"output_dir": self.out} | options
        named = [
            [f"--{name}", *([] if value is True else [value])] for name, value in given.items()
        ]
        return [str(word) for words in named for word in words]

    def require_whole(self, **options: Any) -> None:
        """Require the bytes of the local engine, and remove them."""
        settings = {name: value for name, value in options.items() if name != "task_size"}
        local = self.folder / str(settings.get("max_shard_size", "one")) / "out"
        if not local.exists():
            self.merge(output_dir=local, **settings)
        assert contents(self.out) == contents(local)
        shutil.rmtree(self.out)


class Watcher:
    """Calls ``act`` with a file in ``folder`` whose name is like ``pattern``, once there are
    ``count`` such files.
    """

    def __init__(
        self, folder: Path, pattern: str, act: Callable[[str], object], count: int = 1
    ) -> None:
        self._count = count
        self._folder = folder
        self._pattern = re.compile(pattern)
        self._act = act
        self._stop = threading.Event()
        self.found = ""
        self.attempts: set[str] = set()

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            names = [path.name for path in self._folder.glob(".*.partial*")]
            self.attempts.update(names)
            found = [name for name in names if self._pattern.fullmatch(name)]
            if len(found) >= self._count and not self.found:
                self.found = found[0]
                self._act(found[0])

    @property
    def was_begun_again(self) -> bool:
        """Whether another attempt was made at the file."""
        start = self.found.rpartition(".")[0]
        return sum(name.rpartition(".")[0] == start for name in self.attempts) > 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the folder in a thread meanwhile; something must have been found."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
        assert self.found, "no such file appeared"


def merge_and_kill(cluster: RayCluster, long: LongMerge, point: str) -> Watcher:
    """Merge while the machine is killed that writes a file; require the local engine's bytes."""
    pattern, options = POINTS[point]

    def kill(name: str) -> None:
        start = name.rpartition(".")[2].partition("-")[0]
        cluster.kill_machine(next(one for one in cluster.machines if one.startswith(start)))

    watcher = Watcher(long.out, pattern, kill)
    with watcher.watching():
        long.merge(**options, engine="ray", ray_address=cluster.address)
    long.require_whole(**options)
    return watcher
