"""What is to be measured: a model of some shape, a layout, and the command that merges it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure
from benchmarks.models import STEMS
from benchmarks.shapes import CHINESE_ALPACA_ROWS, CHINESE_LLAMA_ROWS, SHAPES, Shape

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    """One merge to be measured, by the options of the command line, and where it takes place."""

    shape_name: str
    num_layers: int | None
    container: str
    output_type: str
    safe_serialization: bool
    num_shards: int | None
    rank: int
    chain: bool
    cold: bool
    runs: int
    verify: bool
    keep_output: bool
    work_dir: Path
    script: Path
    rest: list[str]

    @property
    def shape(self) -> Shape:
        """The shape asked for, with fewer layers if that was asked for."""
        shape = SHAPES[self.shape_name]
        layers = self.num_layers or shape.num_hidden_layers
        return dataclasses.replace(shape, num_hidden_layers=layers)

    @property
    def name(self) -> str:
        """Shape and layers, for the names of folders."""
        return self.shape_name + (f"-{self.num_layers}layers" if self.num_layers else "")

    @property
    def target(self) -> str:
        """What is written, in a word or two."""
        if self.output_type == "pth":
            return f"pth in {self.num_shards} shards" if self.num_shards else "pth"
        return "safetensors" if self.safe_serialization else "bin"

    @property
    def base(self) -> Path:
        """Folder of the base model."""
        return self.folder(f"base-{self.name}-{self.container}")

    @property
    def rows(self) -> list[int]:
        """Vocabulary of each adapter, in the order of merging."""
        return [*([CHINESE_LLAMA_ROWS] if self.chain else []), CHINESE_ALPACA_ROWS]

    @property
    def adapters(self) -> list[Path]:
        """Folder of each adapter."""
        stem = f"adapter-{self.name}-r{self.rank}"
        return [self.folder(f"{stem}-{rows}") for rows in self.rows]

    @property
    def inputs(self) -> list[Path]:
        """Every file that the merge may read."""
        return measure.files_below([self.base, *self.adapters])

    @property
    def output_bytes(self) -> int:
        """Bytes of the merged tensors."""
        return self.shape.nbytes(CHINESE_ALPACA_ROWS)

    @property
    def command(self) -> list[str]:
        """The project's command, as a user types it."""
        words = [sys.executable, str(self.script), "--base_model", str(self.base)]
        words += ["--lora_model", ",".join(map(str, self.adapters))]
        words += ["--output_dir", str(self.folder("output")), "--output_type", self.output_type]
        words += ["--safe_serialization"] if self.safe_serialization else []
        words += ["--num_shards", str(self.num_shards)] if self.num_shards else []
        return [*words, *self.rest]

    def folder(self, name: str) -> Path:
        """A folder inside the work folder."""
        return self.work_dir / name


def make_models(job: Job) -> None:
    """Make what is not there yet, in processes that take their memory with them."""
    script = [sys.executable, str(ROOT / "benchmarks" / "models.py")]
    size = ["--shape", job.shape_name]
    size += ["--num_layers", str(job.num_layers)] if job.num_layers else []
    container = ["--container", job.container]
    subprocess.run([*script, "base", str(job.base), *size, *container], check=True)
    for rows, folder in zip(job.rows, job.adapters, strict=True):
        rank = job.rank
        # another scaling for the first of two, so that mixing them up shows
        alpha, seed = (4 * rank, 1) if rows == CHINESE_ALPACA_ROWS else (2 * rank, 2)
        lora = ["--rank", str(rank), "--alpha", str(alpha), "--rows", str(rows)]
        words = ["adapter", str(folder), *size, *lora, "--seed", str(seed)]
        subprocess.run([*script, *words], check=True)


def copy_sources(job: Job) -> list[Path]:
    """Files with exactly as many bytes as the output has: the base and a piece of the adapter."""
    suffix = STEMS[job.container][1]
    sources = sorted(job.base.glob(f"*.{suffix}"))
    missing = job.output_bytes - sum(path.stat().st_size for path in sources)
    if missing <= 0:
        return sources
    filler = job.folder(f"filler-{job.name}-{job.container}.bin")
    if not filler.exists() or filler.stat().st_size != missing:
        measure.copy_head(job.adapters[-1] / "adapter_model.bin", filler, missing)
    return [*sources, filler]
