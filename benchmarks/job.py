"""What is to be measured: a model of some shape, an adapter, a layout, the command for it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure
from benchmarks.kinds import STEMS, AdapterKind, BaseKind
from benchmarks.shapes import CHINESE_ALPACA_ROWS, CHINESE_LLAMA_ROWS, SHAPES, Shape

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "merge_llama_with_chinese_lora.py"
OUTPUT_TYPES = ("pth", "huggingface", "gguf")
PLAIN_BASE, PLAIN = BaseKind(), AdapterKind()


@dataclass(frozen=True)
class Job:
    """One merge: what goes in, what comes out, and where it takes place.

    ``chain`` merges two adapters, of 49953 and 49954 rows. ``rest`` is handed on to the command.
    """

    work_dir: Path
    shape_name: str = "tiny"
    num_layers: int | None = None
    base_kind: BaseKind = PLAIN_BASE
    adapter_kind: AdapterKind = PLAIN
    chain: bool = False
    output_type: str = "pth"
    safe_serialization: bool = False
    num_shards: int | None = None
    outtype: str | None = None
    script: Path = SCRIPT
    rest: tuple[str, ...] = ()

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
        if self.output_type == "gguf":
            return f"gguf {self.outtype or 'f16'}"
        if self.output_type == "pth":
            return f"pth in {self.num_shards} shards" if self.num_shards else "pth"
        return "safetensors" if self.safe_serialization else "bin"

    @property
    def base(self) -> Path:
        """Folder of the base model."""
        kind = self.base_kind
        dtype = "" if kind.dtype == "float16" else f"-{kind.dtype}"
        sparse = "-sparse" if kind.sparse else ""
        return self.folder(f"base-{self.name}-{kind.container}{dtype}{sparse}")

    @property
    def adapter_kinds(self) -> list[AdapterKind]:
        """The adapters, in the order of merging.

        The first of two has another scaling, so that mixing them up shows.
        """
        kind = self.adapter_kind
        last = dataclasses.replace(kind, rows=CHINESE_ALPACA_ROWS, alpha=4 * kind.rank)
        if not self.chain:
            return [last]
        return [dataclasses.replace(kind, rows=CHINESE_LLAMA_ROWS, alpha=2 * kind.rank), last]

    @property
    def adapters(self) -> list[Path]:
        """Folder of each adapter."""
        return [
            self.folder(f"adapter-{self.name}-r{kind.rank}{kind.suffix}-{kind.rows}")
            for kind in self.adapter_kinds
        ]

    @property
    def rows(self) -> list[int]:
        """Vocabulary of the base and after each adapter."""
        grown = [kind.rows for kind in self.adapter_kinds if kind.embeddings]
        return [self.shape.vocab_size, *grown]

    @property
    def inputs(self) -> list[Path]:
        """Every file that the merge may read."""
        return measure.files_below([self.base, *self.adapters])

    @property
    def output_bytes(self) -> int:
        """Bytes of the merged tensors, at two bytes an element."""
        return self.shape.nbytes(self.rows[-1])

    @property
    def command(self) -> list[str]:
        """The project's command, as a user types it."""
        words = [sys.executable, str(self.script), "--base_model", str(self.base)]
        words += ["--lora_model", ",".join(map(str, self.adapters))]
        words += ["--output_dir", str(self.output), "--output_type", self.output_type]
        words += ["--safe_serialization"] if self.safe_serialization else []
        words += ["--num_shards", str(self.num_shards)] if self.num_shards else []
        words += ["--outtype", self.outtype] if self.outtype else []
        if self.base_kind.sparse:  # whose norms are zeros, as no model's are
            words.append("--allow_unknown_combination")
        return [*words, *self.rest]

    @property
    def output(self) -> Path:
        """Where the merged model goes."""
        return self.folder("output")

    def folder(self, name: str) -> Path:
        """A folder inside the work folder."""
        return self.work_dir / name

    def described(self) -> str:
        """What goes in and what comes out, in one line."""
        shape, kind = self.shape, self.adapter_kind
        grown = " -> ".join(map(str, self.rows))
        layers = f"{shape.num_hidden_layers} layers"
        if self.num_layers:
            layers = f"{self.num_layers} of {SHAPES[self.shape_name].num_hidden_layers} layers"
        lora = f"{'DoRA' if kind.dora else 'LoRA'} rank {kind.rank} on {', '.join(kind.targets)}"
        if kind.targets == PLAIN.targets:
            lora = f"{'DoRA' if kind.dora else 'LoRA'} rank {kind.rank} on all linear layers"
        base = f"{self.base_kind.container} {self.base_kind.dtype}"
        base += ", sparse files" if self.base_kind.sparse else ""
        chain = ", two adapters" if self.chain else ""
        return (
            f"{self.shape_name}: hidden {shape.hidden_size}, {layers}, rows {grown}; "
            f"base {base}; {lora} in {kind.dtype}{chain}; to {self.target}"
        )


def program(name: str) -> list[str]:
    """The command line that runs a module of this package, from the folder above it."""
    return [sys.executable, "-m", f"benchmarks.{name}"]


def make_models(job: Job) -> None:
    """Make what is not there yet, in processes that take their memory with them."""
    script = program("models")
    size = ["--shape", job.shape_name]
    size += ["--num_layers", str(job.num_layers)] if job.num_layers else []
    base = ["--container", job.base_kind.container, "--dtype", job.base_kind.dtype]
    base += ["--sparse"] if job.base_kind.sparse else []
    subprocess.run([*script, "base", str(job.base), *size, *base], check=True)
    for kind, folder in zip(job.adapter_kinds, job.adapters, strict=True):
        seed = 1 if kind.rows == CHINESE_ALPACA_ROWS else 2
        lora = ["--rank", str(kind.rank), "--alpha", str(kind.alpha), "--rows", str(kind.rows)]
        lora += ["--dtype", kind.dtype, "--targets", *kind.targets, "--seed", str(seed)]
        lora += ["--dora"] if kind.dora else []
        lora += [] if kind.embeddings else ["--no_embeddings"]
        subprocess.run([*script, "adapter", str(folder), *size, *lora], check=True)


def copy_sources(job: Job) -> list[Path]:
    """Files with exactly as many bytes as the output has: the base and a piece of the adapter."""
    container = job.base_kind.container
    sources = sorted(job.base.glob(f"*.{STEMS[container][1]}"))
    missing = job.output_bytes - sum(path.stat().st_size for path in sources)
    if missing <= 0:
        return sources
    filler = job.folder(f"filler-{job.name}-{container}.bin")
    if not filler.exists() or filler.stat().st_size != missing:
        measure.copy_head(job.adapters[-1] / "adapter_model.bin", filler, missing)
    return [*sources, filler]
