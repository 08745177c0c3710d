"""GGUF in two steps: this project's merge to Hugging Face, then llama.cpp's converter."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """The exit code of the step that failed, or 0. Only the GGUF file is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("script", "converter", "output_dir"):
        parser.add_argument(f"--{option}", type=Path, required=True)
    for option in ("base_model", "lora_model", "outtype"):
        parser.add_argument(f"--{option}", required=True)
    args = parser.parse_args()
    merged = args.output_dir / "merged"
    words = [sys.executable, str(args.script), "--base_model", args.base_model]
    words += ["--lora_model", args.lora_model, "--output_type", "huggingface"]
    words += ["--safe_serialization", "--output_dir", str(merged)]
    args.output_dir.mkdir(parents=True)
    if code := subprocess.run(words, check=False).returncode:
        return code
    gguf = args.output_dir / f"model-{args.outtype}.gguf"
    convert = [sys.executable, str(args.converter), str(merged)]
    convert += ["--outfile", str(gguf), "--outtype", args.outtype]
    if code := subprocess.run(convert, check=False).returncode:
        return code
    shutil.rmtree(merged)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
