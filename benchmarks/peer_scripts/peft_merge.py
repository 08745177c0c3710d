"""The usual way: transformers loads the base, PEFT merges, transformers saves.

Embeddings are resized without the default mean resizing, which alone takes a minute on a 1.1B
model and whose values the adapter replaces anyway.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM


def rows_of(folder: Path) -> int | None:
    """Vocabulary rows that an adapter brings, from its tokenizer."""
    from sentencepiece import SentencePieceProcessor

    path = folder / "tokenizer.model"
    if not path.exists():
        return None
    return int(SentencePieceProcessor(model_file=str(path)).get_piece_size())


def main() -> None:
    """Merge every adapter in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base_model", type=Path, required=True)
    parser.add_argument("--lora_model", type=Path, nargs="+", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--dtype", default="float16")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    model = AutoModelForCausalLM.from_pretrained(args.base_model, dtype=dtype)
    tokenizer = args.base_model / "tokenizer.model"
    for folder in args.lora_model:
        PeftConfig.from_pretrained(folder)
        rows = rows_of(folder)
        if rows is not None:
            tokenizer = folder / "tokenizer.model"
            model.resize_token_embeddings(rows, mean_resizing=False)
        model = PeftModel.from_pretrained(model, folder, torch_dtype=dtype).merge_and_unload()
    model.save_pretrained(args.output_dir)
    shutil.copy(tokenizer, args.output_dir)


if __name__ == "__main__":
    main()
