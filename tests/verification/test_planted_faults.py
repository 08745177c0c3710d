"""Faults planted into a finished merge: each must be found, also where the manifest vouches for it.

A manifest is written by the program that merged, so it cannot tell of wrong arithmetic: ``vouched``
faults are in the digests too, and only base and adapters contradict them.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import merge_lora, verify_merge
from merge.commands.verify_merge import main
from merge.errors import MergeError, UsageError
from tests.kit.adapters import make_adapter
from tests.kit.compare import half_unit, merge_in_float64
from tests.kit.files import Tensors, copied, load_weights
from tests.kit.llamas import make_base
from tests.kit.spoiled_results import (
    faults,
    flip_in_place,
    manifest,
    spoil,
    vouch,
    weight_files,
)

LAYER = "model.layers.1."
KINDS = (
    "model.embed_tokens.weight",
    f"{LAYER}self_attn.q_proj.weight",
    f"{LAYER}self_attn.k_proj.weight",
    f"{LAYER}self_attn.v_proj.weight",
    f"{LAYER}self_attn.o_proj.weight",
    f"{LAYER}mlp.gate_proj.weight",
    f"{LAYER}mlp.up_proj.weight",
    f"{LAYER}mlp.down_proj.weight",
    f"{LAYER}input_layernorm.weight",
    f"{LAYER}post_attention_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
)
Q, OTHER_Q = KINDS[1], KINDS[1].replace("layers.1", "layers.0")


@pytest.fixture(scope="module")
def second(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("second"), base, modules_to_save=None, seed=9)


def tensors_in(found: list[MergeError], sentence: str) -> list[str]:
    return [fault.facts["tensor"] for fault in found if sentence in fault.sentence]


CONTENT, NUMBERS = "other content than the merge wrote", "not what its inputs make of it"


@pytest.fixture(scope="module")
def sums(base: Path, adapter: Path) -> Tensors:
    """What ``merged`` must be, in float64."""
    return merge_in_float64(base, [adapter]).sums


def flip(name: str, bit: int, sums: Tensors) -> Callable[[Tensors], None]:
    """Flip a bit of the element that the last bit would take furthest from its sum.

    That is beyond half a unit in the last place; of an element in the middle between two float16
    either may be right.
    """

    def change(tensors: Tensors) -> None:
        bits = tensors[name].view(torch.int16).view(-1)
        off = (bits ^ 1).view(torch.float16).double() - sums[name].view(-1)
        at = int((off.abs() / half_unit(sums[name].view(-1).abs())).argmax())
        bits[at] = int(bits[at]) ^ (1 << bit if bit < 15 else -0x8000)

    return change


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("layout", ["merged", "merged_safetensors"])
def test_one_flipped_bit_after_the_merge_is_found_by_its_digests(
    tmp_path: Path, layout: str, name: str, request: pytest.FixtureRequest
) -> None:
    """Zip archives have a checksum of their own beside; safetensors have the manifest's alone."""
    out = copied(request.getfixturevalue(layout), tmp_path / "out")
    flip_in_place(weight_files(out)[0], name, 0)
    found = faults(out, files_only=True)
    assert [fault for fault in found if "other bytes" in fault.sentence]
    told = CONTENT if layout == "merged_safetensors" else "damaged since the file was written"
    (origin,) = tensors_in(found, told)
    assert name in origin


@pytest.mark.parametrize("bit", [0, 5, 10, 14, 15])
@pytest.mark.parametrize("name", KINDS)
def test_one_flipped_bit_during_the_merge_is_found_by_the_arithmetic(
    tmp_path: Path, merged: Path, sums: Tensors, name: str, bit: int
) -> None:
    out = copied(merged, tmp_path / "out")
    spoil(out, flip(name, bit, sums))
    vouch(out)
    found = faults(out)
    assert len(found) == 1, "the manifest agrees, and only this tensor is wrong"
    (origin,) = tensors_in(found, NUMBERS)
    assert name in origin
    assert "1 of" in found[0].facts["found"]


@pytest.mark.parametrize("vouched", [False, True])
def test_two_swapped_layers_are_both_named(tmp_path: Path, merged: Path, vouched: bool) -> None:
    out = copied(merged, tmp_path / "out")

    def swap(tensors: Tensors) -> None:
        tensors[Q], tensors[OTHER_Q] = tensors[OTHER_Q], tensors[Q]

    spoil(out, swap)
    if vouched:
        vouch(out)
    found = faults(out)
    for name in (Q, OTHER_Q):
        assert any(name in origin for origin in tensors_in(found, NUMBERS))
    if not vouched:
        told = "\n".join(
            fault.facts["found"] for fault in found if fault.sentence.endswith(CONTENT)
        )
        assert f"which is that of {Q}" in told


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_adapter_is_found(
    tmp_path: Path, base: Path, adapter: Path, second: Path, missing: int
) -> None:
    both = [adapter, second]
    kept = both[1 - missing]
    tokenizer = adapter if missing else None
    merge_lora(base, kept, tmp_path / "out", output_type="huggingface", tokenizer=tokenizer)
    found = faults(tmp_path / "out", base_model=base, lora_model=both)
    assert any(Q in origin for origin in tensors_in(found, NUMBERS))


def test_no_adapter_at_all_is_told_as_such(tmp_path: Path, base: Path, second: Path) -> None:
    none = tmp_path / "out"
    merge_lora(base, second, none, output_type="huggingface", lora_weights="0")
    found = faults(none, base_model=base, lora_model=second, lora_weights="1")
    assert len(tensors_in(found, NUMBERS)) == 14
    assert {fault.facts["remedy"].partition(":")[0] for fault in found} == {
        "it looks as if the adapter had not been merged"
    }


@pytest.mark.parametrize("factor", ["2", "0.5", "1.01"])
def test_scaling_that_is_off_is_found_and_measured(
    tmp_path: Path, base: Path, adapter: Path, factor: str
) -> None:
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", lora_weights=factor)
    found = faults(tmp_path / "out", lora_weights="1")
    assert len(tensors_in(found, NUMBERS)) == 14
    for fault in found:
        assert f"what was added is {float(factor):.3g} times" in fault.facts["found"]


@pytest.mark.parametrize("name", ["wq", "wk"])
def test_q_and_k_without_their_order_are_found(
    tmp_path: Path, merged: Path, merged_pth: Path, name: str
) -> None:
    out = copied(merged_pth, tmp_path / "out")
    (path,) = weight_files(merged)
    hugging_face = torch.load(path, weights_only=True)
    letter = name[-1]

    def change(tensors: Tensors) -> None:
        tensors[f"layers.1.attention.{name}.weight"] = hugging_face[
            f"{LAYER}self_attn.{letter}_proj.weight"
        ]

    spoil(out, change)
    vouch(out, contents=False)
    found = faults(out)
    assert len(tensors_in(found, NUMBERS)) == 1
    assert "rotary order" in found[-1].facts["remedy"]


def test_a_replaced_row_that_is_the_base_s_is_found(
    tmp_path: Path, merged: Path, base: Path
) -> None:
    out = copied(merged, tmp_path / "out")
    name = "lm_head.weight"
    before = load_weights(base)[name]

    def change(tensors: Tensors) -> None:
        tensors[name][100] = before[100]

    spoil(out, change)
    vouch(out)
    (found,) = faults(out)
    assert "at [100, 0]" in found.facts["expected"]


def test_rounding_toward_zero_is_found(tmp_path: Path, merged: Path, sums: Tensors) -> None:
    """Half of all elements are one unit off, which no norm or sum would notice."""
    out = copied(merged, tmp_path / "out")

    def change(tensors: Tensors) -> None:
        was_rounded_up = tensors[Q].double().abs() > sums[Q].abs()
        tensors[Q].view(torch.int16).sub_(was_rounded_up.short())

    spoil(out, change)
    vouch(out)
    (found,) = faults(out)
    assert Q in found.facts["tensor"]
    off = int(re.findall(r"([\d,]+) of", found.facts["found"])[0].replace(",", ""))
    assert off > 0.4 * sums[Q].numel()


def test_a_nan_is_found(tmp_path: Path, merged: Path) -> None:
    out = copied(merged, tmp_path / "out")

    def change(tensors: Tensors) -> None:
        tensors[Q][3, 4] = float("nan")

    spoil(out, change)
    vouch(out)
    (found,) = faults(out)
    assert "at [3, 4]" in found.facts["expected"]
    assert found.facts["found"].startswith("nan")


def test_another_base_is_told_from_a_wrong_merge(tmp_path: Path, merged: Path) -> None:
    other = make_base(tmp_path / "base", num_key_value_heads=4, seed=1)
    found = faults(merged, base_model=other)
    assert "the base is not the one that was merged" in found[0].sentence
    assert not tensors_in(found, NUMBERS)


def test_another_adapter_is_told(tmp_path: Path, merged: Path, base: Path) -> None:
    other = make_adapter(tmp_path / "other", base, rows=151, seed=2)
    found = faults(merged, lora_model=other)
    assert "an adapter is not the one that was merged" in found[0].sentence
    assert found[0].facts["file"].startswith(str(other))


def test_the_command_tells_each_fault_and_ends_with_1(
    tmp_path: Path, merged_safetensors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output_dir", str(merged_safetensors)]) == 0
    assert capsys.readouterr().out.startswith("OK:")
    out = copied(merged_safetensors, tmp_path / "out")
    flip_in_place(weight_files(out)[0], Q, 3)
    assert main(["--output_dir", str(out)]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("FAILED: 3 faults")
    assert told.err.count("FAILED: ") == 3
    assert "expected: " in told.err


def test_inputs_that_are_gone_are_asked_for(tmp_path: Path, merged: Path) -> None:
    out = copied(merged, tmp_path / "out")
    said = manifest(out)
    said["inputs"]["base_model"]["source"] = str(tmp_path / "gone")
    (out / "merge_manifest.json").write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be checked") as caught:
        verify_merge(out)
    assert "--files_only" in caught.value.facts["remedy"]
    assert not verify_merge(out, files_only=True).faults


def test_a_folder_without_a_manifest_needs_to_be_told_of_what_it_was_made(
    tmp_path: Path, merged: Path, base: Path, adapter: Path
) -> None:
    out = copied(merged, tmp_path / "out")
    (out / "merge_manifest.json").unlink()
    with pytest.raises(MergeError, match="no manifest"):
        verify_merge(out)
    assert not verify_merge(out, base_model=base, lora_model=adapter).faults


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}},
        {"files": {"config.json": {"bytes": "1", "sha256": ""}}},
        {"files": {"config.json": 7}},
        {"tensors": {"lm_head.weight": None}},
        {"inputs": {"base_model": 3}},
        {"inputs": {"base_model": {"source": "x", "tensors": 3}}},
        {"inputs": {"adapters": {}}},
    ],
    ids=str,
)
def test_a_manifest_of_another_form_is_refused(
    tmp_path: Path, merged: Path, change: dict[str, Any]
) -> None:
    out = copied(merged, tmp_path / "out")
    text = json.dumps(manifest(out) | change)
    (out / "merge_manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(MergeError, match="not one of this program"):
        verify_merge(out)


def test_a_check_that_is_interrupted_ends_its_threads(merged: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        verify_merge(merged, on_progress=interrupt)
    assert not set(threading.enumerate()) - before
