"""A file of tiny merges over one base, and what each should have become."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from merge import merge_lora
from merge.jobs.many_results import JobResult
from tests.kit.models import LLAMA_ROWS, adapter_tensors, base_tensors, save_adapter, save_base
from tests.kit.stopped import contents

Job = dict[str, Any]


@dataclass(frozen=True)
class Many:
    """A base, adapters ``lora1`` to ``lora3``, and files of jobs about them."""

    folder: Path

    def lora(self, number: int) -> str:
        return str(self.folder / f"lora{number}")

    def out(self, name: str) -> Path:
        return self.folder / "out" / name

    def job(self, number: int, name: str, **options: Any) -> Job:
        return {"lora_model": self.lora(number), "output_dir": str(self.out(name)), **options}

    def write(self, *jobs: object, **defaults: Any) -> Path:
        """Write a file of jobs, whose base is this one unless ``defaults`` name another."""
        path = self.folder / "jobs.yaml"
        document = {"base_model": str(self.folder / "base"), **defaults, "jobs": list(jobs)}
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return path

    def spoil(self, number: int) -> None:
        """Give an adapter a NaN, which headers do not show."""
        tensors = adapter_tensors(LLAMA_ROWS)
        name = next(name for name in tensors if "lora_B" in name)
        tensors[name][0, 0] = torch.nan
        save_adapter(Path(self.lora(number)), tensors, pieces=LLAMA_ROWS)

    def spoil_base(self) -> None:
        """Give the base a NaN."""
        tensors = base_tensors()
        tensors["model.layers.1.input_layernorm.weight"][3] = torch.nan
        save_base(self.folder / "base", tensors)

    def single(self, job: Job, **defaults: Any) -> dict[str, bytes]:
        """The files of the merge of one job by itself, in a folder of the same name."""
        keywords = {"base_model": str(self.folder / "base"), **defaults, **job}
        output = self.folder / "single" / Path(job["output_dir"]).name
        merge_lora(**{**keywords, "output_dir": output, "overwrite": True})
        return contents(output)


def make_many(folder: Path) -> Many:
    """Write the base and the adapters."""
    made = Many(folder)
    save_base(folder / "base")
    for number in (1, 2, 3):
        tensors = adapter_tensors(LLAMA_ROWS, seed=500 + 100 * number)
        save_adapter(Path(made.lora(number)), tensors, pieces=LLAMA_ROWS)
    return made


def states(results: Iterable[JobResult]) -> list[str]:
    """How jobs ended."""
    return [one.state for one in results]
