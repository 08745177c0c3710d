"""Numbers beside the weights: each that a result has otherwise than its model is a fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from merge import convert_checkpoint, merge_lora, verify_merge
from merge.errors import MergeError
from tests.kit.models import LLAMA_ROWS, adapter_tensors, base_config, save_adapter, save_base

ANOTHER = "the configuration of the result is another than that of its model"
TIED = "the configuration of the result contradicts its model"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter, and their merge without a manifest in two layouts."""
    folder = tmp_path_factory.mktemp("made")
    save_base(folder / "base")
    save_adapter(folder / "lora", adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    for layout in ("huggingface", "pth"):
        merge_lora(folder / "base", folder / "lora", folder / layout, output_type=layout)
        (folder / layout / "merge_manifest.json").unlink()
    return folder


def changed(folder: Path, to: Path, **keys: object) -> Path:
    """A copy of a model whose configuration says something else; None takes a key away."""
    out = Path(shutil.copytree(folder, to))
    path = out / ("params.json" if (out / "params.json").is_file() else "config.json")
    config = json.loads(path.read_text(encoding="utf-8")) | keys
    kept = {key: value for key, value in config.items() if value is not None or key not in keys}
    path.write_text(json.dumps(kept), encoding="utf-8")
    return out


def verified(out: Path, made: Path) -> tuple[list[MergeError], list[str]]:
    found = verify_merge(out, base_model=made / "base", lora_model=made / "lora")
    return list(found.faults), list(found.unchecked)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("rms_norm_eps", 1e-1, "1e-06"),
        ("rope_theta", 5.0, "10000.0"),
        ("hidden_act", "gelu", '"silu"'),
        ("max_position_embeddings", 4096, "2048"),
        ("rope_scaling", {"type": "linear", "factor": 4.0}, "null"),
        ("mlp_bias", 1, "false"),
    ],
)
def test_another_number_in_config_json_is_found(
    tmp_path: Path, made: Path, key: str, value: object, expected: str
) -> None:
    out = changed(made / "huggingface", tmp_path / "out", **{key: value})
    (fault,) = verified(out, made)[0]
    assert fault.sentence == ANOTHER
    assert fault.facts["file"] == str(out / "config.json")
    assert fault.facts["expected"].startswith(f'"{key}": {expected}, as in {made / "base"}')
    assert fault.facts["found"].startswith(f'"{key}": ')


@pytest.mark.parametrize("key", ["num_attention_heads", "num_key_value_heads", "hidden_size"])
def test_other_heads_and_sizes_are_found(tmp_path: Path, made: Path, key: str) -> None:
    """Some leave every shape as it is: eight heads of two are as wide as four of four."""
    value = base_config()[key] * 2
    more = {"head_dim": 2, "num_key_value_heads": 4} if key == "num_attention_heads" else {}
    assert verified(changed(made / "huggingface", tmp_path / "out", **{key: value}, **more), made)[
        0
    ]


@pytest.mark.parametrize(("key", "value"), [("norm_eps", 0.5), ("rope_theta", 7.0), ("n_heads", 2)])
def test_another_number_in_params_json_is_found(
    tmp_path: Path, made: Path, key: str, value: object
) -> None:
    more = {"n_kv_heads": 1} if key == "n_heads" else {}
    out = changed(made / "pth", tmp_path / "out", **{key: value}, **more)
    found = [fault for fault in verified(out, made)[0] if fault.sentence == ANOTHER]
    assert found
    assert {fault.facts["file"] for fault in found} == {str(out / "params.json")}


def test_the_same_numbers_in_other_words_are_right(tmp_path: Path, made: Path) -> None:
    """As transformers 5 writes them, with what went without saying, and with what is no number."""
    words: dict[str, Any] = {
        "rope_theta": None,
        "rope_scaling": None,
        "rope_parameters": {"rope_theta": 10000, "rope_type": "default"},
        "head_dim": 4,
        "mlp_bias": False,
        "transformers_version": "5.0.0",
        "attention_dropout": 0.5,
        "_name_or_path": "elsewhere",
    }
    out = changed(made / "huggingface", tmp_path / "out", **words)
    assert verified(out, made) == ([], [])


def test_what_only_one_side_says_is_told_not_to_be_checked(tmp_path: Path, made: Path) -> None:
    out = changed(made / "huggingface", tmp_path / "out", logit_scale=3.0)
    faults, (line,) = verified(out, made)
    assert not faults
    assert '"logit_scale": 3.0' in line


def test_a_head_that_is_tied_by_the_configuration_alone_is_found(
    tmp_path: Path, made: Path
) -> None:
    """A reader takes the embeddings then, whatever LM head is in the file."""
    out = changed(made / "huggingface", tmp_path / "out", tie_word_embeddings=True)
    faults, _ = verified(out, made)
    assert [fault.sentence for fault in faults] == [
        TIED,
        "a tensor is not what its inputs make of it",
    ]
    assert "embed_tokens" in faults[1].facts["tensor"]


def test_a_vocab_size_that_is_not_the_rows_is_found(tmp_path: Path, made: Path) -> None:
    out = changed(made / "huggingface", tmp_path / "out", vocab_size=LLAMA_ROWS + 8)
    (fault,) = verified(out, made)[0]
    assert fault.facts["found"] == f'"vocab_size": {LLAMA_ROWS + 8}'
    assert fault.facts["expected"].startswith(f'"vocab_size": {LLAMA_ROWS}')


def test_an_adapter_s_own_configuration_is_that_of_the_result(tmp_path: Path, made: Path) -> None:
    """As long-context adapters have one; a program that does not know takes the base's."""
    lora = Path(shutil.copytree(made / "lora", tmp_path / "lora"))
    config = base_config(rope_scaling={"type": "linear", "factor": 2.0})
    (lora / "config.json").write_text(json.dumps(config), encoding="utf-8")
    out = tmp_path / "out"
    merge_lora(made / "base", lora, out, output_type="huggingface")
    assert not verify_merge(out).faults
    assert not verify_merge(made / "huggingface", base_model=made / "base", lora_model=lora).faults
    wrong = changed(out, tmp_path / "wrong", rope_scaling={"type": "linear", "factor": 8.0})
    assert ANOTHER in [fault.sentence for fault in verify_merge(wrong).faults]


def test_a_context_length_that_meta_s_layout_does_not_say_is_not_checked(
    tmp_path: Path, made: Path
) -> None:
    lora = save_adapter(tmp_path / "lora")
    meta, out = tmp_path / "meta", tmp_path / "out"
    convert_checkpoint(made / "base", meta, output_type="pth")
    merge_lora(meta, lora, out, output_type="huggingface", context_length=777)
    found = verify_merge(out)
    assert not found.faults
    assert [line for line in found.unchecked if '"max_position_embeddings": 777' in line]
    assert not verify_merge(out, context_length=777).unchecked
