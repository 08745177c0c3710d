"""Say in advance what llama.cpp would complain of in a model. --help tells how."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from merge.commands.check_llama_cpp import main

if __name__ == "__main__":
    sys.exit(main())
