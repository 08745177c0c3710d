"""A merge written in the most direct way, as a program with the real command's options.

It stands in for the real one, so that the harness has a right result, or a wrong one, to judge.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.kit.compare import merge_in_float64
from tests.kit.files import save_shards, write_json
from tests.kit.meta_models import save_meta, split, to_meta


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base_model", type=Path)
    parser.add_argument("--lora_model")
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--output_type")
    parser.add_argument("--safe_serialization", action="store_true")
    parser.add_argument("--num_shards", type=int, default=1)
    parser.add_argument("--forget", help="leave out this tensor")
    args = parser.parse_args()
    adapters = [Path(name) for name in args.lora_model.split(",")]
    config = json.loads((args.base_model / "config.json").read_text(encoding="utf-8"))
    merged = merge_in_float64(args.base_model, adapters).rounded()
    rows = len(merged["model.embed_tokens.weight"])
    merged.pop(args.forget, None)
    args.output_dir.mkdir()
    if args.output_type == "pth":
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        described = {
            "dim": config["hidden_size"],
            "n_layers": config["num_hidden_layers"],
            "n_heads": heads,
            "n_kv_heads": kv_heads,
            "norm_eps": config["rms_norm_eps"],
            "vocab_size": rows,
            "multiple_of": 16,
        }
        shards = split(to_meta(merged, heads, kv_heads), args.num_shards)
        save_meta(args.output_dir, shards, described, pieces=None)
    else:
        end = ".safetensors" if args.safe_serialization else ".bin"
        save_shards(merged, args.output_dir, end, max_shard_size=100_000)
        write_json(args.output_dir / "config.json", config | {"vocab_size": rows})
    shutil.copy(adapters[-1] / "tokenizer.model", args.output_dir)


if __name__ == "__main__":
    main()
