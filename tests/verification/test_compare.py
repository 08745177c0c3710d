"""Two checkpoints of other people's making, and what the command says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from merge.commands.compare_checkpoints import main
from merge.verification.ulps import INCOMPARABLE
from tests.kit.files import save_tensors
from tests.kit.meta_models import hf_tensors, meta_tensors, save_meta, split
from tests.kit.models import Q_PROJ, base_tensors, save_base

WEIGHT = f"{Q_PROJ}.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


def changed(folder: Path, change: object, name: str = "pytorch_model.bin") -> Path:
    tensors = base_tensors()
    change(tensors)  # type: ignore[operator]
    return save_base(folder, tensors, name=name)


def test_the_same_tensors_in_other_containers_and_shards_are_identical(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_base(tmp_path / "safe", name="model.safetensors")
    assert main([str(base), str(other)]) == 0
    said = capsys.readouterr().out
    assert "identical: 21 tensors" in said
    assert "every tensor is identical" in said


def test_meta_and_hugging_face_are_the_same_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = meta_tensors()
    save_meta(tmp_path / "meta", split(tensors, 2))
    save_tensors_of_hf(tmp_path / "hf", hf_tensors(tensors))
    assert main([str(tmp_path / "meta"), str(tmp_path / "hf")]) == 0
    assert "every tensor is identical" in capsys.readouterr().out


def save_tensors_of_hf(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    save_tensors(folder / "pytorch_model.bin", tensors)


def test_q_and_k_left_in_the_other_order_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = meta_tensors()
    save_meta(tmp_path / "meta", [tensors])
    wrong = hf_tensors(tensors)
    q = "model.layers.1.self_attn.q_proj.weight"
    wrong[q] = tensors["layers.1.attention.wq.weight"]
    save_tensors_of_hf(tmp_path / "hf", wrong)
    assert main([str(tmp_path / "meta"), str(tmp_path / "hf")]) == 1
    said = capsys.readouterr().out
    assert "not identical: 1 tensors" in said
    assert q in said


@pytest.mark.parametrize("name", list(base_tensors()))
def test_one_flipped_bit_is_found_and_told(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    def flip(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(torch.int16).view(-1)[-1] ^= 1

    other = changed(tmp_path / "other", flip)
    assert main([str(base), str(other)]) == 1
    said = capsys.readouterr().out
    assert f"{name}: float16" in said
    assert "differ in 1 of" in said
    last = [size - 1 for size in base_tensors()[name].shape]
    assert f"{last}: " in said
    assert "(1 ulp)" in said
    assert main([str(base), str(other), "--max_ulp", "1"]) == 0


def test_two_swapped_layers_are_both_named(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def swap(tensors: dict[str, torch.Tensor]) -> None:
        other = WEIGHT.replace("layers.0", "layers.1")
        tensors[WEIGHT], tensors[other] = tensors[other], tensors[WEIGHT]

    assert main([str(base), str(changed(tmp_path / "other", swap))]) == 1
    said = capsys.readouterr().out
    assert "not identical: 2 tensors" in said
    assert "identical: 19 tensors" in said


def test_missing_extra_and_reshaped_tensors_differ_whatever_the_distance(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["more.weight"] = tensors.pop("model.norm.weight")
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()

    other = changed(tmp_path / "other", change)
    assert main([str(base), str(other), "--max_ulp", "100000"]) == 1
    said = capsys.readouterr().out
    assert "missing in B: model.norm.weight" in said
    assert "only in B: more.weight" in said
    assert "other shape: lm_head.weight: (40, 16) in A, (39, 16) in B" in said


def test_a_nan_in_one_of_them_is_beyond_any_distance(tmp_path: Path, base: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[WEIGHT][3, 4] = float("nan")

    one, two = (changed(tmp_path / name, spoil) for name in ("one", "two"))
    assert main([str(one), str(two)]) == 0
    assert main([str(base), str(one), "--max_ulp", str(INCOMPARABLE - 1)]) == 1


def test_other_dtypes_are_compared_in_the_coarser_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = base_tensors(dtype=torch.float32)
    exact[WEIGHT] += 1e-6
    wide = save_base(tmp_path / "wide", exact)
    rounded = {name: tensor.half() for name, tensor in exact.items()}
    narrow = save_base(tmp_path / "narrow", rounded)
    assert main([str(wide), str(narrow)]) == 0
    said = capsys.readouterr().out
    assert "equal in float16, the coarser of the two" in said
    assert "the same numbers" in said
    rounded[WEIGHT].view(torch.int16)[5, 6] += 2
    narrow = save_base(tmp_path / "narrow", rounded)
    assert main([str(narrow), str(wide)]) == 1
    assert "at most 2 ulp in float16" in capsys.readouterr().out


def test_a_tied_model_has_the_head_that_the_other_one_spells_out(tmp_path: Path) -> None:
    tensors = base_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    whole = save_base(tmp_path / "whole", tensors)
    del tensors["lm_head.weight"]
    tied = save_base(tmp_path / "tied", tensors, tie_word_embeddings=True)
    assert main([str(whole), str(tied)]) == 0
    untied = save_base(tmp_path / "untied", tensors)
    assert main([str(whole), str(untied)]) == 1


def test_an_index_that_names_the_wrong_file_is_refused(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = base_tensors()
    head = tensors.pop("lm_head.weight")
    other = save_base(tmp_path / "other", tensors)
    save_tensors(other / "more.bin", {"lm_head.weight": head})
    places = dict.fromkeys(tensors, "pytorch_model.bin") | {"lm_head.weight": "more.bin"}
    index = other / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    assert main([str(base), str(other)]) == 0
    places[WEIGHT] = "more.bin"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    assert main([str(base), str(other)]) == 2
    assert "does not hold" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["{base}", "nowhere"], ["{base}", "{base}", "--max_ulp=-1"]])
def test_a_mistake_is_one_message(
    base: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main([word.format(base=base) for word in arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_no_tensors_are_nothing_to_compare(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.safetensors"
    save_tensors(empty, {})
    assert main([str(empty), str(empty)]) == 2
    assert "nothing to compare" in capsys.readouterr().err
    assert main([str(empty), str(base)]) == 1


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_float8_is_counted_in_its_own_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: torch.dtype
) -> None:
    """All bit patterns against their neighbour; torch's own conversion says which are numbers."""
    ours = torch.arange(256, dtype=torch.uint8)
    theirs = ours ^ 1
    numbers = ours.view(dtype).float().isfinite(), theirs.view(dtype).float().isfinite()
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_tensors(one, {"w": ours.view(dtype)})
    save_tensors(two, {"w": theirs.view(dtype)})
    assert main([str(one), str(one)]) == 0
    assert main([str(one), str(two)]) == 1
    assert f"{dtype}".removeprefix("torch.") in capsys.readouterr().out
    both = numbers[0] & numbers[1]
    save_tensors(one, {"w": ours[both].view(dtype)})
    save_tensors(two, {"w": theirs[both].view(dtype)})
    assert main([str(one), str(two)]) == 1
    assert "at most 1 ulp" in capsys.readouterr().out
    assert main([str(one), str(two), "--max_ulp", "1"]) == 0


def test_a_name_with_a_line_end_forges_no_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, forged = "w", "the same: every tensor is identical"
    for path, value in (("one", 0.0), ("two", 1.0)):
        tensors = {f"{name}\n{forged}": torch.tensor([value])}
        save_tensors(tmp_path / f"{path}.safetensors", tensors)
    paths = [str(tmp_path / f"{path}.safetensors") for path in ("one", "two")]
    assert main(paths) == 1
    said = capsys.readouterr().out
    assert forged not in said.splitlines()
    assert f"w\\n{forged}" in said


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 300_000), (300_000,), ()], ids=str)
def test_elements_are_named_by_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, ...]
) -> None:
    ours = torch.zeros(shape)
    theirs = ours.clone()
    theirs.view(-1)[-1] = 1.0
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for path, tensor in zip(paths, (ours, theirs), strict=True):
        save_tensors(path, {"w": tensor})
    assert main([str(path) for path in paths]) == 1
    assert f"{theirs.nonzero()[0].tolist()}: 0 and 1 " in capsys.readouterr().out


def test_rows_that_are_too_wide_to_be_read_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every other element of a storage: no part of a row can be read by itself."""
    every_other = torch.zeros(2 * (9 << 20), dtype=torch.float16)[::2].view(1, -1)
    for name in ("one.bin", "two.bin"):
        torch.save({"w": every_other}, tmp_path / name)
    assert main([str(tmp_path / "one.bin"), str(tmp_path / "two.bin")]) == 2
    assert "too wide" in capsys.readouterr().err
