"""What stands beside the weights of a merged model: configuration, index, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.reference import read_json
from benchmarks.weights import weight_files

KEPT = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "max_position_embeddings",
)
MODEL_ARGS = {  # what Meta's ModelArgs(**params) takes; any other key is a TypeError there
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "norm_eps"),
    *("ffn_dim_multiplier", "rope_theta", "use_scaled_rope", "max_batch_size", "max_seq_len"),
}
HUGGINGFACE_FILES = ("config.json", "*.safetensors", "*.bin", "*.index.json")


def tokenizer_faults(output: Path, tokenizer: Path, vocab_size: int) -> Iterator[str]:
    """The tokenizer comes byte for byte from where it was, with a piece for every row."""
    path = output / "tokenizer.model"
    if not path.exists():
        yield "tokenizer.model is missing"
        return
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(path)).get_piece_size()
    if pieces != vocab_size:
        yield f"tokenizer.model has {pieces} pieces for {vocab_size} rows"
    if path.read_bytes() != tokenizer.read_bytes():
        yield f"tokenizer.model differs from {tokenizer}"


def huggingface_faults(
    output: Path, base: dict[str, Any], vocab_size: int, dtypes: set[str]
) -> Iterator[str]:
    """``config.json`` and the index say what the files hold."""
    config = read_json(output / "config.json")
    dtype = config.get("torch_dtype", config.get("dtype"))
    wanted = {key: base[key] for key in KEPT if key in base} | {"vocab_size": vocab_size}
    for key, value in wanted.items():
        if config.get(key) != value:
            yield f"config.json: {key} is {config.get(key)}, expected {value}"
    if dtypes != {f"torch.{dtype}"}:
        yield f"config.json: dtype is {dtype}, the tensors are {sorted(dtypes)}"
    yield from _index_faults(output)


def _index_faults(output: Path) -> Iterator[str]:
    files = weight_files(output)
    indexes = sorted(output.glob("*.index.json"))
    lone = [file.path.name for file in files] in (["pytorch_model.bin"], ["model.safetensors"])
    if len(indexes) != 1 and not (lone and not indexes):
        yield f"{len(indexes)} index files for {len(files)} files of weights"
    for path in indexes:
        index = read_json(path)
        if index["weight_map"] != {name: f.path.name for f in files for name in f.tensors}:
            yield f"{path.name}: weight_map does not say where the tensors are"
        size = sum(get().nbytes for file in files for get in file.tensors.values())
        if index["metadata"]["total_size"] != size:
            yield f"{path.name}: total_size {index['metadata']['total_size']}, expected {size}"


def meta_faults(output: Path, base: dict[str, Any], vocab_size: int) -> Iterator[str]:
    """``params.json`` describes the model in Meta's terms, and no Hugging Face file stands by."""
    for pattern in HUGGINGFACE_FILES:
        for path in output.glob(pattern):
            yield f"{path.name} stands beside .pth files"
    files = [file.path.name for file in weight_files(output)]
    numbered = [f"consolidated.{number:02d}.pth" for number in range(len(files))]
    if files != numbered or len(list(output.glob("*.pth"))) != len(files):
        yield f"files of weights are {files}, expected {numbered} alone"
    params = read_json(output / "params.json")
    if strange := sorted(params.keys() - MODEL_ARGS):
        yield f"params.json: Meta's ModelArgs knows no {strange[0]}"
    wanted = {
        "dim": base["hidden_size"],
        "n_layers": base["num_hidden_layers"],
        "n_heads": base["num_attention_heads"],
        "norm_eps": base["rms_norm_eps"],
        "vocab_size": vocab_size,
    }
    for key, value in wanted.items():
        if params.get(key) != value:
            yield f"params.json: {key} is {params.get(key)}, expected {value}"
    yield from _derived_faults(params, base)


def _derived_faults(params: dict[str, Any], base: dict[str, Any]) -> Iterator[str]:
    """Head count of the keys and width of the MLP, as Meta's code computes them."""
    heads = params.get("n_kv_heads") or params["n_heads"]
    if heads != base.get("num_key_value_heads", base["num_attention_heads"]):
        yield f"params.json: n_kv_heads is {heads}"
    width = int(params.get("ffn_dim_multiplier", 1.0) * int(2 * (4 * params["dim"]) / 3))
    multiple = params["multiple_of"]
    width = multiple * ((width + multiple - 1) // multiple)
    if width != base["intermediate_size"]:
        yield f"params.json: an MLP {width} wide, expected {base['intermediate_size']}"
