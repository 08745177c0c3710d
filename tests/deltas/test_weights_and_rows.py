"""Weights of adapters, vocabularies of other sizes, and adapters in unusual wrappings."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from merge import merge_lora
from merge.errors import AdapterError, FormatError, UsageError, VocabularyError
from tests.kit.adapters import load, make_lora
from tests.kit.files import Tensors, load_weights
from tests.kit.llamas import make_base
from tests.kit.tokenizer_models import write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

EXACT = {"output_type": "huggingface", "dtype": "float32"}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def weighted_with_peft(base: Path, adapters: list[Path], weights: list[float]) -> Tensors:
    model = load(base)
    for adapter, weight in zip(adapters, weights, strict=True):
        adapted = PeftModel.from_pretrained(model, adapter)
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                module.scale_layer(weight)
        model = adapted.merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_close(folder: Path, expected: Tensors) -> None:
    for name, tensor in load_weights(folder).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("given", ["1.0,0.5", "1 0.5", [1, 0.5]], ids=["commas", "blanks", "list"])
def test_weights_multiply_what_each_adapter_adds(tmp_path: Path, given: Any) -> None:
    base = make_base(tmp_path / "base")
    adapters = [
        make_lora(tmp_path / "a", base),
        make_lora(tmp_path / "b", base, seed=2, use_dora=True, target_modules=["q_proj"]),
    ]
    merge_lora(base, adapters, tmp_path / "out", lora_weights=given, **EXACT)
    assert_close(tmp_path / "out", weighted_with_peft(base, adapters, [1.0, 0.5]))


@pytest.mark.parametrize("weights", ["1", "1,2,3", "a,b", "nan,1", "1,inf"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, weights: str) -> None:
    base = make_base(tmp_path / "base")
    adapters = [make_lora(tmp_path / name, base) for name in ("a", "b")]
    with pytest.raises(UsageError, match="lora_weights"):
        merge_lora(base, adapters, tmp_path / "out", lora_weights=weights)


def test_weight_of_replaced_tensors_is_explained(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_lora(tmp_path / "lora", base, modules_to_save=["lm_head"])
    report = merge_lora(base, adapter, tmp_path / "out", lora_weights="0.5", dry_run=True)
    assert "its weight 0.5 is for what it adds" in report.summary()


# An adapter trained on 96 rows of a base that has 101, five of them padding.
FEWER = {
    "whole vocabulary": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "LoRA on both sides": {"target_modules": ["embed_tokens", "lm_head"]},
    "LoRA with its own base rows": {
        "target_modules": ["embed_tokens", "lm_head"],
        "save_embedding_layers": True,
    },
}


def short_adapter(folder: Path, base: Path, settings: dict[str, Any]) -> Path:
    adapter = make_lora(folder, base, rows=96, **settings)
    (adapter / "tokenizer.model").unlink()
    write_tokenizer(adapter, 96)
    return adapter


@pytest.mark.parametrize("settings", FEWER.values(), ids=FEWER)
def test_fewer_rows_than_the_base_are_a_choice(tmp_path: Path, settings: dict[str, Any]) -> None:
    base = make_base(tmp_path / "base")
    adapter = short_adapter(tmp_path / "lora", base, settings)
    with pytest.raises(VocabularyError, match="shrink") as caught:
        merge_lora(base, adapter, tmp_path / "out", **EXACT)
    assert "--vocab_mismatch" in caught.value.facts["remedy"]
    cut = load(base, 96)
    expected = PeftModel.from_pretrained(cut, adapter).merge_and_unload().state_dict()
    old = load_weights(base)
    for choice, rows in (("keep_base_rows", 101), ("truncate", 96)):
        merge_lora(base, adapter, tmp_path / choice, vocab_mismatch=choice, **EXACT)
        merged = load_weights(tmp_path / choice)
        for name in (EMBED, HEAD):
            assert len(merged[name]) == rows
            torch.testing.assert_close(merged[name][:96], expected[name], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(merged[name][96:], old[name][96:rows].float())


def test_more_rows_than_the_base_in_what_is_added(tmp_path: Path) -> None:
    padded, base = make_base(tmp_path / "padded", vocab_size=112), make_base(tmp_path / "base")
    adapter = make_lora(tmp_path / "lora", padded, target_modules=["embed_tokens", "lm_head"])
    with pytest.raises(VocabularyError, match="larger vocabulary"):
        merge_lora(base, adapter, tmp_path / "out", **EXACT)
    merge_lora(base, adapter, tmp_path / "out", vocab_mismatch="truncate", **EXACT)
    tensors, old = load_weights(adapter), load_weights(base)
    prefix = "base_model.model.model.embed_tokens.lora_embedding_"
    delta = 3.0 * (tensors[f"{prefix}B"] @ tensors[f"{prefix}A"]).T
    expected = old[EMBED].float() + delta[:101]
    torch.testing.assert_close(load_weights(tmp_path / "out")[EMBED], expected)


def test_dora_of_a_vocabulary_fits_its_own_rows_only(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    settings = {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}
    adapter = short_adapter(tmp_path / "lora", base, settings)
    with pytest.raises(AdapterError, match="DoRA of the vocabulary"):
        merge_lora(base, adapter, tmp_path / "out", vocab_mismatch="keep_base_rows", **EXACT)
    merge_lora(base, adapter, tmp_path / "out", vocab_mismatch="truncate", **EXACT)
    expected = PeftModel.from_pretrained(load(base, 96), adapter).merge_and_unload()
    assert_close(tmp_path / "out", dict(expected.state_dict()))


def test_token_that_the_base_has_no_row_for(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_lora(tmp_path / "lora", base, rows=120, trainable_token_indices=[110])
    write_tokenizer(adapter, 101)
    with pytest.raises(AdapterError, match="no rows for") as caught:
        merge_lora(base, adapter, tmp_path / "out")
    assert caught.value.facts["found"] == "110"


@pytest.mark.parametrize("inside", ["", "chinese-lora/"])
def test_zipped_adapter_folder(tmp_path: Path, inside: str) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_lora(tmp_path / "lora", base, rows=120, modules_to_save=["lm_head"])
    adapter = make_lora(adapter, base, rows=120, modules_to_save=["embed_tokens", "lm_head"])
    with zipfile.ZipFile(tmp_path / "lora.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in adapter.iterdir():
            archive.write(path, f"{inside}{path.name}")
    merge_lora(base, adapter, tmp_path / "plain", **EXACT)
    merge_lora(base, tmp_path / "lora.zip", tmp_path / "unzipped", **EXACT)
    plain, unzipped = load_weights(tmp_path / "plain"), load_weights(tmp_path / "unzipped")
    assert all(torch.equal(plain[name], unzipped[name]) for name in plain)
    assert not [path for path in tmp_path.rglob("*") if ".offload" in path.name]


def test_archive_with_a_name_that_leads_out_of_it(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_lora(tmp_path / "lora", base)
    with zipfile.ZipFile(tmp_path / "lora.zip", "w") as archive:
        archive.writestr("../evil/adapter_model.bin", "out of the folder")
        for path in adapter.iterdir():
            archive.write(path, path.name)
    with pytest.raises(FormatError, match="leads out of it"):
        merge_lora(base, tmp_path / "lora.zip", tmp_path / "out")
    assert not (tmp_path.parent / "evil").exists()


def test_archives_that_are_no_single_adapter(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_lora(tmp_path / "lora", base)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for name in ("a", "b"):
            archive.write(adapter / "adapter_config.json", f"{name}/adapter_config.json")
    with pytest.raises(FormatError, match="several adapters"):
        merge_lora(base, tmp_path / "two.zip", tmp_path / "out")
    torch.save({}, tmp_path / "adapter_model.bin")  # a zip archive too
    with pytest.raises(UsageError, match="is a file, a folder is needed"):
        merge_lora(base, tmp_path / "adapter_model.bin", tmp_path / "out")


def test_tensors_saved_from_a_gpu(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_lora(tmp_path / "lora", base)
    merge_lora(base, adapter, tmp_path / "plain", **EXACT)
    on_gpu = shutil.copytree(adapter, tmp_path / "gpu")
    tensors = load_weights(adapter)
    (on_gpu / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "cpu.bin")
    with (
        zipfile.ZipFile(tmp_path / "cpu.bin") as source,
        zipfile.ZipFile(on_gpu / "adapter_model.bin", "w") as target,
    ):
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):  # where each storage lived, as pickled text
                here, there = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"
                assert here in data
                data = data.replace(here, there)
            target.writestr(name, data)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(on_gpu / "adapter_model.bin", weights_only=True)
    merge_lora(base, on_gpu, tmp_path / "from gpu", **EXACT)
    plain, merged = load_weights(tmp_path / "plain"), load_weights(tmp_path / "from gpu")
    assert all(torch.equal(plain[name], merged[name]) for name in plain)


def test_whole_model_beside_an_adapters_configuration(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", max_shard_size="10GB")
    adapter = make_lora(tmp_path / "lora", base)
    (adapter / "adapter_model.safetensors").unlink()
    shutil.copy(base / "pytorch_model.bin", adapter)
    with pytest.raises(AdapterError, match="whole model beside"):
        merge_lora(base, adapter, tmp_path / "out")


def test_the_three_keys_of_a_saved_module_are_checked(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    settings = {"modules_to_save": ["embed_tokens", "lm_head"], "save_embedding_layers": "auto"}
    adapter = make_lora(tmp_path / "lora", base, rows=120, **settings)
    tensors = load_weights(adapter)
    stem = "base_model.model.lm_head."
    assert {f"{stem}{part}weight" for part in ("", "modules_to_save.", "original_module.")} <= (
        tensors.keys()
    )
    (adapter / "adapter_model.safetensors").unlink()
    for part, match in (
        ("modules_to_save.", "two different versions"),
        ("original_module.", "another shape"),
    ):
        wrong = dict(tensors)
        wrong[f"{stem}{part}weight"] = tensors[f"{stem}{part}weight"][:-1] * 2
        torch.save(wrong, adapter / "adapter_model.bin")
        with pytest.raises(AdapterError, match=match):
            merge_lora(base, adapter, tmp_path / "out")
