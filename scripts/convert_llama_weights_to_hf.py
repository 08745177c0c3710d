"""Convert Meta's download of a LLaMA to Hugging Face's layout. --help tells how."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from merge.commands.convert_llama_weights_to_hf import main

if __name__ == "__main__":
    sys.exit(main())
