"""The manifest's digests, held against hashlib's and XXH3's of what other readers find."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from merge import merge_lora
from tests.kit.adapters import make_adapter
from tests.kit.content_digests import OF_BLOCKS, hash_blocks
from tests.kit.files import load_weights
from tests.kit.llamas import make_base

LAYOUTS: dict[str, dict[str, Any]] = {
    "pth": {"output_type": "pth"},
    "pth in 2": {"output_type": "pth", "num_shards": 2},
    "pth in 8": {"output_type": "pth", "num_shards": 8, "num_workers": 3},
    "bin": {"output_type": "huggingface"},
    "bin in many": {"output_type": "huggingface", "max_shard_size": "50KB"},
    "safetensors": {"output_type": "huggingface", "safe_serialization": True},
    "buffered": {"output_type": "huggingface", "io": "buffered"},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base of which the adapter leaves the norms and half the matrices as they are."""
    folder = tmp_path_factory.mktemp("inputs")
    base = make_base(folder / "base", num_key_value_heads=8)
    return base, make_adapter(folder / "adapter", base, rows=105, targets=["q_proj", "v_proj"])


@pytest.fixture(scope="module")
def merged(
    inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Any]]:
    """The same merge in every layout, with its manifest."""
    results = {}
    for number, (layout, options) in enumerate(LAYOUTS.items()):
        folder = tmp_path_factory.mktemp("merged") / str(number)
        merge_lora(*inputs, folder, **options)
        results[layout] = folder, read_manifest(folder)
    return results


def read_manifest(folder: Path) -> Any:
    return json.loads((folder / "merge_manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_file_has_its_size_and_sha256(
    merged: dict[str, tuple[Path, Any]], layout: str
) -> None:
    folder, manifest = merged[layout]
    present = {path.name: path for path in folder.iterdir() if path.name != "merge_manifest.json"}
    assert manifest["files"].keys() == present.keys()
    for name, path in present.items():
        data = path.read_bytes()
        assert manifest["files"][name]["bytes"] == len(data)
        assert manifest["files"][name]["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_content_digests_are_those_of_the_tensors_in_hugging_face_order(
    merged: dict[str, tuple[Path, Any]], layout: str
) -> None:
    weights = load_weights(merged["safetensors"][0])
    tensors = merged[layout][1]["tensors"]
    assert {name: entry[OF_BLOCKS] for name, entry in tensors.items()} == {
        name: hash_blocks(tensor) for name, tensor in weights.items()
    }
    for name, entry in tensors.items():
        assert (entry["dtype"], entry["shape"]) == ("float16", list(weights[name].shape))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_digests_of_the_base_are_those_of_what_was_read(
    inputs: tuple[Path, Path], merged: dict[str, tuple[Path, Any]], layout: str
) -> None:
    weights = load_weights(inputs[0])
    found = merged[layout][1]["inputs"]["base_model"]["tensors"]
    replaced = {"model.embed_tokens.weight", "lm_head.weight"}
    assert {name: entry[OF_BLOCKS] for name, entry in found.items()} == {
        name: None if name in replaced else hash_blocks(tensor) for name, tensor in weights.items()
    }
