"""What was merged rightly is found right, of every kind; by PEFT's own merge too."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import apply_delta, convert_checkpoint, make_delta, merge_lora, verify_merge
from merge.jobs.verify_merge import Verification
from merge.verification.exactness import Exactness
from tests.kit.adapters import make_adapter, merge_with_peft
from tests.kit.compare import merge_in_float64, ulps
from tests.kit.files import load_weights, save_shards
from tests.kit.llamas import make_base

SOURCES = sorted((Path(__file__).parents[2] / "merge" / "verification").glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_check_shares_no_code_with_what_it_checks(source: Path) -> None:
    nodes = list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    assert not [name for name in modules if "deltas" in name.split(".")]


def right(found: Verification) -> Verification:
    assert [str(fault) for fault in found.faults] == []
    return found


LAYOUTS: dict[str, dict[str, Any]] = {
    "pth": {"output_type": "pth"},
    "pth in 4": {"output_type": "pth", "num_shards": 4},
    "bin in many": {"output_type": "huggingface", "max_shard_size": "50KB"},
    "safetensors": {"output_type": "huggingface", "safe_serialization": True},
    "bfloat16": {"output_type": "huggingface", "dtype": "bfloat16"},
    "float32": {"output_type": "huggingface", "dtype": "float32"},
}


for _outtype in ("f32", "f16", "bf16", "q8_0"):
    LAYOUTS[f"gguf {_outtype}"] = {"output_type": "gguf", "outtype": _outtype}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_merge_is_right_in_every_layout(
    tmp_path: Path, base: Path, adapter: Path, layout: str
) -> None:
    merge_lora(base, adapter, tmp_path / "out", **LAYOUTS[layout])
    found = right(verify_merge(tmp_path / "out"))
    assert not found.unchecked
    assert any("21 tensors, each element" in line for line in found.checked)


def test_distance_from_float64_is_that_of_the_nearest_float16(
    tmp_path: Path, base: Path, adapter: Path
) -> None:
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    written = load_weights(tmp_path / "out")
    nearest = merge_in_float64(base, [adapter]).rounded()
    apart = torch.cat([ulps(written[name], nearest[name]).flatten() for name in written])
    same, furthest = int((apart == 0).sum()), int(apart.max())
    assert 0.999 * len(apart) < same < len(apart)
    found = verify_merge(tmp_path / "out")
    assert found.exactness == Exactness(len(apart), same, furthest)
    assert f"at most {furthest} ulp away" in found.summary()
    assert f"{same / len(apart):.5%} of {len(apart):,} elements" in found.summary()


KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True, "modules_to_save": None},
    "rslora": {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"up_proj": 5}},
    "embeddings": {"modules_to_save": None, "targets": ["embed_tokens", "q_proj"]},
    "norms": {"modules_to_save": ["norm", "input_layernorm"]},
    "mlp": {"modules_to_save": ["mlp"], "targets": ["q_proj"]},
    "tokens": {"modules_to_save": None, "trainable_token_indices": {"embed_tokens": [3, 99]}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_is_right(tmp_path: Path, base: Path, kind: str) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, **KINDS[kind])
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    assert not right(verify_merge(tmp_path / "out")).unchecked


TIED: dict[str, dict[str, Any]] = {
    "untouched": {"modules_to_save": None},
    "kept": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "untied": {"modules_to_save": ["embed_tokens"]},
}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("output_type", ["pth", "huggingface"])
def test_tied_embeddings_are_right(tmp_path: Path, kind: str, output_type: Any) -> None:
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = make_adapter(tmp_path / "adapter", base, **TIED[kind])
    merge_lora(base, adapter, tmp_path / "out", output_type=output_type)
    right(verify_merge(tmp_path / "out"))


@pytest.mark.parametrize("rounding", ["once", "per_adapter"])
def test_two_weighed_adapters_are_right_in_both_roundings(
    tmp_path: Path, base: Path, adapter: Path, rounding: Any
) -> None:
    second = make_adapter(tmp_path / "second", base, modules_to_save=None, seed=7)
    options = {"lora_weights": "0.75,-1.5", "rounding": rounding}
    merge_lora(base, [adapter, second], tmp_path / "out", output_type="huggingface", **options)
    right(verify_merge(tmp_path / "out"))


def test_rows_that_an_adapter_lacks_are_the_base_s(tmp_path: Path, base: Path) -> None:
    large = make_base(tmp_path / "large", vocab_size=120, num_key_value_heads=4)
    small = make_adapter(tmp_path / "small", base)
    for mismatch in ("keep_base_rows", "truncate"):
        out = tmp_path / mismatch
        tokenizer = large if mismatch == "keep_base_rows" else base
        merge_lora(
            large,
            small,
            out,
            output_type="huggingface",
            vocab_mismatch=mismatch,
            tokenizer=tokenizer,
        )
        right(verify_merge(out))


def test_new_rows_are_said_not_to_be_checked(tmp_path: Path, base: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, modules_to_save=None)
    more = make_base(tmp_path / "more", vocab_size=110)
    options: dict[str, Any] = {"tokenizer": more, "new_token_init": "mean"}
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", **options)
    found = right(verify_merge(tmp_path / "out"))
    assert [line for line in found.unchecked if "rows 101 to 110" in line]


def test_other_jobs_are_right_too(tmp_path: Path, base: Path, adapter: Path) -> None:
    converted, target, delta, back = (tmp_path / name for name in ("meta", "target", "d", "back"))
    convert_checkpoint(base, converted, output_type="pth")
    right(verify_merge(converted))
    merge_lora(base, adapter, target, output_type="huggingface")
    make_delta(base, target, delta)
    right(verify_merge(delta))
    apply_delta(base, delta, back)
    right(verify_merge(back))
    lora = make_adapter(tmp_path / "lora", target, modules_to_save=None, seed=3)
    merge_lora(base, lora, tmp_path / "both", delta_model=delta, output_type="huggingface")
    right(verify_merge(tmp_path / "both"))


def test_a_merge_by_peft_is_right_without_a_manifest(
    tmp_path: Path, base: Path, adapter: Path
) -> None:
    """PEFT multiplies and adds in float32 here; rounding that once is what is asked of a merge."""
    merged = {name: tensor.half() for name, tensor in merge_with_peft(base, [adapter]).items()}
    out = tmp_path / "out"
    out.mkdir()
    save_shards(merged, out, ".safetensors")
    for path in base.glob("*.json"):
        if "index" not in path.name:
            shutil.copy(path, out)
    shutil.copy(adapter / "tokenizer.model", out)
    found = verify_merge(out, base_model=base, lora_model=adapter)
    # config.json is the base's; its special tokens may differ, but no number does.
    assert not [fault for fault in found.faults if fault.facts.get("tensor")]


def test_float32_numbers_are_right_to_the_last_digits(tmp_path: Path, adapter: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.float32, num_key_value_heads=4)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    right(verify_merge(tmp_path / "out"))
