"""What llama.cpp and transformers make of one model: ids, logits, continuations."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tests.kit.run import ROOT, quick_environment

_CLIENT = ROOT / "tests" / "oracles" / "llama_cpp_client.py"


def run_llama_cpp(
    model: Path,
    out: Path,
    prompts: Sequence[list[int]],
    more: int,
    lines: Sequence[str] = (),
    lora: Path | None = None,
) -> dict[str, Any]:
    """What llama.cpp says of a GGUF file; in a process of its own, as it may end that.

    ``ids`` are those of ``lines``; for every prompt of ids there are ``continuations`` of ``more``
    likeliest ids, and ``logits`` after each of its tokens. ``out`` is a folder for the answers,
    ``lora`` an adapter in GGUF form.
    """
    job = {"model": str(model), "lines": list(lines), "prompts": list(prompts), "more": more}
    done = subprocess.run(
        [sys.executable, str(_CLIENT), str(out)],
        input=json.dumps(job | ({"lora": str(lora)} if lora else {})),
        capture_output=True,
        encoding="utf-8",
        check=False,
        env=quick_environment(),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    with np.load(out / "logits.npz") as arrays:
        return result | {"logits": [torch.from_numpy(arrays[name]) for name in arrays]}


def run_transformers(model: Path, prompt: list[int], more: int) -> tuple[torch.Tensor, list[int]]:
    """Logits after every token of the prompt in float32, and the likeliest ids that follow."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        logits = loaded(input_ids=ids).logits[0]
        for _ in range(more):
            likeliest = loaded(input_ids=ids).logits[0, -1].argmax()
            ids = torch.cat([ids, likeliest.reshape(1, 1)], 1)
    return logits, ids[0, len(prompt) :].tolist()
