"""Deltas of other families: rows less a mean, embeddings stored whole, and what is no delta."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import merge_lora, verify_merge
from merge.errors import LayoutError, MergeError, UsageError, VerificationError
from merge.jobs.apply_delta import apply_delta, make_delta
from tests.kit.adapters import make_adapter
from tests.kit.dense_deltas import (
    ROWS,
    make_published_delta,
    make_target,
    make_vicuna,
    padded,
    save_model,
)
from tests.kit.files import Tensors, load_weights, tree
from tests.kit.llamas import make_base
from tests.kit.run import ROOT, run_merge

VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
APPLY = ROOT / "scripts" / "apply_delta.py"


def weight_diff(base: Path, rows: int) -> Tensors:
    """The base as stanford_alpaca's weight_diff.py grows it: in float32, new rows are the mean of
    the old ones.
    """
    grown = {}
    for name, tensor in load_weights(base).items():
        grown[name] = tensor.float()
        if name in VOCABULARY and rows > len(tensor):
            average = grown[name].mean(dim=0, keepdim=True)
            grown[name] = torch.cat([grown[name], average.expand(rows - len(tensor), -1)])
    return grown


@pytest.fixture
def alpaca(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Base, target and the delta that weight_diff.py makes of them, all sums in float32."""
    base = make_base(tmp_path / "base", dtype=torch.float32)
    target = make_target(tmp_path / "target", base, ROWS + 1)
    raw, tuned = weight_diff(base, ROWS + 1), load_weights(target)
    difference = {name: tuned[name].float() - raw[name] for name in tuned}
    delta = save_model(tmp_path / "delta", base, difference, ROWS + 1)
    return base, target, delta


def require_close(found: Tensors, expected: Tensors, within: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].float(), tensor.float(), rtol=0, atol=within)


def test_rows_less_the_mean_come_back_as_weight_diff_recovers_them(
    tmp_path: Path, alpaca: tuple[Path, Path, Path]
) -> None:
    base, _, delta = alpaca
    raw, difference = weight_diff(base, ROWS + 1), load_weights(delta)
    expected = {name: raw[name] + difference[name] for name in raw}
    total = float(sum(tensor.sum() for tensor in expected.values()))
    report = apply_delta(
        base,
        delta,
        tmp_path / "out",
        new_token_init="mean",
        dtype="float32",
        expect_sum=round(total, 4),
    )
    require_close(load_weights(tmp_path / "out"), expected)
    assert "mean of its rows" in report.summary()
    said = json.loads((tmp_path / "out/merge_manifest.json").read_bytes())
    assert said["delta"]["new_token_init"] == "mean"
    assert not verify_merge(tmp_path / "out").faults
    (tmp_path / "out/merge_manifest.json").unlink()
    inputs = {"base_model": base, "delta_model": delta}
    assert not verify_merge(tmp_path / "out", new_token_init="mean", **inputs).faults
    assert verify_merge(tmp_path / "out", **inputs).faults


def test_rows_of_zeros_are_wrong_for_it_and_verification_says_so(
    tmp_path: Path, alpaca: tuple[Path, Path, Path]
) -> None:
    base, _, delta = alpaca
    apply_delta(base, delta, tmp_path / "out", dtype="float32")
    (tmp_path / "out/merge_manifest.json").unlink()
    options = {"base_model": base, "delta_model": delta, "new_token_init": "mean"}
    assert verify_merge(tmp_path / "out", **options).faults


def test_delta_of_the_mean_is_made_as_weight_diff_makes_it(
    tmp_path: Path, alpaca: tuple[Path, Path, Path]
) -> None:
    base, target, delta = alpaca
    made = tmp_path / "made"
    make_delta(base, target, made, new_token_init="mean", dtype="float32")
    require_close(load_weights(made), load_weights(delta))
    assert not verify_merge(made).faults


def test_elements_that_do_not_add_up_leave_nothing(
    tmp_path: Path, alpaca: tuple[Path, Path, Path]
) -> None:
    base, _, delta = alpaca
    before = tree(tmp_path)
    with pytest.raises(VerificationError, match="do not add up"):
        apply_delta(base, delta, tmp_path / "out", dtype="float32", expect_sum=1.0)
    assert tree(tmp_path) == before


def test_rotary_buffers_of_old_releases_may_be_in_the_sum(
    tmp_path: Path, alpaca: tuple[Path, Path, Path]
) -> None:
    base, _, delta = alpaca
    tensors = load_weights(delta)
    raw = weight_diff(base, ROWS + 1)
    total = float(sum((raw[name] + tensors[name]).sum() for name in raw))
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, 8, 2).double() / 8)
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.zeros(4) for n in range(2)}
    other = save_model(tmp_path / "buffers", base, tensors | buffers, ROWS + 1)
    total += 2 * float(frequencies.sum())
    options = {"new_token_init": "mean", "dtype": "float32"}
    apply_delta(base, other, tmp_path / "out", expect_sum=round(total, 3), **options)
    apply_delta(base, delta, tmp_path / "plain", **options)
    found, plain = load_weights(tmp_path / "out"), load_weights(tmp_path / "plain")
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    for wrong in (total + 1, total - float(frequencies.sum())):
        with pytest.raises(VerificationError, match="do not add up"):
            apply_delta(base, other, tmp_path / "wrong", expect_sum=round(wrong, 3), **options)


@pytest.mark.parametrize("place", ["folder", "configuration"])
def test_delta_that_is_called_wdiff_wants_the_choice(
    tmp_path: Path, alpaca: tuple[Path, Path, Path], place: str
) -> None:
    base, _, delta = alpaca
    named = tmp_path / ("alpaca-7b-wdiff" if place == "folder" else "delta2")
    shutil.copytree(delta, named)
    if place == "configuration":
        path = named / "config.json"
        said = json.loads(path.read_bytes()) | {"_name_or_path": "alpaca-7b-wdiff"}
        path.write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(UsageError, match="weight_diff") as caught:
        apply_delta(base, named, tmp_path / "out")
    assert "--new_token_init mean" in caught.value.facts["remedy"]
    assert not (tmp_path / "out").exists()
    adapter = make_adapter(tmp_path / "lora", base, modules_to_save=None)
    with pytest.raises(UsageError, match="weight_diff") as caught:
        merge_lora(base, adapter, tmp_path / "out", delta_model=named)
    assert "apply_delta.py --new_token_init mean" in caught.value.facts["remedy"]
    apply_delta(base, named, tmp_path / "out", new_token_init="zeros")


@pytest.fixture
def ziya(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Base, target with more and padded rows, and a delta that holds the vocabulary whole."""
    base = make_base(tmp_path / "base")
    target = make_target(tmp_path / "target", base, ROWS + 3, spread=0.2)
    ours, theirs = load_weights(base), load_weights(target)
    delta = {name: t if name in VOCABULARY else t - ours[name] for name, t in theirs.items()}
    return base, target, save_model(tmp_path / "delta", base, delta, ROWS + 3)


def test_whole_embeddings_are_taken_as_they_are(
    tmp_path: Path, ziya: tuple[Path, Path, Path]
) -> None:
    base, target, delta = ziya
    report = apply_delta(base, delta, tmp_path / "out")
    found, wanted = load_weights(tmp_path / "out"), load_weights(target)
    for name in VOCABULARY:
        assert torch.equal(found[name], wanted[name])
    require_close(found, wanted, within=2e-3)
    assert "taken whole (cosine 0.9" in report.summary()
    assert "rows of zeros" not in report.summary()
    assert not verify_merge(tmp_path / "out").faults
    (tmp_path / "out/merge_manifest.json").unlink()
    assert not verify_merge(tmp_path / "out", base_model=base, delta_model=delta).faults


def test_whole_embeddings_added_to_the_bases_are_called_wrong(
    tmp_path: Path, ziya: tuple[Path, Path, Path]
) -> None:
    base, _, delta = ziya
    apply_delta(base, delta, tmp_path / "out", delta_embeddings="difference")
    found, ours = load_weights(tmp_path / "out"), load_weights(base)
    name = VOCABULARY[0]
    assert found[name][:ROWS].norm() > 1.8 * ours[name].norm()  # what happened before
    (tmp_path / "out/merge_manifest.json").unlink()
    faults = verify_merge(tmp_path / "out", base_model=base, delta_model=delta).faults
    assert any(name in str(fault) for fault in faults)


def test_whole_embeddings_in_a_chain_with_an_adapter(
    tmp_path: Path, ziya: tuple[Path, Path, Path]
) -> None:
    base, _, delta = ziya
    apply_delta(base, delta, tmp_path / "sum")
    adapter = make_adapter(tmp_path / "lora", tmp_path / "sum", modules_to_save=None)
    report = merge_lora(base, adapter, tmp_path / "at once", delta_model=delta)
    merge_lora(tmp_path / "sum", adapter, tmp_path / "in steps")
    files = [tmp_path / name / "consolidated.00.pth" for name in ("at once", "in steps")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "is taken whole from the delta" in report.summary()
    assert not verify_merge(tmp_path / "at once").faults


def test_delta_with_whole_embeddings_is_made_on_request(
    tmp_path: Path, ziya: tuple[Path, Path, Path]
) -> None:
    base, target, delta = ziya
    make_delta(base, target, tmp_path / "made", delta_embeddings="whole")
    require_close(load_weights(tmp_path / "made"), load_weights(delta), within=0)
    assert not verify_merge(tmp_path / "made").faults


def test_rows_that_do_not_tell_are_asked_for(tmp_path: Path, ziya: tuple[Path, Path, Path]) -> None:
    base, _, delta = ziya
    ours, theirs = load_weights(base), load_weights(delta)
    for name in VOCABULARY:
        theirs[name] = (padded(ours[name], ROWS + 3) + torch.randn(ROWS + 3, 64) * 0.7).half()
    between = save_model(tmp_path / "between", base, theirs, ROWS + 3)
    with pytest.raises(LayoutError, match="whole or as a difference") as caught:
        apply_delta(base, between, tmp_path / "out")
    assert "--delta_embeddings whole or difference" in caught.value.facts["remedy"]
    apply_delta(base, between, tmp_path / "out", delta_embeddings="whole")
    assert not verify_merge(tmp_path / "out").faults


@pytest.mark.parametrize("shrunk", [0.99, 1.02])
def test_difference_that_only_scales_rows_is_one(tmp_path: Path, shrunk: float) -> None:
    """Weight decay leaves differences that point along the base's rows, and are small."""
    base = make_base(tmp_path / "base")
    target = make_target(tmp_path / "target", base)
    tensors = load_weights(target)
    tensors |= {name: (load_weights(base)[name].float() * shrunk).half() for name in VOCABULARY}
    other = save_model(tmp_path / "other", base, tensors)
    delta = make_published_delta(tmp_path / "delta", base, other)
    report = apply_delta(base, delta, tmp_path / "out")
    assert "whole" not in report.summary()
    require_close(load_weights(tmp_path / "out"), tensors, within=2e-3)


def test_delta_as_base_of_a_merge_is_refused(tmp_path: Path) -> None:
    base, _, delta = make_vicuna(tmp_path)
    adapter = make_adapter(tmp_path / "lora", base, modules_to_save=None)
    with pytest.raises(LayoutError, match="the base model is a delta") as caught:
        merge_lora(delta, adapter, tmp_path / "out")
    assert "--delta_model" in caught.value.facts["remedy"]
    assert not (tmp_path / "out").exists()
    merge_lora(base, adapter, tmp_path / "right")
    assert verify_merge(tmp_path / "right", base_model=delta, lora_model=adapter).faults


def test_whole_model_as_delta_is_refused(tmp_path: Path) -> None:
    base, target, delta = make_vicuna(tmp_path)
    adapter = make_adapter(tmp_path / "lora", base, modules_to_save=None)
    with pytest.raises(LayoutError, match="the delta is a whole model"):
        apply_delta(base, target, tmp_path / "out")
    with pytest.raises(LayoutError, match="the delta is a whole model"):
        merge_lora(base, adapter, tmp_path / "out", delta_model=target)
    with pytest.raises(LayoutError, match="the target is a delta"):
        make_delta(base, delta, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    apply_delta(base, delta, tmp_path / "right")
    faults = verify_merge(tmp_path / "right", base_model=base, delta_model=target).faults
    assert any("whole model" in str(fault) for fault in faults)


def test_norms_of_gemma_tell_nothing(tmp_path: Path) -> None:
    """Gemma stores them less one, so half of them may be negative."""
    from transformers import GemmaConfig, GemmaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64}
    torch.manual_seed(1)
    model = GemmaForCausalLM(GemmaConfig(**sizes))
    torch.nn.init.normal_(model.model.norm.weight, std=0.1)
    model.save_pretrained(tmp_path / "base")
    adapter = make_adapter(
        tmp_path / "lora", tmp_path / "base", targets=["q_proj"], modules_to_save=None
    )
    (tmp_path / "base/tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {str(n): n for n in range(64)}}}), encoding="utf-8"
    )
    merge_lora(tmp_path / "base", adapter, tmp_path / "out", output_type="huggingface")
    norm = load_weights(tmp_path / "out")["model.norm.weight"]
    assert (norm < 0).any()
    assert torch.equal(norm, model.model.norm.weight.detach().half())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"delta_embeddings": "half"}, "delta_embeddings"),
    ({"new_token_init": "normal"}, "new_token_init"),
    ({"expect_sum": float("nan")}, "expect_sum"),
    ({"expect_sum": 1.0, "resume": True}, "resume"),
]


@pytest.mark.parametrize(("options", "told"), WRONG)
def test_options_that_mean_nothing(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    base, target, delta = make_vicuna(tmp_path)
    with pytest.raises(MergeError, match=told):
        apply_delta(base, delta, tmp_path / "out", **options)
    with pytest.raises(UsageError, match="delta_embeddings auto is for applying"):
        make_delta(base, target, tmp_path / "out", delta_embeddings="auto")
    with pytest.raises(UsageError, match="there is no option expect_sum"):
        make_delta(base, target, tmp_path / "out", **{"expect_sum": 1.0})


def test_command_line_knows_the_options(tmp_path: Path, alpaca: tuple[Path, Path, Path]) -> None:
    base, _, delta = alpaca
    words = ("--base", base, "--delta", delta, "--target", tmp_path / "out", "--dtype", "float32")
    done = run_merge(*words, "--new_token_init", "mean", "--expect_sum", "1.5", script=APPLY)
    assert done.returncode == 2, done.stdout
    assert "do not add up" in done.stderr
    assert not (tmp_path / "out").exists()
    done = run_merge(*words, "--new_token_init", "mean", "--delta_embeddings", "auto", script=APPLY)
    assert done.returncode == 0, done.stderr
