"""Let llama.cpp continue a line, in a process of its own: away from torch's threads.

Arguments: a GGUF file and the line. Prints the continuation.
"""

from __future__ import annotations

import sys
from typing import Any


def main() -> None:
    model, prompt = sys.argv[1:]
    from llama_cpp import Llama

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    llm = Llama(model, n_ctx=128, n_threads=1, n_gpu_layers=0, verbose=False)
    answer: Any = llm(prompt, max_tokens=24, temperature=0.0)
    print(answer["choices"][0]["text"])


if __name__ == "__main__":
    main()
