"""Merge Chinese LoRA adapters into LLaMA and write Hugging Face shards. --help tells how."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from merge.commands.merge_lora import main_to_hf

if __name__ == "__main__":
    sys.exit(main_to_hf())
