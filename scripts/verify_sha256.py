"""Say what files are known as by their published checksums. --help tells how."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from merge.commands.verify_sha256 import main

if __name__ == "__main__":
    sys.exit(main())
