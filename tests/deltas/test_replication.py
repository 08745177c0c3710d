"""Layers of the base that an adapter repeats: the result is the model that PEFT runs unmerged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import make_delta, merge_lora, verify_merge
from merge.errors import MergeError
from merge.layouts.replicated_layers import replicate_config
from tests.kit.adapters import (
    LINEAR,
    logits_of,
    logits_with_peft,
    make_lora,
    merge_with_peft,
)
from tests.kit.decoders import SIZES, make_decoder, make_tokenizer
from tests.kit.files import load_weights, save_shards
from tests.kit.llamas import make_base
from tests.kit.refusals import refused_merge
from tests.kit.run import run_merge

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

RANGES = [[0, 4], [2, 5]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base", num_hidden_layers=5)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Its second copies of layers 2 and 3 have matrices of their own."""
    folder = tmp_path_factory.mktemp("lora") / "lora"
    return make_lora(folder, base, target_modules=LINEAR, layer_replication=RANGES)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, base: Path, lora: Path) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "merged"
    merge_lora(base, lora, folder, output_type="huggingface")
    return folder


def spoil(adapter: Path, folder: Path, **fields: Any) -> Path:
    """A copy of an adapter with other fields in its configuration."""
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_result_says_what_peft_says_unmerged(tmp_path: Path, base: Path, lora: Path) -> None:
    report = merge_lora(base, lora, tmp_path / "out", output_type="huggingface", dtype="float32")
    assert "7 layers: copies of the base's 0 to 3, 2 to 4" in report.summary()
    torch.testing.assert_close(
        logits_of(tmp_path / "out"), logits_with_peft(base, lora), rtol=1e-4, atol=1e-3
    )


def test_trained_biases_are_those_of_every_copy(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", attention_bias=True)
    adapter = make_lora(tmp_path / "lora", base, layer_replication=[[0, 2], [1, 2]], bias="all")
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    found, expected = load_weights(tmp_path / "out"), merge_with_peft(base, [adapter])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("output", ["huggingface", "pth", "gguf"])
def test_every_output_has_the_layers_and_is_verified(
    tmp_path: Path, base: Path, lora: Path, output: str
) -> None:
    merge_lora(base, lora, tmp_path / "out", output_type=output)
    assert count_layers(tmp_path / "out") == 7
    found = verify_merge(tmp_path / "out")
    assert [str(fault) for fault in found.faults] == []
    assert any("66 tensors, each element" in line for line in found.checked)
    manifest = json.loads((tmp_path / "out" / "merge_manifest.json").read_text(encoding="utf-8"))
    digests = manifest["inputs"]["base_model"]["tensors"]
    assert all(digests.values())
    assert max(int(name.split(".")[2]) for name in digests if "layers" in name) == 4


def count_layers(folder: Path) -> int:
    """The number of layers by the configuration that goes with the output."""
    if (folder / "params.json").is_file():
        return int(json.loads((folder / "params.json").read_text(encoding="utf-8"))["n_layers"])
    if (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return int(config["num_hidden_layers"])
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    fields = gguf.GGUFReader(next(folder.glob("*.gguf"))).fields
    return int(fields["llama.block_count"].contents())


def test_decoder_other_than_llama_keeps_what_it_lists_for_each_layer(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    base = make_decoder(tmp_path / "base", "Qwen2Config", SIZES, tokenizer)
    adapter = make_lora(tmp_path / "lora", base, layer_replication=[[0, 2], [0, 2]])
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    assert config["layer_types"] == ["full_attention"] * 2
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    written = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert written["layer_types"] == ["full_attention"] * 4
    # PEFT's own model does not run in transformers 5: its layer_types stay those of two layers.
    found, expected = load_weights(tmp_path / "out"), merge_with_peft(base, [adapter])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(logits_of(tmp_path / "out")).all()
    assert verify_merge(tmp_path / "out").faults == ()


def test_copies_keep_the_attention_of_their_layers(tmp_path: Path) -> None:
    config = {"model_type": "qwen3", "num_hidden_layers": 2, "layer_types": ["full", "sliding"]}
    changed = replicate_config(config, (1, 0, 1), tmp_path)
    assert changed["layer_types"] == ["sliding", "full", "sliding"]
    assert changed["num_hidden_layers"] == 3


def test_dense_delta_comes_before_the_copies(tmp_path: Path, base: Path, lora: Path) -> None:
    target = make_base(tmp_path / "target", num_hidden_layers=5, seed=7)
    make_delta(base, target, tmp_path / "delta")
    options: dict[str, Any] = {"output_type": "huggingface", "delta_model": tmp_path / "delta"}
    merge_lora(base, lora, tmp_path / "out", **options, dtype="float32")
    merge_lora(target, lora, tmp_path / "direct", output_type="huggingface", dtype="float32")
    found, expected = load_weights(tmp_path / "out"), load_weights(tmp_path / "direct")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-2, msg=name)
    assert verify_merge(tmp_path / "out").faults == ()


def test_gguf_base_gets_the_number_of_its_layers(tmp_path: Path, base: Path, lora: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    from merge import convert_checkpoint

    convert_checkpoint(base, tmp_path / "base", output_type="gguf", outtype="f32")
    merge_lora(next((tmp_path / "base").glob("*.gguf")), lora, tmp_path / "out", output_type="gguf")
    assert count_layers(tmp_path / "out") == 7
    tensors = gguf.GGUFReader(next((tmp_path / "out").glob("*.gguf"))).tensors
    assert sum(tensor.name.endswith("attn_q.weight") for tensor in tensors) == 7
    assert verify_merge(tmp_path / "out").faults == ()


def test_adapter_after_it_is_one_of_the_larger_model(
    tmp_path: Path, base: Path, lora: Path, merged: Path
) -> None:
    second = make_lora(tmp_path / "second", merged, seed=2)
    merge_lora(base, [lora, second], tmp_path / "out", output_type="huggingface", dtype="float32")
    found, expected = load_weights(tmp_path / "out"), merge_with_peft(base, [lora, second])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert verify_merge(tmp_path / "out").faults == ()


def test_adapter_after_it_that_lacks_the_copies_is_refused(
    tmp_path: Path, base: Path, lora: Path
) -> None:
    small = make_lora(tmp_path / "small", base)
    with pytest.raises(MergeError, match="lacks LoRA matrices that were trained"):
        merge_lora(base, [lora, small], tmp_path / "out", output_type="huggingface")


def test_it_must_be_the_first_of_a_chain(tmp_path: Path, base: Path, lora: Path) -> None:
    plain = make_lora(tmp_path / "plain", base)
    with pytest.raises(MergeError, match="must be the first one"):
        merge_lora(base, [plain, lora], tmp_path / "out", output_type="huggingface")
    assert not (tmp_path / "out").exists()


def test_without_a_manifest_each_copy_is_held_against_its_own_layer(
    tmp_path: Path, base: Path, lora: Path, merged: Path
) -> None:
    folder = tmp_path / "spoiled"
    shutil.copytree(merged, folder)
    (folder / "merge_manifest.json").unlink()
    assert verify_merge(folder, base_model=base, lora_model=lora).faults == ()
    for path in (*folder.glob("*.bin"), *folder.glob("*.index.json")):
        path.unlink()
    tensors = load_weights(merged)
    second, fourth = (f"model.layers.{n}.mlp.up_proj.weight" for n in (2, 4))
    tensors[second], tensors[fourth] = tensors[fourth], tensors[second]
    save_shards(tensors, folder, ".bin", "1GB")
    faults = verify_merge(folder, base_model=base, lora_model=lora).faults
    assert {fault.facts["tensor"].split(":")[-1].strip() for fault in faults} == {second, fourth}


@pytest.mark.parametrize(
    "ranges",
    [
        [[0, 6]],
        [[-2, 0]],
        [[3, 3]],
        [[4, 2]],
        [[0, 5]] * 300,
        [[0, 1 << 70]],
        [[0, 1.5]],
        [[0, True]],
        [[0]],
        [0, 2],
        "[[0, 2]]",
        {"0": 2},
        True,
        7,
    ],
    ids=str,
)
def test_ranges_that_no_model_can_have_are_refused(
    tmp_path: Path, base: Path, lora: Path, ranges: Any
) -> None:
    adapter = spoil(lora, tmp_path / "adapter", layer_replication=ranges)
    error = refused_merge(base, adapter, tmp_path / "out")
    assert error.facts["file"] == str(adapter / "adapter_config.json")


def test_refusal_is_one_message_and_exit_code_2(tmp_path: Path, base: Path, lora: Path) -> None:
    adapter = spoil(lora, tmp_path / "adapter", layer_replication=[[0, 9]])
    done = run_merge(
        *("--base_model", base, "--lora_model", adapter, "--output_dir", tmp_path / "out")
    )
    assert done.returncode == 2
    assert "repeats layers that the base model does not have" in done.stderr
    assert "Traceback" not in done.stderr


def test_tensors_of_layers_that_the_ranges_do_not_make_are_refused(
    tmp_path: Path, base: Path, lora: Path
) -> None:
    adapter = spoil(lora, tmp_path / "adapter", layer_replication=[[0, 5]])
    error = refused_merge(base, adapter, tmp_path / "out")
    assert error.facts["tensor"].startswith("model.layers.")


def test_start_that_depends_on_the_base_is_refused(tmp_path: Path, base: Path, lora: Path) -> None:
    adapter = spoil(lora, tmp_path / "adapter", init_lora_weights="pissa")
    assert (
        "layer replication together with" in refused_merge(base, adapter, tmp_path / "o").sentence
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model_type": "gemma2"}, "\"model_type\": 'gemma2'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "max_window_layers"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, 'layer_types" for other'),
    ],
)
def test_base_whose_layers_depend_on_their_place_is_refused(
    tmp_path: Path, base: Path, lora: Path, fields: dict[str, Any], told: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8")) | fields
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(MergeError, match="in another place") as caught:
        merge_lora(other, lora, tmp_path / "out", output_type="huggingface")
    assert told in caught.value.facts["found"]
