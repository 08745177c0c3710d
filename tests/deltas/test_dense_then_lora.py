"""A LoRA on top of a Vicuna delta in one run: the same as one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import merge_lora
from merge.errors import LayoutError, OutputError
from merge.jobs.apply_delta import apply_delta
from merge.jobs.convert_checkpoint import convert_checkpoint
from tests.kit.adapters import make_adapter, merge_with_peft
from tests.kit.content_digests import OF_BLOCKS
from tests.kit.dense_deltas import ROWS, make_vicuna
from tests.kit.files import load_weights, tree
from tests.kit.run import run_merge

GROWTHS = pytest.mark.parametrize("rows", [ROWS, ROWS + 1], ids=["v1.1", "v0"])


def make_chain(folder: Path, rows: int, adapter_rows: int | None) -> tuple[Path, Path, Path]:
    """Base, delta, and an adapter that PEFT made for their sum, which is in ``vicuna``."""
    base, _, delta = make_vicuna(folder, rows)
    apply_delta(base, delta, folder / "vicuna")
    adapter = make_adapter(
        folder / "lora",
        folder / "vicuna",
        rows=adapter_rows,
        modules_to_save=["embed_tokens", "lm_head"] if adapter_rows else None,
    )
    return base, delta, adapter


@GROWTHS
@pytest.mark.parametrize("more", [None, 7], ids=["same tokens", "more tokens"])
@pytest.mark.parametrize("count", [0, 2], ids=["hf base", "meta base"])
def test_one_run_gives_the_bytes_of_two(
    tmp_path: Path, rows: int, more: int | None, count: int
) -> None:
    base, delta, adapter = make_chain(tmp_path, rows, rows + more if more else None)
    if count:
        convert_checkpoint(base, tmp_path / "meta", output_type="pth", num_shards=count)
        base = tmp_path / "meta"
    settings: dict[str, Any] = {"output_type": "huggingface"}
    merge_lora(tmp_path / "vicuna", adapter, tmp_path / "two runs", **settings)
    merge_lora(base, adapter, tmp_path / "one run", delta_model=delta, **settings)
    for path in (tmp_path / "two runs").iterdir():
        if path.name not in ("config.json", "merge_manifest.json", "tokenizer_config.json"):
            assert path.read_bytes() == (tmp_path / "one run" / path.name).read_bytes(), path.name
    configs = [
        json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8"))
        for name in ("one run", "two runs")
    ]
    assert configs[0] == configs[1]


def test_one_run_is_what_peft_makes_of_the_sum(tmp_path: Path) -> None:
    base, delta, adapter = make_chain(tmp_path, ROWS + 1, ROWS + 5)
    settings: dict[str, Any] = {"output_type": "huggingface", "dtype": "float32"}
    merge_lora(base, adapter, tmp_path / "out", delta_model=delta, **settings)
    expected = merge_with_peft(tmp_path / "vicuna", [adapter])
    found = load_weights(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_command_line_manifest_and_summary_name_the_delta(tmp_path: Path) -> None:
    base, delta, adapter = make_chain(tmp_path, ROWS + 1, None)
    words = ["--base_model", base, "--delta_model", delta, "--lora_model", adapter]
    done = run_merge(*words, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"base       {base} ({ROWS} rows)" in done.stdout
    assert f"delta      {delta} ({ROWS + 1} rows)" in done.stdout
    manifest = json.loads((tmp_path / "out/merge_manifest.json").read_text(encoding="utf-8"))
    for role in ("base_model", "delta_model"):
        tensors = manifest["inputs"][role]["tensors"]
        assert all(tensor[OF_BLOCKS] for tensor in tensors.values()), role


def test_delta_of_another_model_or_place(tmp_path: Path) -> None:
    base, delta, adapter = make_chain(tmp_path, ROWS, None)
    make_vicuna(tmp_path / "other", num_hidden_layers=3)
    before = tree(tmp_path)
    with pytest.raises(LayoutError, match="different models"):
        merge_lora(base, adapter, tmp_path / "out", delta_model=tmp_path / "other/delta")
    with pytest.raises(OutputError, match="one of the inputs"):
        merge_lora(base, adapter, delta, delta_model=delta, overwrite=True)
    assert tree(tmp_path) == before
