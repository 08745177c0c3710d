"""Measure tokenizers on a text. See ``--help``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from merge.commands.compare_tokenizers import main

if __name__ == "__main__":
    raise SystemExit(main())
