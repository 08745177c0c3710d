"""Subtract a base from a model, to publish the difference. --help tells how."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from merge.commands.make_delta import main

if __name__ == "__main__":
    sys.exit(main())
