"""A LoRA in GGUF form, as llama.cpp's own converter makes it of PEFT's: merged like PEFT's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import convert_checkpoint, merge_lora, verify_merge
from merge.commands.inspect_adapter import main as inspect
from merge.errors import AdapterError, MergeError
from tests.kit.adapters import LINEAR, make_lora
from tests.kit.files import load_weights
from tests.kit.llama_cpp import LORA, convert
from tests.kit.llamas import make_base
from tests.kit.rewritten_gguf import rewrite_gguf
from tests.kit.tokenizer_models import write_tokenizer

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the name of its class, by which llama.cpp's converter goes."""
    folder = tmp_path_factory.mktemp("base") / "base"
    return make_base(folder, num_key_value_heads=2, architectures=["LlamaForCausalLM"])


ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "linear": {"target_modules": LINEAR},
    "ranks": {"target_modules": LINEAR, "rank_pattern": {"k_proj": 8, "layers.1.mlp.up_proj": 2}},
    "vocabulary": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "bf16": {"target_modules": LINEAR, "dtype": torch.bfloat16},
}


@pytest.fixture(scope="module")
def pairs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """PEFT's folder and llama.cpp's file of it, by the names of ``ADAPTERS``."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, settings in ADAPTERS.items():
        make_lora(folder / name, base, **settings)
    jobs = [
        (LORA, folder / name, "--outfile", folder / f"{name}.gguf", "--base", base)
        for name in ADAPTERS
    ]
    jobs += [(*jobs[0][:3], folder / "q8_0.gguf", *jobs[0][4:], "--outtype", "q8_0")]
    errors = [done.error for done in convert(jobs)]
    assert errors == [None] * len(jobs)
    return {name: (folder / name, folder / f"{name}.gguf") for name in (*ADAPTERS, "q8_0")}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("of_base", ["huggingface", "gguf"])
def test_the_result_is_that_of_the_adapter_that_it_was_made_of(
    base: Path, pairs: Mapping[str, tuple[Path, Path]], tmp_path: Path, name: str, of_base: str
) -> None:
    source = base
    if of_base == "gguf":
        convert_checkpoint(base, tmp_path / "gguf", output_type="gguf")
        source = tmp_path / "gguf"
    options = {"output_type": "huggingface", "dtype": "float32", "tokenizer": base}
    for number, adapter in enumerate(pairs[name]):
        merge_lora(base if number == 0 else source, adapter, tmp_path / str(number), **options)
    wanted, found = (load_weights(tmp_path / str(number)) for number in range(2))
    assert found.keys() == wanted.keys()
    assert [n for n in wanted if not torch.equal(found[n], wanted[n])] == []
    untouched = load_weights(base)
    assert any(not torch.equal(found[n], untouched[n].float()) for n in untouched)
    assert verify_merge(tmp_path / "1").faults == ()


def test_weights_of_adapters_and_pth_are_as_ever(
    base: Path, pairs: Mapping[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """Each adapter of a pair in one of the two forms."""
    folders = [tmp_path / "one", tmp_path / "other"]
    forms = [(pairs["linear"][n], pairs["ranks"][1 - n]) for n in range(2)]
    for out, adapters in zip(folders, forms, strict=True):
        merge_lora(base, list(adapters), out, lora_weights=[0.5, -1.0])
        assert verify_merge(out).faults == ()
    one, other = (torch.load(out / "consolidated.00.pth", weights_only=True) for out in folders)
    assert one.keys() == other.keys()
    assert [n for n in one if not torch.equal(one[n], other[n])] == []


def test_the_file_may_lie_in_a_folder_with_a_tokenizer(
    base: Path, pairs: Mapping[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "lora.gguf").write_bytes(pairs["linear"][1].read_bytes())
    (folder / "README.md").write_text("words", encoding="utf-8")
    write_tokenizer(folder, 101)
    report = merge_lora(base, folder, tmp_path / "out")
    assert report.job.sources.tokenizer.path == folder
    assert verify_merge(tmp_path / "out").faults == ()
    entry = json.loads((tmp_path / "out" / "merge_manifest.json").read_text(encoding="utf-8"))
    assert [f["file"] for f in entry["inputs"]["adapters"][0]["files"]] == ["lora.gguf"]
    (folder / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(AdapterError, match=r"several GGUF files(.|\n)*lora.gguf, other.gguf"):
        merge_lora(base, folder, tmp_path / "two")


def test_another_file_than_the_merged_one_fails_the_check(
    base: Path, pairs: Mapping[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    merge_lora(base, pairs["linear"][1], tmp_path / "out")
    faults = verify_merge(tmp_path / "out", lora_model=pairs["ranks"][1]).faults
    told = "\n".join(map(str, faults))
    assert "an adapter is not the one that was merged" in told
    assert "attention.wk.weight" in told


def test_q8_0_is_merged_only_where_that_is_asked(
    base: Path, pairs: Mapping[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=r"q8_0(.|\n)*--allow_quantized_input"):
        merge_lora(base, pairs["q8_0"][1], tmp_path / "out")
    options = {"output_type": "huggingface", "allow_quantized_input": True}
    merge_lora(base, pairs["q8_0"][1], tmp_path / "out", **options)
    merge_lora(base, pairs["linear"][0], tmp_path / "whole", **options)
    found, wanted = (load_weights(tmp_path / name) for name in ("out", "whole"))
    name = "model.layers.0.self_attn.o_proj.weight"
    assert not torch.equal(found[name], wanted[name])
    assert torch.allclose(found[name].float(), wanted[name].float(), atol=0.1)
    assert verify_merge(tmp_path / "out").faults == ()


def test_an_adapter_is_described(
    base: Path, pairs: Mapping[str, tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect([str(pairs["ranks"][1]), "--base_model", str(base)]) == 0
    told = capsys.readouterr().out
    assert "kind       LORA, in GGUF form" in told
    assert f"base       {base}\n" in told
    assert "k_proj: rank 8 x 1.5, in 2 tensors" in told
    assert "layers.1.mlp.up_proj: rank 2 x 6" in told
    assert f"fits       {base}, written as pth or huggingface" in told


Q = "blk.0.attn_q.weight"


@pytest.mark.parametrize(
    ("rename", "changes", "told"),
    [
        ({}, {"general.type": "model"}, 'general.type "adapter"(.|\n)*--base_model'),
        ({}, {"adapter.type": "control_vector"}, "control_vector"),
        ({}, {"general.architecture": "qwen2"}, "qwen2(.|\n)*as PEFT saved it"),
        ({}, {"adapter.lora.alpha": None}, "adapter.lora.alpha: a number"),
        ({}, {"adapter.lora.alpha": 0.0}, "would add nothing"),
        ({}, {"adapter.alora.invocation_tokens": [1, 2]}, "activated LoRA"),
        ({f"{Q}.lora_a": "blk.0.ffn_gate_exps.weight.lora_a"}, {}, "no part of a LoRA"),
        ({f"{Q}.lora_a": "blk.0.attn_q.weight"}, {}, "no part of a LoRA"),
        ({f"{Q}.lora_a": "blk.7.attn_q.weight.lora_a"}, {}, "without its lora_A"),
        ({f"{Q}.lora_a": ""}, {}, "without its lora_A"),
    ],
)
def test_files_that_hold_no_such_lora_are_refused(
    base: Path,
    pairs: Mapping[str, tuple[Path, Path]],
    tmp_path: Path,
    rename: Mapping[str, str],
    changes: Mapping[str, Any],
    told: str,
) -> None:
    file = rewrite_gguf(pairs["linear"][1], tmp_path / "other.gguf", changes, names=rename)
    with pytest.raises(MergeError, match=told) as refusal:
        merge_lora(base, file, tmp_path / "out")
    assert refusal.value.facts.get("remedy")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_a_larger_model_is_refused(
    base: Path, pairs: Mapping[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    other = make_base(tmp_path / "other", hidden_size=128, num_attention_heads=16)
    with pytest.raises(MergeError, match=r"q_proj(.|\n)*64"):
        merge_lora(other, pairs["linear"][1], tmp_path / "out")


def test_a_decoder_of_another_kind_is_refused(
    base: Path, pairs: Mapping[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = tmp_path / "mistral"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["model_type"] = "mistral"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"into a LLaMA alone(.|\n)*mistral"):
        merge_lora(folder, pairs["linear"][1], tmp_path / "out", output_type="huggingface")


def test_a_trained_norm_takes_the_place_of_the_bases(
    base: Path, pairs: Mapping[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """As mergekit-extract-lora puts norms beside matrices."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "peft"
    folder.mkdir()
    for path in pairs["linear"][0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "adapter_model.safetensors")
    name = "model.layers.1.input_layernorm.weight"
    weights[f"base_model.model.{name}"] = norm = torch.rand(64)
    save_file(weights, folder / "adapter_model.safetensors")
    [done] = convert([(LORA, folder, "--outfile", tmp_path / "lora.gguf", "--base", base)])
    assert done.error is None
    merge_lora(base, tmp_path / "lora.gguf", tmp_path / "out", output_type="hf", dtype="float32")
    assert torch.equal(load_weights(tmp_path / "out")[name], norm)
    assert verify_merge(tmp_path / "out").faults == ()
