"""The numbers of a report are those of float64, computed here from the tensors themselves."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merge import apply_delta, merge_lora
from merge.deltas.observed import Measurements, record_changes
from merge.deltas.patches import LowRank
from merge.tensors.lazy import HeldTensor
from merge.tensors.patched import PatchedTensor
from tests.kit.dense_deltas import make_vicuna
from tests.kit.files import load_weights
from tests.kit.models import (
    ALPACA_ROWS,
    BASE_ROWS,
    HIDDEN,
    LAYERS,
    LINEAR,
    PREFIX,
    Q_PROJ,
    base_tensors,
    random_tensor,
    save_adapter,
    save_base,
)
from tests.kit.reported import ALPHA, RANKS, Reported, find_entry, make_reported, read_report

# Sums in float32 over some thousand elements.
NEAR = {"rel": 1e-5}
MATRICES = [f"model.layers.{layer}.{module}.weight" for layer in range(LAYERS) for module in LINEAR]


def norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double()))


def effective_rank(matrix: torch.Tensor) -> float:
    """By numpy's singular values of the whole product."""
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    shares = values[values > values.max() * 1e-5] / values[values > values.max() * 1e-5].sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    return make_reported(tmp_path_factory.mktemp("reported"))


@pytest.fixture(scope="module")
def report(reported: Reported) -> dict[str, Any]:
    return reported.merge(num_workers=2)


@pytest.mark.parametrize("name", MATRICES)
def test_changes_of_a_chain_are_those_of_float64(
    reported: Reported, report: dict[str, Any], name: str
) -> None:
    entry, before = find_entry(report, name), reported.base[name].double()
    parts = [reported.product(number, name) for number in range(2)]
    both = parts[0] + parts[1]
    assert entry["norm"] == pytest.approx(norm(before), **NEAR)
    assert entry["change"] == pytest.approx(norm(both), **NEAR)
    assert entry["relative"] == pytest.approx(norm(both) / norm(before), **NEAR)
    assert entry["effective_rank"] == pytest.approx(effective_rank(both), rel=1e-3)
    for part, by_adapter in zip(parts, entry["by_adapter"], strict=True):
        assert by_adapter["change"] == pytest.approx(norm(part), **NEAR)
        assert by_adapter["effective_rank"] == pytest.approx(effective_rank(part), rel=1e-3)
    written = load_weights(reported.out)[name].double()
    lost = norm(written - (before + both)) / norm(both)
    assert entry["lost"] == pytest.approx(lost, rel=2e-3)  # the float32 sum is off by a little
    assert entry["largest"] == float(written.abs().max())


def test_heat_map_and_rows_of_it_hold_the_same_numbers(report: dict[str, Any]) -> None:
    heat_map = report["heat_map"]
    assert heat_map["layers"] == list(range(LAYERS))
    assert heat_map["modules"] == list(LINEAR)
    for layer in range(LAYERS):
        for column, module in enumerate(LINEAR):
            entry = find_entry(report, f"model.layers.{layer}.{module}.weight")
            assert heat_map["total"][layer][column] == pytest.approx(entry["relative"])
            for table, part in zip(heat_map["by_adapter"], entry["by_adapter"], strict=True):
                assert table[layer][column] == pytest.approx(part["relative"])


def test_replaced_embeddings_are_compared_with_the_rows_of_the_base(
    reported: Reported, report: dict[str, Any]
) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        entry, before = find_entry(report, name), reported.base[name]
        after = reported.adapters[1][PREFIX + name]
        change = after[: len(before)].double() - before.double()
        assert entry["norm"] == pytest.approx(norm(before), **NEAR)
        assert entry["change"] == pytest.approx(norm(change), **NEAR)
        assert entry["lost"] is None


def test_totals_are_sums_over_all_tensors(report: dict[str, Any]) -> None:
    entries, total = report["tensors"], report["changes"]
    assert total["tensors"] == len(entries) == len(MATRICES) + 2
    assert total["change"] == pytest.approx(math.hypot(*(e["change"] for e in entries)))
    assert total["relative"] == pytest.approx(
        total["change"] / math.hypot(*(e["norm"] for e in entries))
    )


def test_ten_tensors_with_the_largest_relative_changes_are_listed(report: dict[str, Any]) -> None:
    ordered = sorted(report["tensors"], key=lambda entry: -entry["relative"])
    assert report["most_changed"] == [entry["name"] for entry in ordered[:10]]


def test_rank_and_scaling_are_told_by_module(report: dict[str, Any]) -> None:
    for number, rank in enumerate(RANKS, start=1):
        rows = [row for row in report["ranks"] if row["adapter"] == number]
        assert [row["module"] for row in rows] == list(LINEAR)
        assert {(row["rank"], row["scaling"]) for row in rows} == {(rank, ALPHA / rank)}


def test_norms_of_old_and_new_rows_are_in_the_histogram(
    reported: Reported, report: dict[str, Any]
) -> None:
    vocabulary = report["vocabulary"]
    assert (vocabulary["base_rows"], vocabulary["rows"]) == (BASE_ROWS, ALPACA_ROWS)
    for name, found in vocabulary["norms"].items():
        norms = torch.linalg.vector_norm(reported.adapters[1][PREFIX + name].double(), dim=1)
        for part, rows in (("old", norms[:BASE_ROWS]), ("new", norms[BASE_ROWS:])):
            counts, _ = np.histogram(rows.numpy(), bins=np.asarray(found["edges"]))
            assert abs(counts - found[part]["counts"]).sum() <= 2, "an edge is a value itself"
            assert sum(found[part]["counts"]) == len(rows)
            assert found[part]["median"] == pytest.approx(float(np.median(rows)), **NEAR)


def test_sample_lines_are_cut_as_sentencepiece_cuts_them(
    reported: Reported, report: dict[str, Any]
) -> None:
    from sentencepiece import SentencePieceProcessor

    for side, folder in (("before", "base"), ("after", "lora2")):
        model = SentencePieceProcessor(model_file=str(reported.folder / folder / "tokenizer.model"))
        lines = report["vocabulary"]["lines"]
        assert len(lines) == 10
        assert all(line[side] == model.encode(line["text"], out_type=str) for line in lines)
        characters = sum(len(line["text"]) for line in lines)
        tokens = sum(len(line[side]) for line in lines)
        told = report["vocabulary"]["characters_per_token"][side]
        assert told == pytest.approx(characters / tokens)


@pytest.mark.parametrize("output_type", ["pth", "gguf", "huggingface"])
def test_numbers_do_not_depend_on_layout_workers_or_memory(
    reported: Reported, report: dict[str, Any], tmp_path: Path, output_type: str
) -> None:
    merge_lora(
        output_dir=tmp_path,
        output_type=output_type,  # type: ignore[arg-type]
        dtype="float16",
        num_workers=1,
        max_memory="1MB",
        report=True,
        **reported.inputs,
    )
    found = read_report(tmp_path)
    assert found["tensors"] == report["tensors"]
    assert found["vocabulary"] == report["vocabulary"]


def test_dora_is_measured_on_its_blocks(tmp_path: Path) -> None:
    base = base_tensors()
    save_base(tmp_path / "base", base)
    name = f"{Q_PROJ}.weight"
    a, b = random_tensor(2, HIDDEN, seed=5), random_tensor(HIDDEN, 2, seed=6)
    magnitude = random_tensor(HIDDEN, seed=7).abs().add(1)
    tensors = {
        f"{PREFIX}{Q_PROJ}.lora_A.weight": a,
        f"{PREFIX}{Q_PROJ}.lora_B.weight": b,
        f"{PREFIX}{Q_PROJ}.lora_magnitude_vector": magnitude,
    }
    save_adapter(tmp_path / "lora", tensors, use_dora=True, layers_to_transform=[0])
    inputs = {"base_model": tmp_path / "base", "lora_model": tmp_path / "lora"}
    merge_lora(**inputs, output_dir=tmp_path / "out", output_type="huggingface", report=True)
    entry = find_entry(read_report(tmp_path / "out"), name)
    summed = base[name].double() + 2 * b.double() @ a.double()
    scale = magnitude.double() / torch.linalg.vector_norm(summed, dim=1)
    change = summed * scale[:, None] - base[name].double()
    assert entry["change"] == pytest.approx(norm(change), **NEAR)
    assert entry["by_adapter"][0]["change"] == pytest.approx(norm(change), **NEAR)
    assert entry["effective_rank"] is None


def test_delta_is_measured_on_its_blocks(tmp_path: Path) -> None:
    base, _, delta = make_vicuna(tmp_path)
    apply_delta(base, delta, tmp_path / "out", report=True, dtype="float32")
    report = read_report(tmp_path / "out")
    ours, theirs = load_weights(base), load_weights(delta)
    assert report["kind"] == "apply_delta"
    for name, tensor in ours.items():
        added = theirs[name].double()
        before = norm(tensor)
        entry = find_entry(report, name)
        assert entry["norm"] == pytest.approx(before, **NEAR)
        assert entry["change"] == pytest.approx(norm(added), **NEAR)


def test_rounding_after_each_adapter_adds_up(reported: Reported, tmp_path: Path) -> None:
    merge_lora(
        output_dir=tmp_path,
        output_type="huggingface",
        rounding="per_adapter",
        report=True,
        **reported.inputs,
    )
    entry = find_entry(read_report(tmp_path), f"{Q_PROJ}.weight")
    once = reported.base[f"{Q_PROJ}.weight"].double() + reported.product(0, f"{Q_PROJ}.weight")
    first = once.half().double()
    second = first + reported.product(1, f"{Q_PROJ}.weight")
    lost = math.hypot(norm(first - once), norm(second.half().double() - second))
    assert entry["lost_norm"] == pytest.approx(lost, rel=2e-3)


def test_rounding_of_large_blocks_is_told_from_some_of_the_rows() -> None:
    before = random_tensor(1024, 1024, seed=1, dtype=torch.float16)
    b, a = random_tensor(1024, 4, seed=2), random_tensor(4, 1024, seed=3)
    patch = LowRank(HeldTensor.of(a, "a"), HeldTensor.of(b, "b"), 0.01)
    start = HeldTensor.of(before, "before")
    whole = PatchedTensor((1024, 1024), torch.bfloat16, "sum", start, ((patch,),))
    recording, recorders = record_changes({"w": whole})
    measured = Measurements.of(recording, recorders, {})
    measured.compute_missing(2)
    exact = before.double() + 0.01 * b.double() @ a.double()
    lost = norm(exact.bfloat16().double() - exact)
    found = recorders["w"].sum_up()
    assert math.sqrt(found.lost) == pytest.approx(lost, rel=0.01)
    assert math.sqrt(found.before) == pytest.approx(norm(before), **NEAR)


def test_values_of_another_process_take_the_place_of_own_ones() -> None:
    """A worker elsewhere measures blocks in any order, and hands each over once."""
    shape = (700, 1024)
    start = HeldTensor.of(random_tensor(*shape, seed=1), "before")
    factors = random_tensor(2, shape[1], seed=2), random_tensor(shape[0], 2, seed=3)
    patch = LowRank(*(HeldTensor.of(one, "factor") for one in factors), 1.0)
    tensor = PatchedTensor(shape, torch.float16, "sum", start, ((patch,),))

    def measure() -> Measurements:
        recording, recorders = record_changes({"w": tensor})
        return Measurements.of(recording, recorders, {})

    here, there, empty = measure(), measure(), measure()
    here.compute_missing()
    read = there.tensors["w"].reader()
    for first, last in ((512, 700), (0, 512), (0, 512)):  # backwards, and some twice
        read(first, last, torch.empty(last - first, shape[1], dtype=torch.float16))
    empty.add_states(pickle.loads(pickle.dumps(there.take_states())))
    empty.add_states(there.take_states())
    assert not empty.list_incomplete()
    assert empty.changes["w"].sum_up() == here.changes["w"].sum_up()
