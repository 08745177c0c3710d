"""Random LLaMA checkpoints and LoRA adapters of real sizes, the same bytes on every run.

Values depend on the seed and the tensor's name alone. One shard at a time is held in memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.kinds import DTYPES, STEMS, AdapterKind, BaseKind
from benchmarks.shapes import CHINESE_ALPACA_ROWS, LINEAR, SHAPES, Shape, Shapes
from benchmarks.tokenizers import write_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 2 << 30  # a shard is held in memory while it is written
SPARSE_SHARD_BYTES = 10**10  # as transformers cut models when the LLaMAs came out
SAFETENSORS_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
STD = 0.02
STAMP = "benchmark_model.json"
FILL_ROWS = 1024


def make_base(
    folder: Path,
    shape: Shape,
    kind: BaseKind | None = None,
    shards: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a base model in Hugging Face layout; nothing is done when it is there already.

    ``shards`` defaults to what keeps a shard under 2 GiB (sparse: 10 GB), and to two at least.
    """
    kind = kind or BaseKind()
    container = kind.container
    limit = SPARSE_SHARD_BYTES if kind.sparse else SHARD_BYTES
    count = shards or max(2, ceil(shape.nbytes() / limit))
    stamp = {"shape": dataclasses.asdict(shape), "shards": count} | kind.stamp()
    if not _stamped(folder, stamp | {"seed": seed}):
        stem, end = STEMS[container]
        groups = split(shape.tensors(), count)
        names = [f"{stem}-{i:05d}-of-{count:05d}.{end}" for i in range(1, count + 1)]
        names = names if count > 1 else [f"{stem}.{end}"]
        for name, group in zip(names, groups, strict=True):
            if kind.sparse:
                save_sparse(folder / name, group, kind.dtype)
                continue
            tensors = {key: values(key, size, seed, kind.dtype) for key, size in group.items()}
            save(folder / name, tensors)
        weight_map = {key: n for n, group in zip(names, groups, strict=True) for key in group}
        index = {"metadata": {"total_size": shape.nbytes()}, "weight_map": weight_map}
        if count > 1:
            _write_json(folder / f"{stem}.{end}.index.json", index)
        _write_json(folder / "config.json", config(shape, kind.dtype))
        _write_json(folder / "generation_config.json", GENERATION_CONFIG)
        _write_json(folder / STAMP, stamp | {"seed": seed})
    write_tokenizer(folder, shape.vocab_size)
    return folder


def make_adapter(
    folder: Path, shape: Shape, kind: AdapterKind | None = None, seed: int = 1
) -> Path:
    """Write an adapter in the key layout of PEFT 0.2, as the published Chinese ones have it."""
    kind = kind or AdapterKind()
    stamp = {"shape": dataclasses.asdict(shape), **kind.stamp(), "seed": seed}
    if not _stamped(folder, stamp):
        tensors = kind.tensors(shape).items()
        save(
            folder / f"adapter_model.{kind.container}",
            {key: values(key, size, seed, kind.dtype) for key, size in tensors},
        )
        _write_json(folder / "adapter_config.json", kind.config())
        _write_json(folder / STAMP, stamp)
    if kind.embeddings:
        write_tokenizer(folder, kind.rows)
    return folder


def values(name: str, size: tuple[int, ...], seed: int, dtype: str = "float16") -> Tensor:
    """Normal random values that depend on seed and name alone.

    Their deviation is 0.02; norms and DoRA's magnitudes lie around 1.
    """
    import torch

    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    mean = 1.0 if name.endswith(("norm.weight", "lora_magnitude_vector")) else 0.0
    tensor = torch.empty(size, dtype=getattr(torch, dtype))
    for start in range(0, len(tensor), FILL_ROWS):
        block = tensor[start : start + FILL_ROWS]
        block.copy_(torch.empty(block.shape).normal_(mean, STD, generator=generator))
    return tensor


def split(tensors: Shapes, count: int) -> list[dict[str, tuple[int, ...]]]:
    """Cut the tensors, in order, into ``count`` groups of about equal size, none of them empty."""
    total = sum(prod(size) for size in tensors.values())
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    seen = 0
    for position, (key, size) in enumerate(tensors.items()):
        missing = count - len(groups)
        full = seen * count >= total * len(groups) or len(tensors) - position <= missing
        if groups[-1] and missing and full:
            groups.append({})
        groups[-1][key] = size
        seen += prod(size)
    return groups


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a torch zip archive or a safetensors file, by its ending."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(tensors, path, metadata={"format": "pt"})
    else:
        import torch

        torch.save(tensors, path)


def save_sparse(path: Path, tensors: Shapes, dtype: str) -> None:
    """The same file with a hole in place of every tensor, read as zeros; it takes no room."""
    import torch

    unfilled = {
        name: torch.empty(size, dtype=getattr(torch, dtype)) for name, size in tensors.items()
    }
    if path.suffix != ".safetensors":
        with torch.serialization.skip_data():
            torch.save(unfilled, path)
        return
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in unfilled.items():
        start, end = end, end + tensor.nbytes
        entry = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(tensor.shape)}
        entries[name] = entry | {"data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(file.tell() + end)


GENERATION_CONFIG = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}


def config(shape: Shape, dtype: str = "float16") -> dict[str, Any]:
    """``config.json`` as transformers 4.28 wrote it for LLaMA, with the head count of Llama 2."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": STD,
        "model_type": "llama",
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "transformers_version": "4.28.1",
        "use_cache": True,
        **dataclasses.asdict(shape),
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _stamped(folder: Path, stamp: dict[str, Any]) -> bool:
    """Whether ``folder`` holds exactly this model, complete; one that differs is cleared away.

    Raises ``FileExistsError`` for a folder that holds anything and was not made here.
    """
    path = folder / STAMP
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) == stamp:
        return True
    if not path.exists() and folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds files that are not a benchmark's; give another one")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(path, {"unfinished": True})
    for pattern in ("*model*.bin", "*model*.safetensors", "*model*.index.json"):
        for old in folder.glob(pattern):
            old.unlink()
    return False


def main(argv: list[str] | None = None) -> int:
    """Make one base or one adapter; the measuring process stays free of torch this way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("base", "adapter"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--num_layers", type=int, help="keep only this many layers of the shape")
    parser.add_argument("--container", choices=STEMS, default="bin")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--seed", type=int)
    base = parser.add_argument_group("base")
    base.add_argument("--shards", type=int)
    base.add_argument("--sparse", action="store_true", help="holes in place of values")
    adapter = parser.add_argument_group("adapter")
    adapter.add_argument("--rank", type=int, default=8)
    adapter.add_argument("--alpha", type=int, default=32)
    adapter.add_argument("--rows", type=int, default=CHINESE_ALPACA_ROWS)
    adapter.add_argument("--targets", nargs="+", choices=LINEAR, default=list(LINEAR))
    adapter.add_argument("--no_embeddings", dest="embeddings", action="store_false")
    adapter.add_argument("--dora", action="store_true")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch is imported only if there is work
    shape = SHAPES[args.shape]
    if args.num_layers:
        shape = dataclasses.replace(shape, num_hidden_layers=args.num_layers)
    if args.kind == "base":
        base_kind = BaseKind(args.container, args.dtype, args.sparse)
        make_base(args.folder, shape, base_kind, args.shards, args.seed or 0)
    else:
        given = {**vars(args), "targets": tuple(args.targets)}
        fields = {field.name: given[field.name] for field in dataclasses.fields(AdapterKind)}
        seed = 1 if args.seed is None else args.seed
        make_adapter(args.folder, shape, AdapterKind(**fields), seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
