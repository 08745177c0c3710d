"""Files of a result that are cut off, missing, or not those of its weights: each is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from merge import merge_lora
from tests.kit.files import copied
from tests.kit.spoiled_results import (
    faults,
    vouch,
    weight_files,
)
from tests.kit.tokenizer_models import write_tokenizer

Q = "model.layers.1.self_attn.q_proj.weight"


def test_a_truncated_shard_is_found(tmp_path: Path, base: Path, adapter: Path) -> None:
    out = tmp_path / "out"
    merge_lora(base, adapter, out, output_type="huggingface", max_shard_size="50KB")
    cut = weight_files(out)[2]
    whole = cut.stat().st_size
    with cut.open("r+b") as stream:
        stream.truncate(whole - 1000)
    found = faults(out)
    assert found[0].sentence == "a file is cut off"
    assert found[0].facts == {
        "file": str(cut),
        "expected": f"{whole:,} bytes",
        "found": f"{whole - 1000:,} bytes",
        "remedy": found[0].facts["remedy"],
    }


@pytest.mark.parametrize("vouched", [False, True])
def test_an_index_that_names_the_wrong_file_is_found(
    tmp_path: Path, base: Path, adapter: Path, vouched: bool
) -> None:
    out = tmp_path / "out"
    merge_lora(base, adapter, out, output_type="huggingface", max_shard_size="50KB")
    index = out / "pytorch_model.bin.index.json"
    said = json.loads(index.read_text(encoding="utf-8"))
    files = sorted(set(said["weight_map"].values()))
    right = said["weight_map"][Q]
    said["weight_map"][Q] = next(file for file in files if file != right)
    index.write_text(json.dumps(said), encoding="utf-8")
    if vouched:
        vouch(out, contents=False)
    found = faults(out)
    assert any("the index names a tensor that its file does not hold" in str(f) for f in found)
    assert any(f.facts.get("tensor") == Q for f in found)


@pytest.mark.parametrize("pieces", [150, 152])
@pytest.mark.parametrize("layout", ["merged", "merged_pth"])
def test_a_tokenizer_that_is_off_by_one_piece_is_found(
    tmp_path: Path, layout: str, pieces: int, request: pytest.FixtureRequest
) -> None:
    out = copied(request.getfixturevalue(layout), tmp_path / "out")
    write_tokenizer(out, pieces)
    vouch(out, contents=False)
    (found,) = faults(out)
    assert found.sentence == "tokenizer and rows do not belong together"
    assert found.facts["expected"].startswith("151 tokens")
    assert found.facts["found"].startswith(f"{pieces} tokens")


def test_a_tokenizer_in_another_order_is_found(tmp_path: Path, merged: Path) -> None:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    out = copied(merged, tmp_path / "out")
    model = ModelProto.FromString((out / "tokenizer.model").read_bytes())
    model.pieces[120].piece, model.pieces[121].piece = (
        model.pieces[121].piece,
        model.pieces[120].piece,
    )
    (out / "tokenizer.model").write_bytes(model.SerializeToString())
    vouch(out, contents=False)
    (found,) = faults(out)
    assert "another token" in found.sentence
    assert "as token 120" in found.facts["expected"]


def test_special_ids_of_another_tokenizer_are_found(tmp_path: Path, merged: Path) -> None:
    out = copied(merged, tmp_path / "out")
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"eos_token_id": 0}), encoding="utf-8")
    vouch(out)
    (found,) = faults(out)
    assert found.facts["found"] == "eos_token_id 0"


def test_files_that_are_missing_or_too_many_are_found(tmp_path: Path, merged: Path) -> None:
    out = copied(merged, tmp_path / "out")
    (out / "generation_config.json").unlink()
    shutil.copy(weight_files(out)[0], out / "consolidated.00.pth")
    found = faults(out, files_only=True)
    assert [Path(fault.facts["file"]).name for fault in found] == [
        "generation_config.json",
        "consolidated.00.pth",
    ]
