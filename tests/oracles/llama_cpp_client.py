"""Runs llama.cpp on one GGUF file, away from torch; started by tests with a job on stdin.

Standard input: JSON ``{"model", "lines", "prompts", "more"}``; a file of a vocabulary alone has no
prompts; ``"lora"`` is an adapter on the model. Writes ``result.json`` into the folder named by
the argument, ``{"ids", "continuations"}``: the ids of every line, and for every prompt of ids the
``more`` likeliest that follow; and ``logits.npz``, for every prompt the logits after each of its
tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

GGML_TYPE_F32 = 0
CONTEXT = 256


def main() -> None:
    from llama_cpp import Llama

    job = json.load(sys.stdin)
    prompts = job["prompts"]
    llm = Llama(
        job["model"],
        lora_path=job.get("lora"),
        n_ctx=CONTEXT,
        n_threads=1,
        n_gpu_layers=0,
        logits_all=True,
        vocab_only=not prompts,
        type_k=GGML_TYPE_F32,  # float16 by default, which is a hundred times coarser
        type_v=GGML_TYPE_F32,
        verbose=False,
    )
    result = {
        "ids": [llm.tokenize(line.encode(), add_bos=False) for line in job["lines"]],
        "continuations": [continuation(llm, prompt, job["more"]) for prompt in prompts],
    }
    folder = Path(sys.argv[1])
    np.savez(folder / "logits.npz", *[logits(llm, prompt) for prompt in prompts])
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def logits(llm: Any, prompt: list[int]) -> np.ndarray[Any, Any]:
    """(tokens, vocabulary), float32."""
    llm.reset()
    llm.eval(prompt)
    return np.array(llm.scores[: len(prompt)])


def continuation(llm: Any, prompt: list[int], more: int) -> list[int]:
    """Evaluate one token at a time, as a chat does, and take the likeliest."""
    llm.reset()
    llm.eval(prompt)
    ids: list[int] = []
    while True:
        ids.append(int(np.argmax(llm.scores[llm.n_tokens - 1])))
        if len(ids) == more:
            return ids
        llm.eval(ids[-1:])


if __name__ == "__main__":
    main()
