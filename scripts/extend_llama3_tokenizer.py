"""Grow Llama 3's vocabulary by BPE training on Chinese text. See ``--help``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from merge.commands.extend_llama3_tokenizer import main

if __name__ == "__main__":
    raise SystemExit(main())
