"""A GGUF file as base of a merge: the same model as from the Hugging Face folder of its values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import (
    MergeError,
    apply_delta,
    convert_checkpoint,
    merge_lora,
    resize_vocabulary,
    verify_merge,
)
from merge.commands.inspect_adapter import main as inspect
from merge.errors import LayoutError, UsageError, VocabularyError
from merge.layouts.opening import open_checkpoint
from tests.kit.adapters import make_adapter
from tests.kit.files import load_weights
from tests.kit.llama_cpp import gguf_contents
from tests.kit.llamas import make_base
from tests.kit.rewritten_gguf import rewrite_gguf
from tests.kit.run import run_merge

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

# What names the models themselves, which are not of one name here.
NAMES = ("general.name", "general.base_model.", "general.size_label", "general.basename")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float16, so that f16 and f32 hold its values as they are, but for its norms."""
    return make_base(tmp_path_factory.mktemp("base") / "base", num_key_value_heads=2)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("lora") / "lora", base, modules_to_save=None)


def to_gguf(base: Path, folder: Path, **options: Any) -> Path:
    """The first file of a model in GGUF. (That it is what llama.cpp's converter writes is tested
    beside that converter.)"""
    convert_checkpoint(base, folder, output_type="gguf", **options)
    return sorted(folder.glob("*.gguf"))[0]


def merged(base: Path, adapter: Path, output: Path, **options: Any) -> Path:
    merge_lora(base, adapter, output, **{"output_type": "gguf"} | options)
    return sorted(output.glob("*.gguf"))[0]


def everything(path: Path) -> dict[str, Any]:
    """Every key that names no model, with scores and types of tokens, and every tensor."""
    fields = gguf.GGUFReader(path).fields
    said = {key: field.contents() for key, field in fields.items()}
    return gguf_contents(path) | {
        key: value for key, value in said.items() if not key.startswith(("GGUF.", *NAMES))
    }


@pytest.mark.parametrize("of_base", ["f16", "f32", "bf16"])
@pytest.mark.parametrize("outtype", ["f16", "f32", "q8_0"])
def test_the_result_is_that_of_the_folder_with_the_same_values(
    base: Path, adapter: Path, tmp_path: Path, of_base: str, outtype: str
) -> None:
    source = base
    if of_base == "bf16":
        source = make_base(tmp_path / "bf16", dtype=torch.bfloat16, num_key_value_heads=2)
    file = to_gguf(source, tmp_path / "gguf", outtype=of_base)
    found = merged(file, adapter, tmp_path / "one", outtype=outtype)
    wanted = merged(source, adapter, tmp_path / "two", outtype=outtype)
    assert everything(found) == everything(wanted)


def test_a_folder_and_split_files_are_the_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    whole = everything(merged(to_gguf(base, tmp_path / "g"), adapter, tmp_path / "whole"))
    first = to_gguf(base, tmp_path / "split", split_max_size="60kB")
    assert first.name.endswith("-00001-of-00004.gguf")
    for number, given in enumerate((first, tmp_path / "split")):
        assert everything(merged(given, adapter, tmp_path / f"out{number}")) == whole


@pytest.mark.parametrize("kind", ["llama3", "yarn", "linear"])
def test_rotary_scaling_stays_as_the_file_has_it(adapter: Path, tmp_path: Path, kind: str) -> None:
    scaling: dict[str, Any] = {"rope_type": kind, "factor": 4.0, "rope_theta": 500000.0}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind != "linear":
        scaling["original_max_position_embeddings"] = 32
    if kind == "yarn":
        scaling |= {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5}
    source = make_base(tmp_path / "base", num_key_value_heads=2, rope_parameters=scaling)
    file = to_gguf(source, tmp_path / "gguf")
    found = everything(merged(file, adapter, tmp_path / "one"))
    assert found == everything(merged(source, adapter, tmp_path / "two"))
    assert ("tensor rope_freqs.weight" in found) == (kind == "llama3")
    options = {"output_type": "huggingface", "tokenizer": source}
    if kind == "llama3":
        with pytest.raises(LayoutError, match=r"tensor of factors(.|\n)*--output_type gguf"):
            merge_lora(file, adapter, tmp_path / "hf", **options)
        return
    merge_lora(file, adapter, tmp_path / "hf", **options)
    config = json.loads((tmp_path / "hf" / "config.json").read_text(encoding="utf-8"))
    del scaling["rope_theta"]
    assert config["rope_scaling"] == pytest.approx({"type": kind, **scaling})
    assert config["rope_theta"] == 500000.0
    assert verify_merge(tmp_path / "hf").faults == ()


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    source = make_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = make_adapter(tmp_path / "lora", source, modules_to_save=None)
    found = merged(to_gguf(source, tmp_path / "gguf"), adapter, tmp_path / "one")
    assert everything(found) == everything(merged(source, adapter, tmp_path / "two"))
    assert "tensor output.weight" not in everything(found)


def test_an_adapter_with_a_tokenizer_grows_the_vocabulary(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "lora", base, rows=131)
    file = to_gguf(base, tmp_path / "gguf")
    found = everything(merged(file, adapter, tmp_path / "one"))
    assert found == everything(merged(base, adapter, tmp_path / "two"))
    assert len(found["tokenizer.ggml.tokens"]) == found["llama.vocab_size"] == 131
    assert verify_merge(tmp_path / "one").faults == ()


def test_what_is_said_of_the_base_stays_said(base: Path, adapter: Path, tmp_path: Path) -> None:
    keys = {
        "general.name": "Zebra 7B",
        "general.organization": "Savanna",
        "general.license": "apache-2.0",
        "general.finetune": "Instruct",
        "general.quantized_by": "Somebody",
        "general.sampling.temp": 0.5,
        "llama.attention.something": 7,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.chat_template": "{{ messages }}",
        "quantize.imatrix.file": "x",
        "owner.remark": "kept",
    }
    file = rewrite_gguf(to_gguf(base, tmp_path / "gguf"), tmp_path / "zebra.gguf", keys)
    given = gguf.GGUFReader(file).fields
    found = gguf.GGUFReader(merged(file, adapter, tmp_path / "out"))
    said = {key: field.contents() for key, field in found.fields.items()}
    for key in (
        *("general.license", "general.sampling.temp", "llama.attention.something"),
        *("tokenizer.ggml.eot_token_id", "tokenizer.chat_template", "owner.remark"),
    ):
        assert said[key] == keys[key], key
        assert found.fields[key].types == given[key].types, key
    assert said["general.name"] == "Out"
    assert said["general.base_model.0.name"] == "Zebra 7B"
    assert said["general.base_model.0.organization"] == "Savanna"
    assert said["general.base_model.1.name"] == "Lora"
    for key in ("general.organization", "general.finetune", "quantize.imatrix.file"):
        assert key not in said


def test_another_chat_template_takes_the_place_of_the_files(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    file = to_gguf(base, tmp_path / "gguf")
    found = merged(file, adapter, tmp_path / "out", chat_template="alpaca")
    template = gguf.GGUFReader(found).fields["tokenizer.chat_template"].contents()
    assert "### Instruction" in template


def test_q8_0_is_a_base_only_where_that_is_asked(base: Path, adapter: Path, tmp_path: Path) -> None:
    file = to_gguf(base, tmp_path / "gguf", outtype="q8_0")
    with pytest.raises(LayoutError, match=r"rounded away(.|\n)*q8_0(.|\n)*--allow_quantized_input"):
        merged(file, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = merge_lora(
        file,
        adapter,
        tmp_path / "out",
        output_type="gguf",
        outtype="f32",
        allow_quantized_input=True,
    )
    assert "what was lost stays lost" in report.summary()
    values = {t.name: dequantized(t) for t in gguf.GGUFReader(file).tensors}
    found = {
        t.name: dequantized(t)
        for t in gguf.GGUFReader(report.output_dir / "ggml-model-f32.gguf").tensors
    }
    assert torch.equal(found["token_embd.weight"], values["token_embd.weight"])
    lora = load_weights(adapter)
    stem = "base_model.model.model.layers.1.mlp.up_proj.lora_"
    added = 3 * lora[f"{stem}B.weight"].double() @ lora[f"{stem}A.weight"].double()
    wanted = values["blk.1.ffn_up.weight"].double() + added
    assert torch.allclose(found["blk.1.ffn_up.weight"].double(), wanted, atol=1e-5)
    assert verify_merge(tmp_path / "out").faults == ()


def dequantized(tensor: Any) -> torch.Tensor:
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K", "IQ3_S"])
def test_other_quantized_types_are_refused_by_name(
    base: Path, adapter: Path, tmp_path: Path, kind: str
) -> None:
    """The command says so in one message, also where quantized bases are allowed."""
    of_type, name = gguf.GGMLQuantizationType[kind], "blk.0.ffn_up.weight"
    elements, size = gguf.GGML_QUANT_SIZES[of_type]
    source = gguf.GGUFReader(to_gguf(base, tmp_path / "gguf", outtype="f32"))
    writer = gguf.GGUFWriter(tmp_path / "quantized.gguf", "llama")
    for tensor in source.tensors:
        if tensor.name != name:
            writer.add_tensor(tensor.name, tensor.data)
    blocks = torch.zeros(4, size * 256 // elements, dtype=torch.uint8).numpy()
    writer.add_tensor(name, blocks, raw_dtype=of_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    paths = {"--base_model": tmp_path / "quantized.gguf", "--lora_model": adapter}
    paths["--output_dir"] = tmp_path / "out"
    words = [str(word) for pair in paths.items() for word in pair]
    done = run_merge(*words, "--output_type", "gguf", "--allow_quantized_input")
    assert done.returncode == 2
    assert f"found:    {kind}" in done.stderr
    assert name in done.stderr
    assert "remedy:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_other_commands_refuse_a_file(base: Path, tmp_path: Path) -> None:
    file = to_gguf(base, tmp_path / "gguf")
    for command in (
        lambda: convert_checkpoint(file, tmp_path / "out"),
        lambda: apply_delta(file, base, tmp_path / "out"),
        lambda: resize_vocabulary(file, base, tmp_path / "out"),
    ):
        with pytest.raises(MergeError, match="gguf") as refusal:
            command()
        assert refusal.value.facts.get("remedy")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"general.architecture": "qwen2"}, "another architecture(.|\n)*qwen2"),
        ({"general.type": "adapter"}, "holds no model(.|\n)*--lora_model"),
        ({"llama.expert_count": 8}, "num_experts_per_tok"),
        ({"llama.rope.dimension_count": 4}, "a part of each head"),
    ],
)
def test_files_of_other_models_are_refused(
    base: Path, adapter: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    file = rewrite_gguf(to_gguf(base, tmp_path / "gguf"), tmp_path / "other.gguf", changes)
    with pytest.raises(LayoutError, match=told):
        merged(file, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_without_tokens_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.tokens": None}
    file = rewrite_gguf(to_gguf(base, tmp_path / "gguf"), tmp_path / "other.gguf", changes)
    with pytest.raises(VocabularyError, match=r"lists no tokens"):
        merged(file, adapter, tmp_path / "out")


def test_other_layouts_need_a_tokenizer_in_files(base: Path, adapter: Path, tmp_path: Path) -> None:
    file = to_gguf(base, tmp_path / "gguf", outtype="f16")
    for output_type in ("huggingface", "pth"):
        with pytest.raises(UsageError, match=r"tokenizer in files(.|\n)*--tokenizer"):
            merge_lora(file, adapter, tmp_path / output_type, output_type=output_type)
        options = {"output_type": output_type, "tokenizer": base}
        merge_lora(file, adapter, tmp_path / output_type, **options)
        assert verify_merge(tmp_path / output_type).faults == ()
        merge_lora(base, adapter, tmp_path / f"{output_type}-2", output_type=output_type)
        found = open_checkpoint(tmp_path / output_type).tensors
        for name, tensor in open_checkpoint(tmp_path / f"{output_type}-2").tensors.items():
            assert torch.equal(found[name].read(), tensor.read()), name


def test_special_tokens_of_an_adapter_need_a_vocabulary_in_files(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    file = to_gguf(base, tmp_path / "gguf")
    own = tmp_path / "own"
    own.mkdir()
    for path in adapter.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    (own / "tokenizer_config.json").write_text('{"add_bos_token": true}', encoding="utf-8")
    with pytest.raises(VocabularyError, match=r"neither it nor the base(.|\n)*--tokenizer"):
        merged(file, own, tmp_path / "out")
    vocabulary = {"model": {"vocab": {str(number): number for number in range(101)}}}
    (own / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    with pytest.raises(UsageError, match=r"tokenizer\.model(.|\n)*a base in GGUF itself"):
        merged(file, own, tmp_path / "out")
    found = merged(file, own, tmp_path / "out", tokenizer=file)
    assert everything(found) == everything(merged(file, adapter, tmp_path / "two"))


def test_the_result_does_not_go_beside_the_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Where an earlier merge made the base, --overwrite would take it away."""
    earlier = merged(base, adapter, tmp_path / "out")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(MergeError, match="--output_dir"):
            merged(earlier, adapter, tmp_path / "out", **options)
    assert earlier.is_file()


@pytest.mark.parametrize("at", [0.1, 0.6])
def test_an_interrupted_run_is_resumed(
    base: Path, adapter: Path, tmp_path: Path, at: float
) -> None:
    file = to_gguf(base, tmp_path / "gguf")
    whole = merged(file, adapter, tmp_path / "whole").read_bytes()

    def stop(written: int, total: int) -> None:
        if written >= at * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged(file, adapter, tmp_path / "out", on_progress=stop, model_name="whole")
    found = merged(file, adapter, tmp_path / "out", resume=True, model_name="whole")
    assert found.read_bytes() == whole


def test_an_adapter_is_held_against_the_file(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = to_gguf(base, tmp_path / "gguf")
    assert inspect([str(adapter), "--base_model", str(file)]) == 0
    assert f"fits       {file}, written as gguf" in capsys.readouterr().out


@pytest.mark.parametrize("output_type", ["gguf", "huggingface"])
def test_a_file_that_changes_its_values_fails_the_check(
    base: Path, adapter: Path, tmp_path: Path, output_type: str
) -> None:
    file = to_gguf(base, tmp_path / "gguf", outtype="f32")
    merge_lora(file, adapter, tmp_path / "out", output_type=output_type, tokenizer=base)
    assert verify_merge(tmp_path / "out").faults == ()
    other = make_base(tmp_path / "other", num_key_value_heads=2, seed=7)
    convert_checkpoint(other, tmp_path / "gguf", output_type="gguf", outtype="f32", overwrite=True)
    assert verify_merge(tmp_path / "out").faults
