"""Rows and tensors of a result must be those that its inputs and options give, and no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import apply_delta, merge_lora, verify_merge
from merge.errors import AdapterError, LayoutError, MergeError, UsageError
from merge.jobs.resize_vocabulary import resize_vocabulary
from tests.kit.files import Tensors
from tests.kit.models import (
    BASE_ROWS,
    HIDDEN,
    LLAMA_ROWS,
    Q_PROJ,
    adapter_tensors,
    base_tensors,
    save_adapter,
    save_base,
)
from tests.kit.spoiled_results import manifest, spoil, vouch
from tests.kit.tokenizer_models import tokenizer_model

VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
SHAPE = "another shape than its inputs give"
HF: dict[str, Any] = {"output_type": "huggingface", "safe_serialization": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, an adapter and their merge."""
    folder = tmp_path_factory.mktemp("made")
    save_base(folder / "base")
    save_adapter(folder / "lora", adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    merge_lora(folder / "base", folder / "lora", folder / "out", **HF)
    return folder


def faults(out: Path, made: Path | None = None, **options: Any) -> list[MergeError]:
    """What is wrong with ``out``; with ``made`` it has no manifest and these inputs."""
    if made is not None:
        (out / "merge_manifest.json").unlink(missing_ok=True)
        options = {"base_model": made / "base", "lora_model": made / "lora"} | options
    return list(verify_merge(out, **options).faults)


def with_rows(out: Path, rows: int) -> None:
    """Cut a vocabulary, or make rows up, in everything that tells of it."""

    def change(tensors: Tensors) -> None:
        for name in VOCABULARY:
            more = torch.full((max(0, rows - len(tensors[name])), HIDDEN), 9.0).half()
            tensors[name] = torch.cat([tensors[name][:rows], more])

    spoil(out, change)
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"vocab_size": rows}), encoding="utf-8")
    (out / "tokenizer.model").write_bytes(tokenizer_model(rows))
    said = manifest(out)
    for name in VOCABULARY:
        said["tensors"][name]["shape"][0] = rows
    (out / "merge_manifest.json").write_text(json.dumps(said), encoding="utf-8")
    vouch(out)


@pytest.mark.parametrize("rows", [LLAMA_ROWS - 1, BASE_ROWS, LLAMA_ROWS + 3])
@pytest.mark.parametrize("with_manifest", [True, False], ids=["vouched", "without-manifest"])
def test_other_rows_than_the_inputs_give_are_found(
    tmp_path: Path, made: Path, rows: int, with_manifest: bool
) -> None:
    """Embeddings, LM head, tokenizer, config.json and manifest agree with each other."""
    out = Path(shutil.copytree(made / "out", tmp_path / "out"))
    with_rows(out, rows)
    found = [f for f in faults(out, None if with_manifest else made) if SHAPE in f.sentence]
    assert len(found) == 2
    for fault in found:
        assert fault.facts["expected"] == f"{LLAMA_ROWS} rows"
        assert fault.facts["found"] == f"{rows} rows"


def test_a_tokenizer_cut_beside_padded_rows_is_found(tmp_path: Path) -> None:
    """Rows that the base has too may lack a token, but only those that had none in it."""
    folder = tmp_path
    save_base(folder / "base")
    save_adapter(folder / "lora")
    merge_lora(folder / "base", folder / "lora", folder / "out", **HF)
    assert not faults(folder / "out", folder)
    (folder / "out/tokenizer.model").write_bytes(tokenizer_model(BASE_ROWS - 5))
    (found,) = faults(folder / "out", folder)
    assert found.facts["found"] == f"{BASE_ROWS - 5} tokens"


def test_an_invented_tensor_is_found(tmp_path: Path, made: Path) -> None:
    out = Path(shutil.copytree(made / "out", tmp_path / "out"))
    bias = f"{Q_PROJ}.bias"
    spoil(out, lambda tensors: tensors.update({bias: torch.ones(HIDDEN).half()}))
    path = out / "model.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"][bias] = index["weight_map"][VOCABULARY[0]]
    path.write_text(json.dumps(index), encoding="utf-8")
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"attention_bias": True}), encoding="utf-8")
    found = faults(out, made)
    (tensor,) = (f for f in found if "none of its inputs has" in f.sentence)
    assert tensor.facts["tensor"] == bias
    assert any('"attention_bias": true' in f.facts["found"] for f in found)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge whose tokenizer has more tokens than base and adapter have rows."""
    folder = tmp_path_factory.mktemp("grown")
    save_base(folder / "base")
    save_adapter(folder / "lora", pieces=BASE_ROWS + 6)
    merge_lora(folder / "base", folder / "lora", folder / "out", new_token_init="mean", **HF)
    return folder


def test_rows_for_new_tokens_are_as_many_as_the_recorded_option_gives(
    tmp_path: Path, grown: Path
) -> None:
    assert manifest(grown / "out")["new_token_init"] == "mean"
    assert not faults(grown / "out")
    for rows in (BASE_ROWS, BASE_ROWS + 4):
        out = Path(shutil.copytree(grown / "out", tmp_path / f"{rows}"))
        with_rows(out, rows)
        sentences = [fault.sentence for fault in faults(out)]
        assert "the tokenizer is not the one to which the vocabulary was grown" in sentences
    out = Path(shutil.copytree(grown / "out", tmp_path / "untold"))
    untold = manifest(out) | {"new_token_init": None}
    (out / "merge_manifest.json").write_text(json.dumps(untold), encoding="utf-8")
    assert [f.facts["expected"] for f in faults(out) if SHAPE in f.sentence] == ["40 rows"] * 2


def test_without_a_manifest_the_options_explain_new_rows(tmp_path: Path, grown: Path) -> None:
    out = Path(shutil.copytree(grown / "out", tmp_path / "out"))
    assert len(faults(out, grown)) == 2
    assert not faults(out, grown, new_token_init="mean")
    inputs = {"base_model": grown / "base", "lora_model": grown / "lora"}
    (assumed,) = (line for line in verify_merge(out, **inputs).checked if "assumed" in line)
    assert "--vocab_mismatch error, no --new_token_init" in assumed


@pytest.mark.parametrize(("mismatch", "rows"), [("keep_base_rows", 60), ("truncate", BASE_ROWS)])
def test_rows_that_an_adapter_lacks_are_kept_or_cut_as_recorded(
    tmp_path: Path, mismatch: str, rows: int
) -> None:
    base = save_base(tmp_path / "base", base_tensors(rows=60), vocab_size=60, pieces=60)
    lora = save_adapter(tmp_path / "lora", adapter_tensors(BASE_ROWS), pieces=BASE_ROWS)
    out = tmp_path / "out"
    merge_lora(base, lora, out, vocab_mismatch=mismatch, **HF)
    assert not faults(out)
    said = manifest(out)
    assert said["vocab_mismatch"] == mismatch
    other = {"keep_base_rows": "truncate", "truncate": "keep_base_rows"}[mismatch]
    (out / "merge_manifest.json").write_text(json.dumps(said | {"vocab_mismatch": other}))
    assert [f.facts["found"] for f in faults(out) if SHAPE in f.sentence] == [f"{rows} rows"] * 2
    assert not faults(out, tmp_path, vocab_mismatch=mismatch)


@pytest.mark.parametrize("multiple", [None, 16])
@pytest.mark.parametrize("padding", [0, 3])
def test_a_resized_vocabulary_has_the_rows_of_its_tokenizer(
    tmp_path: Path, padding: int, multiple: int | None
) -> None:
    """Rows of padding in the base become rows of new tokens."""
    rows = BASE_ROWS + padding
    base = save_base(tmp_path / "base", base_tensors(rows=rows), vocab_size=rows)
    (tmp_path / "larger").mkdir()
    (tmp_path / "larger/tokenizer.model").write_bytes(tokenizer_model(50))
    out = tmp_path / "out"
    resize_vocabulary(base, tmp_path / "larger", out, pad_to_multiple_of=multiple)
    assert not faults(out)
    said = manifest(out) | {"pad_to_multiple_of": 7}
    (out / "merge_manifest.json").write_text(json.dumps(said), encoding="utf-8")
    assert [f.facts["expected"] for f in faults(out)] == ["56 rows"] * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": HIDDEN * 2}, "does not fit the model"),
        ({"b": None}, "no two factors"),
        ({"b": (HIDDEN, 3)}, "no two factors"),
    ],
    ids=["other-size", "half", "ranks"],
)
def test_an_adapter_that_does_not_fit_is_refused(
    tmp_path: Path, made: Path, change: dict[str, Any], words: str
) -> None:
    tensors = adapter_tensors(hidden=change.get("hidden", HIDDEN))
    if "b" in change:
        name = next(name for name in tensors if "lora_B" in name)
        del tensors[name]
        if change["b"] is not None:
            tensors[name] = torch.ones(change["b"])
    other = save_adapter(tmp_path / "other", tensors)
    with pytest.raises(AdapterError, match=words):
        verify_merge(made / "out", base_model=made / "base", lora_model=other)


def test_another_base_of_another_size_is_told_by_its_shapes(tmp_path: Path, made: Path) -> None:
    tensors = {name: tensor.repeat_interleave(2, 0) for name, tensor in base_tensors().items()}
    sizes = {"vocab_size": 80, "hidden_size": 16, "head_dim": 8, "intermediate_size": 48}
    for name in tensors:
        if "norm" in name or "down_proj" in name or "o_proj" in name:
            tensors[name] = base_tensors()[name]
        if "o_proj" in name or "down_proj" in name:
            tensors[name] = tensors[name].repeat_interleave(2, 1)
    other = save_base(tmp_path / "base", tensors, pieces=80, **sizes)
    plain = save_adapter(tmp_path / "plain", {})
    found = list(verify_merge(made / "out", base_model=other, lora_model=plain).faults)
    shapes = {f.facts["expected"]: f.facts["found"] for f in found if SHAPE in f.sentence}
    assert shapes["(48, 16)"] == "(24, 16)"
    assert shapes["(16, 48)"] == "(16, 24)"


@pytest.mark.parametrize("change", ["rows", "columns"])
def test_a_delta_of_another_model_is_refused(tmp_path: Path, change: str) -> None:
    differences = {name: tensor * -0.5 for name, tensor in base_tensors().items()}
    base, delta = save_base(tmp_path / "base"), save_base(tmp_path / "delta", differences)
    apply_delta(base, delta, tmp_path / "out")
    assert not faults(tmp_path / "out")
    tensors = base_tensors()
    if change == "rows":
        tensors |= {name: tensors[name][:30].clone() for name in VOCABULARY}
    else:
        tensors = {
            name: torch.ones([size * 2 for size in tensor.shape])
            for name, tensor in tensors.items()
        }
    sizes = {"hidden_size": 32, "intermediate_size": 48} if change == "columns" else {}
    other = save_base(tmp_path / "other", tensors, pieces=30, **sizes)
    with pytest.raises(LayoutError, match="different models"):
        verify_merge(tmp_path / "out", base_model=base, delta_model=other)


@pytest.mark.parametrize(
    ("option", "value"),
    [("rounding", "twice"), ("vocab_mismatch", "drop"), ("new_token_init", "ones")],
)
def test_an_option_of_another_value_is_refused(made: Path, option: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"--{option} is not one of its values"):
        verify_merge(made / "out", **{option: value})  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="the result does not exist"):
        verify_merge("out\0put")
