"""What merges by PEFT cost at the size of a LLaMA: peak memory and time of whole processes.

The base is sparse (files of holes, which read as zeros): values change neither. An adapter is
PEFT's own on every linear layer, saved from a model without weights.

    python -m benchmarks.methods FOLDER --shape 7b --num_layers 8 VERA LOHA OFT
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import process
from benchmarks.kinds import BaseKind
from benchmarks.models import config, make_base
from benchmarks.shapes import LINEAR, SHAPES, Shape

# Usual values of trainings; what is not here is PEFT's default.
SETTINGS: dict[str, dict[str, Any]] = {"VERA": {"r": 256}, "LOHA": {"r": 16}, "OFT": {}}
# A norm of zeros looks like a delta's, therefore the last option.
_MERGE = (
    "import merge, sys; merge.merge_lora(*sys.argv[1:4], output_type='huggingface', "
    "allow_unknown_combination=True)"
)


def make_adapter(folder: Path, shape: Shape, method: str) -> None:
    """Let PEFT make an adapter with its own start, which may be no change, and save it."""
    import torch
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS

    from merge.peft_layers.skeleton import build_skeleton

    torch.manual_seed(0)
    settings = {"target_modules": list(LINEAR), "task_type": "CAUSAL_LM"}
    kind: Any = CONFIGS[method]
    model: Any = build_skeleton(config(shape), shape.vocab_size)
    adapted = get_peft_model(model, kind(**settings | SETTINGS.get(method, {})))
    adapted.save_pretrained(folder, save_embedding_layers=False)


def measure(base: Path, adapter: Path, out: Path) -> str:
    """Merge in a process of its own; its time and memory as a row of a table."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", _MERGE, base, adapter, out]) as child:
        code, cpu, peak, _ = process.wait(child)
    seconds = time.monotonic() - started
    assert code == 0, f"the merge ended with {code}"
    size = sum(path.stat().st_size for path in adapter.glob("*.safetensors"))
    shutil.rmtree(out)
    return f"| {size / 2**20:.0f} | {(peak or 0) / 2**20:.0f} | {seconds:.0f} | {cpu or 0:.0f} |"


def main() -> int:
    """Measure the methods that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--num_layers", type=int)
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    shape = dataclasses.replace(shape, num_hidden_layers=args.num_layers or shape.num_hidden_layers)
    root = args.folder / f"{args.shape}-{shape.num_hidden_layers}"
    root.mkdir(parents=True, exist_ok=True)
    base = make_base(root / "base", shape, BaseKind("safetensors", sparse=True))
    print("| method | layers | adapter MiB | peak MiB | total s | CPU s |", flush=True)
    for method in args.methods:
        adapter = root / method
        if not adapter.exists():
            # In a process of its own: what PEFT makes here must not count as the merge's.
            if (pid := os.fork()) == 0:
                make_adapter(adapter, shape, method)
                os._exit(0)
            os.waitpid(pid, 0)
        row = measure(base, adapter, root / "out")
        print(f"| {method} | {shape.num_hidden_layers} {row}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
