"""Every output form against float64: one rounding of a float32 sum, at least 99.9 % identical.

The reference and its bound, Meta's names, the order of rotary rows and the shards are written in
the tests from the published rules; nothing of the project's own code is used but the merge itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import merge_lora
from merge.errors import UsageError
from tests.kit.adapters import make_adapter, to_old_layout
from tests.kit.compare import (
    Float64Merge,
    is_rounded_once,
    merge_in_float64,
    require_one_rounding,
    ulps,
)
from tests.kit.files import Tensors, load_weights
from tests.kit.llamas import make_base
from tests.kit.meta_models import to_meta

ROWS = 152  # leaves a remainder for 2, 4 and 8 shards together with 151
HEADS = 8
Chain = tuple[Path, list[Path], Float64Merge, int]


def joined(shards: list[Tensors]) -> Tensors:
    """Join shards as model-parallel LLaMA holds them: rows, or columns for wo, w2, embeddings."""
    whole: Tensors = {}
    for name in shards[0]:
        parts = [shard[name] for shard in shards]
        if parts[0].dim() == 1:
            assert all(torch.equal(part, parts[0]) for part in parts), name
            whole[name] = parts[0]
        else:
            by_columns = any(mark in name for mark in ("tok_embeddings", ".wo.", ".w2."))
            whole[name] = torch.cat(parts, dim=1 if by_columns else 0)
    return whole


@pytest.fixture(scope="module", params=[8, 4], ids=["multi-head", "grouped-query"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A base, two adapters of the published layout, the float64 result, the number of key heads."""
    folder = tmp_path_factory.mktemp("chain")
    base = make_base(folder / "base", num_key_value_heads=request.param)
    adapters = [
        to_old_layout(make_adapter(folder / "llama", base, rows=ROWS - 1, r=8)),
        to_old_layout(make_adapter(folder / "alpaca", base, rows=ROWS, seed=2, r=16)),
    ]
    return base, adapters, merge_in_float64(base, adapters), request.param


@pytest.mark.parametrize("safe", [False, True], ids=["bin", "safetensors"])
def test_huggingface_output(tmp_path: Path, chain: Chain, safe: bool) -> None:
    base, adapters, expected, _ = chain
    settings = {"output_type": "huggingface", "safe_serialization": safe, "max_shard_size": "90KB"}
    merge_lora(base, adapters, tmp_path / "out", **settings)
    require_one_rounding(load_weights(tmp_path / "out"), expected.sums, expected.float32_errors)
    index = json.loads(next((tmp_path / "out").glob("*.index.json")).read_text(encoding="utf-8"))
    assert len(set(index["weight_map"].values())) >= 3
    for name, file in index["weight_map"].items():
        path = tmp_path / "out" / file
        assert name in (load_weights_of(path)), file
    assert index["metadata"]["total_size"] == sum(2 * t.numel() for t in expected.sums.values())


def load_weights_of(path: Path) -> Tensors:
    if path.suffix == ".bin":
        return torch.load(path, weights_only=True)  # type: ignore[no-any-return]
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_meta_output(tmp_path: Path, chain: Chain, shards: int) -> None:
    base, adapters, expected, kv_heads = chain
    if shards > kv_heads:
        with pytest.raises(UsageError, match="cannot be split evenly"):
            merge_lora(base, adapters, tmp_path / "out", num_shards=shards)
        return
    merge_lora(base, adapters, tmp_path / "out", num_shards=shards)
    files = sorted((tmp_path / "out").glob("*.pth"))
    assert [path.name for path in files] == [f"consolidated.{n:02}.pth" for n in range(shards)]
    parts = [torch.load(path, weights_only=True) for path in files]
    sums, errors = (
        to_meta(tensors, HEADS, kv_heads) for tensors in (expected.sums, expected.float32_errors)
    )
    require_one_rounding(joined(parts), sums, errors)
    rows = [part["output.weight"].shape[0] for part in parts]
    assert rows == [ROWS // shards] * (shards - 1) + [ROWS - ROWS // shards * (shards - 1)]
    names = {path.name for path in (tmp_path / "out").iterdir()} - {path.name for path in files}
    assert names == {"params.json", "tokenizer.model", "merge_manifest.json"}
    params = json.loads((tmp_path / "out/params.json").read_text(encoding="utf-8"))
    assert params["vocab_size"] == ROWS
    assert params.get("n_kv_heads", HEADS) == kv_heads


def test_where_summands_cancel_the_error_is_relative_to_them(tmp_path: Path) -> None:
    """The base is minus the product, to float32's last place: what is left is float32's error."""
    base = make_base(tmp_path / "base", dtype=torch.float32, max_shard_size="10GB")
    adapter = make_adapter(tmp_path / "lora", base, r=8, std=8.0, modules_to_save=None)
    weights, sums = load_weights(base), merge_in_float64(base, [adapter]).sums
    opposite = {name: (tensor - sums[name]).float() for name, tensor in weights.items()}
    changed = {name for name, tensor in opposite.items() if tensor.any()}
    assert len(changed) == 14
    torch.save(weights | {name: opposite[name] for name in changed}, base / "pytorch_model.bin")
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    expected, found = merge_in_float64(base, [adapter]), load_weights(tmp_path / "out")
    nearest = expected.rounded()
    for name in changed:
        assert is_rounded_once(found[name], expected.sums[name], expected.float32_errors[name])
        assert int(ulps(found[name], nearest[name]).max()) > 100


def test_pth_files_are_fit_for_every_reader(tmp_path: Path, chain: Chain) -> None:
    base, adapters, _, _ = chain
    merge_lora(base, adapters, tmp_path / "out", num_shards=2)
    for path in sorted((tmp_path / "out").glob("*.pth")):
        assert zipfile.ZipFile(path).testzip() is None
        test = [sys.executable, "-m", "zipfile", "-t", str(path)]
        assert (
            subprocess.run(test, capture_output=True, check=True).stdout.strip() == b"Done testing"
        )
        mapped = torch.load(path, weights_only=True, mmap=True)
        read = torch.load(path, weights_only=True)
        storages = set()
        for name, tensor in mapped.items():
            assert torch.equal(tensor, read[name]), name
            assert tensor.is_contiguous(), name
            assert tensor.storage_offset() == 0, name
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, name
            storages.add(tensor.untyped_storage().data_ptr())
        assert len(storages) == len(mapped)


def test_tied_model_has_an_output_matrix_in_metas_layout(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = make_adapter(tmp_path / "lora", base, modules_to_save=None)
    merge_lora(base, adapter, tmp_path / "out")
    tensors = torch.load(tmp_path / "out/consolidated.00.pth", weights_only=True)
    assert torch.equal(tensors["output.weight"], tensors["tok_embeddings.weight"])


SETTINGS: list[dict[str, Any]] = [
    {"num_workers": 1, "max_memory": "1MB"},
    {"num_workers": 3},
    {"max_memory": "256MB", "num_workers": 2},
    {},
]


PLAIN: dict[str, Any] = {}
DORA: dict[str, Any] = {"use_dora": True, "modules_to_save": None}
DORA_EMBED: dict[str, Any] = DORA | {"targets": ["embed_tokens", "lm_head", "down_proj"]}


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize(
    ("output_type", "kind"),
    [("pth", PLAIN), ("huggingface", PLAIN), ("pth", DORA), ("huggingface", DORA_EMBED)],
    ids=["pth", "huggingface", "pth, DoRA", "huggingface, DoRA of the vocabulary"],
)
def test_bytes_depend_on_nothing_but_the_inputs(
    tmp_path: Path, output_type: str, kind: dict[str, Any]
) -> None:
    """Blocks of several sizes: 1500 and 900 columns make odd blocks, spans end inside tensors."""
    shape = {"hidden_size": 1536, "intermediate_size": 904, "num_hidden_layers": 1}
    base = make_base(tmp_path / "base", vocab_size=1001, **shape)
    rows = None if kind else 1100
    adapter = make_adapter(tmp_path / "lora", base, rows=rows, r=16, **kind)
    outputs = []
    for number, settings in enumerate(SETTINGS):
        out = tmp_path / f"out{number}"
        shards = {"num_shards": 2} if output_type == "pth" else {}
        merge_lora(base, adapter, out, output_type=output_type, **settings, **shards)
        outputs.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert all(output == outputs[0] for output in outputs)
