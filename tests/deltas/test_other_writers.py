"""Adapters and bases as other tools than PEFT's save_pretrained write them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM

from merge import merge_lora, verify_merge
from merge.errors import AdapterError, LayoutError, MergeError
from tests.kit.adapters import make_adapter
from tests.kit.files import Tensors, load_weights, save_shards, tree, write_json
from tests.kit.llamas import make_base
from tests.kit.models import save_adapter, save_base
from tests.kit.run import run_merge
from tests.kit.tokenizer_models import write_tokenizer

HF: dict[str, Any] = {"output_type": "huggingface", "dtype": "float32"}


def require_peft(base: Path, adapter: Path, out: Path) -> None:
    """The merge is PEFT's, in float32, and verification agrees."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    require_equal(load_weights(out), expected)
    assert not verify_merge(out).faults


def require_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return make_adapter(tmp_path / "lora", base, modules_to_save=None)


def split_adapter(adapter: Path, count: int, index: bool) -> list[Path]:
    tensors = load_weights(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    names = sorted(tensors)
    files, weight_map = [], {}
    for n in range(count):
        path = adapter / f"adapter_model-{n + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[n::count]}
        save_file(part, path)
        weight_map |= dict.fromkeys(part, path.name)
        files.append(path)
    if index:
        said = {"metadata": {}, "weight_map": weight_map}
        write_json(adapter / "adapter_model.safetensors.index.json", said)
    return files


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
def test_adapter_in_several_files(tmp_path: Path, base: Path, adapter: Path, index: bool) -> None:
    whole = Path(shutil.copytree(adapter, tmp_path / "whole"))
    files = split_adapter(adapter, 3, index)
    merge_lora(base, adapter, tmp_path / "out", **HF)
    require_peft(base, whole, tmp_path / "out")
    said = json.loads((tmp_path / "out/merge_manifest.json").read_bytes())
    (entry,) = said["inputs"]["adapters"]
    assert {path.name for path in files} < {Path(file["file"]).name for file in entry["files"]}
    files[1].unlink()
    before = tree(tmp_path)
    with pytest.raises(AdapterError, match="a part of the adapter is missing") as caught:
        merge_lora(base, adapter, tmp_path / "other")
    assert files[1].name in caught.value.facts["file"]
    assert tree(tmp_path) == before


def test_one_tensor_in_two_files_of_an_adapter(tmp_path: Path, base: Path, adapter: Path) -> None:
    files = split_adapter(adapter, 2, index=False)
    shutil.copy(files[0], files[1])
    with pytest.raises(AdapterError, match="two files of the adapter hold the same tensor"):
        merge_lora(base, adapter, tmp_path / "out")


def test_checkpoint_of_fsdp_is_read_like_others(tmp_path: Path, base: Path, adapter: Path) -> None:
    whole = Path(shutil.copytree(adapter, tmp_path / "whole"))
    torch.save(load_weights(adapter), adapter / "pytorch_model_fsdp.bin")
    (adapter / "adapter_model.safetensors").unlink()
    merge_lora(base, adapter, tmp_path / "out", **HF)
    require_peft(base, whole, tmp_path / "out")


def test_part_of_one_process_is_refused_as_such(tmp_path: Path, base: Path, adapter: Path) -> None:
    """FSDP slices rows: A has half of its ranks, B half of its rows and all of its columns."""
    half = {name: tensor[: len(tensor) // 2] for name, tensor in load_weights(adapter).items()}
    save_file({k: v.contiguous() for k, v in half.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="one process's part") as caught:
        merge_lora(base, adapter, tmp_path / "out")
    assert caught.value.facts["found"] == "2 rows: 1 of 2 parts"
    assert not (tmp_path / "out").exists()


def test_folder_above_the_adapter_names_those_below(
    tmp_path: Path, base: Path, adapter: Path
) -> None:
    above = tmp_path / "run"
    for steps in (9, 300, 25):
        shutil.copytree(adapter, above / f"checkpoint-{steps}" / "adapter_model")
    with pytest.raises(AdapterError, match="folders below it do") as caught:
        merge_lora(base, above, tmp_path / "out")
    expected = ", ".join(f"checkpoint-{n}/adapter_model" for n in (300, 25, 9))
    assert caught.value.facts["found"] == expected
    assert str(above / "checkpoint-300/adapter_model") in caught.value.facts["remedy"]


def test_trainable_tokens_alone(tmp_path: Path, base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, TrainableTokensConfig(token_indices=[3, 50]))
    for name, parameter in adapted.named_parameters():
        if "trainable_tokens_delta" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "lora")
    merge_lora(base, tmp_path / "lora", tmp_path / "out", **HF)
    require_peft(base, tmp_path / "lora", tmp_path / "out")


def test_adapter_of_mlx_lm(tmp_path: Path, base: Path) -> None:
    """W + scale (A B)^T, as mlx_lm.fuse computes it."""
    torch.manual_seed(3)
    weights, expected = {}, {n: t.float() for n, t in load_weights(base).items()}
    for layer in (0, 1):
        for module in ("self_attn.q_proj", "mlp.down_proj"):
            name = f"model.layers.{layer}.{module}"
            out, into = expected[f"{name}.weight"].shape
            a, b = torch.randn(into, 4) * 0.1, torch.randn(4, out) * 0.1
            weights |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
            expected[f"{name}.weight"] = expected[f"{name}.weight"] + 20.0 * (a @ b).T
    adapter = tmp_path / "mlx"
    adapter.mkdir()
    save_file(weights, adapter / "adapters.safetensors")
    said = {"fine_tune_type": "lora", "num_layers": 2, "model": "llama", "batch_size": 4}
    said["lora_parameters"] = {"rank": 4, "scale": 20.0, "dropout": 0.0}
    write_json(adapter / "adapter_config.json", said)
    merge_lora(base, adapter, tmp_path / "out", **HF)
    require_equal(load_weights(tmp_path / "out"), expected)
    assert not verify_merge(tmp_path / "out").faults
    write_json(adapter / "adapter_config.json", said | {"fine_tune_type": "dora"})
    with pytest.raises(AdapterError, match=r"mlx-lm cannot be merged"):
        merge_lora(base, adapter, tmp_path / "dora")


def test_adapterhub_is_told_at_once(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    said = {"config": {"non_linearity": "relu"}, "model_class": "LlamaAdapterModel", "name": "x"}
    write_json(folder / "adapter_config.json", said)
    torch.save({"x": torch.ones(2)}, folder / "pytorch_adapter.bin")
    with pytest.raises(AdapterError, match="AdapterHub"):
        merge_lora(base, folder, tmp_path / "out")


WRAPPERS = ["module.", "_orig_mod.", "module._orig_mod.", "pretrained_model."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_words_are_taken_off_bases_and_adapters(
    tmp_path: Path, base: Path, adapter: Path, wrapper: str
) -> None:
    merge_lora(base, adapter, tmp_path / "plain", **HF)
    wrapped = tmp_path / "wrapped"
    wrapped.mkdir()
    shutil.copy(base / "config.json", wrapped)
    shutil.copy(base / "tokenizer.model", wrapped)
    save_shards({f"{wrapper}{n}": t for n, t in load_weights(base).items()}, wrapped)
    tensors = {f"{wrapper}{n}": t for n, t in load_weights(adapter).items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    merge_lora(wrapped, adapter, tmp_path / "out", **HF)
    require_equal(load_weights(tmp_path / "out"), load_weights(tmp_path / "plain"))
    assert not verify_merge(tmp_path / "out").faults


def test_adapter_of_automodel_fits_a_model_with_a_head(tmp_path: Path, base: Path) -> None:
    """Its names lack the inner model. that the base's have."""
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]))
    torch.manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "lora")
    expected = adapted.merge_and_unload().state_dict()
    report = merge_lora(base, tmp_path / "lora", tmp_path / "out", **HF)
    found = load_weights(tmp_path / "out")
    require_equal({n: found[f"model.{n}"] for n in expected}, dict(expected))
    assert 'names matched with "model." put before' in report.summary()
    assert not verify_merge(tmp_path / "out").faults


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_base_of_automodel_has_no_head(tmp_path: Path, kind: str) -> None:
    """As embedding models are published; an adapter of the whole model fits it."""
    from transformers import Qwen2Config, Qwen2Model

    if kind == "llama":
        whole = make_base(tmp_path / "whole")
        model = AutoModel.from_pretrained(whole, dtype=torch.float32)
    else:
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 101}
        model = Qwen2Model(Qwen2Config(**sizes))
    base = tmp_path / "base"
    model.save_pretrained(base)
    write_tokenizer(base, 101)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "lora")
    expected = dict(adapted.merge_and_unload().state_dict())
    merge_lora(base, tmp_path / "lora", tmp_path / "out", **HF)
    require_equal(load_weights(tmp_path / "out"), expected)
    assert not verify_merge(tmp_path / "out").faults
    again = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    require_equal(dict(again), expected)
    # The same adapter with the names of a model with a head.
    prefix = "base_model.model."
    tensors = load_weights(tmp_path / "lora")
    named = {k.replace(prefix, f"{prefix}model.", 1): v for k, v in tensors.items()}
    save_file(named, tmp_path / "lora/adapter_model.safetensors")
    report = merge_lora(base, tmp_path / "lora", tmp_path / "named", **HF)
    require_equal(load_weights(tmp_path / "named"), expected)
    assert 'names matched with "model." taken off' in report.summary()
    for output_type in ("pth", "gguf"):
        with pytest.raises(LayoutError, match=r"LLaMA") as caught:
            merge_lora(base, tmp_path / "lora", tmp_path / "no", output_type=output_type)
        assert caught.value.facts["file"] == str(base / "config.json")


def test_what_an_adapter_was_trained_on_is_told(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "lora", base_model_name_or_path="some/base-7b")
    assert "trained on some/base-7b" in merge_lora(base, adapter, tmp_path / "out").summary()


def test_kind_of_no_table_is_told_by_its_own_name(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "lora", peft_type="NEXT_YEAR")
    done = run_merge(
        "--base_model", base, "--lora_model", adapter, "--output_dir", tmp_path / "out"
    )
    assert done.returncode == 2
    assert "does not know the method NEXT_YEAR" in done.stderr


def test_lora_under_the_name_of_another_method_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "lora", peft_type="VBLORA")
    with pytest.raises(MergeError, match="VBLORA, but its tensors are a LoRA's"):
        merge_lora(base, adapter, tmp_path / "out")


def test_start_that_comes_out_differently_names_the_way_out(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "lora", init_lora_weights="pissa_niter_4")
    with pytest.raises(MergeError) as caught:
        merge_lora(base, adapter, tmp_path / "out")
    assert "residual base" in caught.value.facts["remedy"]


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("scored", [False, True], ids=["language model", "classifier"])
def test_reward_models_and_classifiers_merge_as_peft_does(
    tmp_path: Path, base: Path, labels: int, scored: bool
) -> None:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(7)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=labels, dtype=torch.float32
    )
    if scored:
        model.save_pretrained(tmp_path / "classifier")
        shutil.copy(base / "tokenizer.model", tmp_path / "classifier")
    settings = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["q_proj"])
    adapted = get_peft_model(model, settings)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "lora")
    expected = dict(adapted.merge_and_unload().state_dict())
    start = tmp_path / "classifier" if scored else base
    merge_lora(start, tmp_path / "lora", tmp_path / "out", **HF)
    require_equal(load_weights(tmp_path / "out"), expected)
    loaded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    )
    assert loaded.config.num_labels == labels
    require_equal(dict(loaded.state_dict()), expected)
    assert not verify_merge(tmp_path / "out").faults
    (tmp_path / "out/merge_manifest.json").unlink()
    inputs = {"base_model": start, "lora_model": tmp_path / "lora"}
    assert not verify_merge(tmp_path / "out", **inputs).faults
    for output_type in ("pth", "gguf"):
        with pytest.raises(LayoutError, match=r"no LM head|class of another"):
            merge_lora(start, tmp_path / "lora", tmp_path / "no", output_type=output_type)
