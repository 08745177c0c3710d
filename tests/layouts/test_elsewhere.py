"""What is turned away, and the words for it: another tool's files, chains, names, options."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from merge import convert_checkpoint, merge_lora
from merge.checksums.adapter_order import AdapterInput, find_adapter_chain, require_known_order
from merge.errors import LayoutError, UsageError, VocabularyError
from merge.untrusted.strict_json import read_json
from tests.kit.models import adapter_tensors, base_tensors, save_adapter, save_base
from tests.kit.run import run_merge
from tests.kit.tokenizer_models import tokenizer_model

NAMED = {
    "model.abcdef.enc": "XORed with LLaMA-7B",
    "zero_to_fp32.py": "zero_to_fp32.py . pytorch_model.bin",
    "global_step10": "zero_to_fp32.py",
    "pytorch_model_fsdp_0/__0_0.distcp": "format_utils",
    "model_world_size_4_rank_0.pt": "model_merger",
    "hf_model_0001_0.pt": "rename",
    "lit_model.pth": "litgpt",
    "model.pth": "rename it to pytorch_model.bin",
}


@pytest.mark.parametrize(("name", "told"), NAMED.items())
def test_weights_of_other_tools_are_named(tmp_path: Path, name: str, told: str) -> None:
    base = save_base(tmp_path / "base")
    (base / "pytorch_model.bin").unlink()
    path = base / name
    path.parent.mkdir(exist_ok=True)
    if name == "global_step10":
        path.mkdir()
    else:
        path.write_bytes(b"weights")
    with pytest.raises(LayoutError, match="in a form that is not read here") as caught:
        merge_lora(base, save_adapter(tmp_path / "lora"), tmp_path / "out")
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_names_of_tencentpretrain_are_told(tmp_path: Path) -> None:
    name = "encoder.transformer.0.self_attn.linear_layers.0.weight"
    for config in ({}, {"model_type": "mistral"}):
        base = save_base(tmp_path / "base", {name: torch.ones(4, 4)}, **config)
        with pytest.raises(LayoutError) as caught:
            merge_lora(base, save_adapter(tmp_path / "lora"), tmp_path / "out", output_type="hf")
        assert "TencentPretrain's names" in caught.value.facts["remedy"]


def test_renamed_as_told_weights_are_read(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    merge_lora(base, save_adapter(tmp_path / "lora"), tmp_path / "plain")
    (base / "pytorch_model.bin").rename(base / "pytorch_model-00001-of-00001.bin")
    merge_lora(base, tmp_path / "lora", tmp_path / "out")
    one, other = (tmp_path / name / "consolidated.00.pth" for name in ("plain", "out"))
    assert one.read_bytes() == other.read_bytes()


def test_rows_of_embeddings_and_head_are_told_with_their_files(tmp_path: Path) -> None:
    tensors = base_tensors()
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    base = save_base(tmp_path / "base", tensors)
    with pytest.raises(LayoutError, match="different numbers of rows") as caught:
        merge_lora(base, save_adapter(tmp_path / "lora"), tmp_path / "out")
    assert "40 rows in" in caught.value.facts["found"]
    assert "39 in" in caught.value.facts["found"]
    assert "vocab_size 40" in caught.value.facts["expected"]


def test_weights_beside_the_bases_own_are_named(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", name="model.safetensors")
    torch.save({"model.norm.weight": torch.ones(2)}, base / "pytorch_model.bin")
    torch.save({"step": torch.ones(2)}, base / "training_args.bin")
    report = merge_lora(base, save_adapter(tmp_path / "lora"), tmp_path / "out")
    assert "weight files of the base that are not read: pytorch_model.bin" in report.summary()


CHAINS = {
    "ziqingyang/chinese-alpaca-plus-7b": ("Chinese-LLaMA-Plus-7B", "Chinese-Alpaca-Plus-7B"),
    "/data/chinese_alpaca_pro_33b_hf": ("Chinese-LLaMA-Plus-33B", "Chinese-Alpaca-Pro-33B"),
    "chinese-llama-lora-13b-merged": ("Chinese-LLaMA-13B",),
    "Chinese-Alpaca-LoRA-7B": ("Chinese-Alpaca-7B",),
    "hfl/chinese-alpaca-2-7b": (),
    "decapoda-research/llama-7b-hf": (),
    None: (),
}


@pytest.mark.parametrize(("name", "chain"), CHAINS.items())
def test_configurations_name_chains(name: str | None, chain: tuple[str, ...]) -> None:
    assert find_adapter_chain(name) == chain


def test_missing_link_is_named() -> None:
    own = AdapterInput("mine", None, "chinese-alpaca-plus-7b", None)
    plus = AdapterInput("plus", "Chinese-LLaMA-Plus-7B")
    alpaca = AdapterInput("alpaca", "Chinese-Alpaca-Plus-7B")
    with pytest.raises(UsageError, match="not what lies below it") as caught:
        require_known_order(32000, [plus, own])
    assert "add Chinese-Alpaca-Plus-7B" in caught.value.facts["remedy"]
    with pytest.raises(UsageError, match="not what lies below it") as caught:
        require_known_order(32000, [own])
    assert caught.value.facts["found"] == "the plain base"
    with pytest.raises(UsageError, match="not what lies below it"):
        require_known_order(49954, [own], ["Chinese-LLaMA-Plus-7B", "Chinese-Alpaca-Pro-7B"])
    # Right, or not to be told.
    require_known_order(32000, [plus, alpaca, own])
    require_known_order(49954, [own])
    require_known_order(49954, [own], ["Chinese-LLaMA-Plus-7B", "Chinese-Alpaca-Plus-7B"])
    require_known_order(32000, [AdapterInput("other", None), own])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("output_type", ["pth", "huggingface", "gguf"])
def test_names_that_are_no_utf8(tmp_path: Path, output_type: str) -> None:
    """Zip files of a Chinese Windows, unpacked on Linux: names in GBK."""
    above = tmp_path / os.fsdecode("模型".encode("gbk"))
    base, lora = save_base(above / "base"), save_adapter(above / "lora")
    words = ("--base_model", base, "--lora_model", lora, "--output_dir", above / "out")
    done = run_merge(*words, "--output_type", output_type, "--verify", LANG="C")
    assert done.returncode == 0, done.stderr
    manifest = read_json(above / "out/merge_manifest.json")
    assert manifest["inputs"]["base_model"]["source"] == str(base)
    assert r"\udcd0\udccd" in (above / "out/merge_manifest.json").read_text(encoding="utf-8")
    again = run_merge(*words, "--output_type", output_type, "--resume")
    assert again.returncode == 0, again.stderr
    assert "complete already" in again.stdout
    (above / "out/merge_manifest.json").unlink()
    (base / "config.json").unlink()
    failed = run_merge(*words, "--overwrite")
    assert failed.returncode == 2
    assert r"\udcd0\udccd" in failed.stderr


def test_negative_weights_in_one_word(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    loras = [save_adapter(tmp_path / n, adapter_tensors(seed=s)) for n, s in (("a", 1), ("b", 2))]
    words = ("--base_model", base, "--lora_model", *loras, "--output_dir")
    for name, given in {"one": ["-1,0.5"], "two": ["-1", "0.5"], "exp": ["-1e0,.5"]}.items():
        done = run_merge(*words, tmp_path / name, "--lora_weights", *given)
        assert done.returncode == 0, done.stderr
    found = [
        (tmp_path / name / "consolidated.00.pth").read_bytes() for name in ("one", "two", "exp")
    ]
    assert found[0] == found[1] == found[2]


def test_options_of_pasted_recipes_are_taken_and_told(tmp_path: Path) -> None:
    base, lora = save_base(tmp_path / "base"), save_adapter(tmp_path / "lora")
    words = ("--base_model", base, "--lora_model", lora, "--output_dir", tmp_path / "out")
    done = run_merge(*words, "--model_size", "13B", "--model_type", "auto")
    assert done.returncode == 0, done.stderr
    assert "--model_size changes nothing here" in done.stdout
    assert "--model_type changes nothing here" in done.stdout


def test_conversion_names_no_option_of_another_command(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (base / "tokenizer.model").write_bytes(tokenizer_model(60))
    with pytest.raises(VocabularyError) as caught:
        convert_checkpoint(base, tmp_path / "out")
    assert "--new_token_init" not in str(caught.value)
    assert "resize_llama_vocabulary.py" in caught.value.facts["remedy"]
    assert not (tmp_path / "out").exists()
