"""Train the Chinese half of a vocabulary. See ``--help``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from merge.commands.train_chinese_tokenizer import main

if __name__ == "__main__":
    raise SystemExit(main())
