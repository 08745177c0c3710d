"""Check a merged model on disk: its files, its tensors, and the arithmetic. --help tells how."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from merge.commands.verify_merge import main

if __name__ == "__main__":
    sys.exit(main())
