"""GGUF written directly against llama.cpp's own converter, run on the Hugging Face output.

Every tensor and every key that the converter writes must be there, equal and in its order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import convert_checkpoint, merge_lora, verify_merge
from merge.formats import InputFile
from merge.formats import gguf as container
from merge.layouts.opening import open_checkpoint
from merge.tokenizers import sentencepiece_model as spm
from tests.kit.adapters import make_adapter
from tests.kit.files import load_weights
from tests.kit.llama_cpp import HUGGINGFACE, convert, converters, require_equal_files
from tests.kit.llamas import make_base
from tests.kit.tokenizer_models import write_tokenizer
from tokenizer_tools.extend import extend, select_text_pieces

pytestmark = pytest.mark.slow
gguf = pytest.importorskip("gguf", reason="needs the package gguf")


@dataclass(frozen=True)
class Case:
    """One model in two ways: ``both`` options for each, ``ours`` for GGUF, ``theirs`` the words
    of the converter.
    """

    make: Callable[[Path], Path]
    ours: dict[str, Any] = field(default_factory=dict)
    theirs: tuple[str, ...] = ()
    both: dict[str, Any] = field(default_factory=dict)


def _edited(folder: Path, name: str, **changes: Any) -> Path:
    path = folder / name
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(before | changes), encoding="utf-8")
    return folder


def _model(folder: Path, **changes: Any) -> Path:
    return _edited(make_base(folder, **changes), "config.json", architectures=["LlamaForCausalLM"])


def _scaled(**scaling: Any) -> Callable[[Path], Path]:
    """A model as configurations were written before transformers 5."""

    def make(folder: Path) -> Path:
        _model(folder, max_position_embeddings=256)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config.pop("rope_parameters", None)
        config |= {"rope_theta": 20000.0, "rope_scaling": scaling}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    return make


def _with_added_tokens(folder: Path) -> Path:
    """Tokens beyond the SentencePiece model: plain, special, and one that only looks special."""
    _model(folder, vocab_size=105)
    names = ["[PAD]", "<|im_end|>", "甲▁乙", "<tool>"]
    write_tokenizer(folder, 101)
    _edited(folder, "added_tokens.json", **{name: 101 + n for n, name in enumerate(names)})
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        str(101 + n): {"content": name, "special": n == 0, **plain} for n, name in enumerate(names)
    }
    return _edited(
        folder,
        "tokenizer_config.json",
        added_tokens_decoder=decoder,
        pad_token="[PAD]",
        add_eos_token=True,
        add_prefix_space=False,
        chat_template="{{ messages[0]['content'] }}",
    )


def _with_generation(folder: Path) -> Path:
    _model(folder)
    sampling = {"temperature": 0.6, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1}
    return _edited(folder, "generation_config.json", do_sample=True, **sampling)


CASES = {
    "f16": Case(_model, {"outtype": "f16"}, ("--outtype", "f16")),
    "f32": Case(_model, {"outtype": "f32"}, ("--outtype", "f32")),
    "bf16": Case(_model, {"outtype": "bf16"}, ("--outtype", "bf16")),
    "q8_0": Case(_model, {"outtype": "q8_0"}, ("--outtype", "q8_0")),
    "auto-of-f16": Case(_model),
    "auto-of-bf16": Case(lambda folder: _model(folder, dtype=torch.bfloat16)),
    "auto-of-f32": Case(lambda folder: _model(folder, dtype=torch.float32)),
    "q8_0-of-bf16": Case(
        lambda folder: _model(folder, dtype=torch.bfloat16),
        {"outtype": "q8_0"},
        ("--outtype", "q8_0"),
    ),
    "grouped-heads": Case(lambda folder: _model(folder, num_key_value_heads=2)),
    "tied": Case(lambda folder: _model(folder, tie_word_embeddings=True)),
    "other-head-size": Case(lambda folder: _model(folder, head_dim=16)),
    "linear": Case(_scaled(type="linear", factor=4.0)),
    "yarn-64k": Case(
        _scaled(type="yarn", factor=16.0, finetuned=True, original_max_position_embeddings=16)
    ),
    "yarn": Case(
        _scaled(
            rope_type="yarn",
            factor=4.0,
            original_max_position_embeddings=64,
            attention_factor=1.25,
            beta_fast=16.0,
            beta_slow=2.0,
        )
    ),
    "dynamic": Case(_scaled(type="dynamic", factor=2.0)),
    "llama3": Case(
        _scaled(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        )
    ),
    "llama3-unsaid": Case(_scaled(rope_type="llama3")),
    "llama3-half-said": Case(_scaled(rope_type="llama3", factor=4, high_freq_factor=2)),
    "llama3-of-its-length": Case(
        _scaled(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=2.0)
    ),
    "linear-by-rope_type": Case(_scaled(type="dynamic", rope_type="linear", factor=2.0)),
    "yarn-by-rope_type": Case(
        _scaled(type="linear", rope_type="yarn", factor=2.0, original_max_position_embeddings=64)
    ),
    "unscaled-by-rope_type": Case(_scaled(type="linear", rope_type="default", factor=2.0)),
    "added-tokens": Case(_with_added_tokens),
    "chat-template": Case(_model, both={"chat_template": "alpaca"}),
    "generation": Case(_with_generation),
    "chinese-alpaca-7b-v1.1": Case(_model),
    "split": Case(
        lambda folder: _model(folder, num_hidden_layers=4),
        {"split_max_size": "60kB"},
        ("--split-max-size", "60K"),
    ),
    "not-split": Case(_model, {"split_max_size": "1GB"}, ("--split-max-size", "1G")),
}


@pytest.fixture(scope="module", autouse=True)
def _llama_cpp() -> None:
    """Skip without llama.cpp's converter."""
    converters()


def _convert(jobs: list[list[str]]) -> None:
    for done in convert([(HUGGINGFACE, *job) for job in jobs]):
        assert done.error is None


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By case, the folder that was written here and the one that the converter wrote."""
    root = tmp_path_factory.mktemp("gguf")
    jobs, found = [], {}
    for name, case in CASES.items():
        base = case.make(root / "models" / name)
        outputs = [root / kind / name for kind in ("huggingface", "ours", "theirs")]
        convert_checkpoint(base, outputs[0], **case.both)
        convert_checkpoint(base, outputs[1], output_type="gguf", **case.both, **case.ours)
        outputs[2].mkdir(parents=True)
        jobs.append([str(outputs[0]), "--outfile", str(outputs[2] / "model.gguf"), *case.theirs])
        found[name] = (outputs[1], outputs[2])
    _convert(jobs)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_the_one_that_the_converter_writes(
    pairs: dict[str, tuple[Path, Path]], name: str
) -> None:
    ours, theirs = (sorted(folder.glob("*.gguf")) for folder in pairs[name])
    assert len(ours) == len(theirs)
    stem = ours[0].name.removesuffix(theirs[0].name.removeprefix("model"))
    assert [path.name for path in ours] == [stem + p.name.removeprefix("model") for p in theirs]
    for one, other in zip(ours, theirs, strict=True):
        require_equal_files(one, other)


@pytest.mark.parametrize(
    "name", ["f16", "f32", "grouped-heads", "tied", "other-head-size", "split"]
)
def test_the_converters_file_is_read_as_the_model_that_it_was_made_from(
    pairs: dict[str, tuple[Path, Path]], name: str
) -> None:
    ours, theirs = pairs[name]
    wanted = load_weights(ours.parents[1] / "models" / name)
    found = open_checkpoint(theirs).tensors
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.equal(found[key].read().float(), tensor.float()), key


@pytest.mark.parametrize("name", CASES)
def test_nothing_that_the_converter_writes_is_called_wrong(
    pairs: dict[str, tuple[Path, Path]], name: str
) -> None:
    ours, theirs = pairs[name]
    found = verify_merge(theirs, base_model=ours.parents[1] / "models" / name)
    assert [str(fault) for fault in found.faults] == []
    assert any(line.startswith("vocabulary ") for line in found.checked)
    assert any("rotary factors, scores and types" in line for line in found.unchecked)


def test_the_cases_are_what_they_are_called(pairs: dict[str, tuple[Path, Path]]) -> None:
    """The converter itself saw scaling, several files and a template."""
    keys = {}
    for name, (_, theirs) in pairs.items():
        reader = gguf.GGUFReader(sorted(theirs.glob("*.gguf"))[0])
        keys[name] = {key: value.contents() for key, value in reader.fields.items()}
    assert len(list(pairs["split"][1].glob("*.gguf"))) > 3
    assert keys["linear"]["llama.rope.scaling.type"] == "linear"
    assert keys["linear-by-rope_type"]["llama.rope.scaling.type"] == "linear"
    assert keys["yarn-by-rope_type"]["llama.rope.scaling.type"] == "yarn"
    assert "llama.rope.scaling.type" not in keys["unscaled-by-rope_type"]
    assert keys["yarn-64k"]["llama.rope.scaling.original_context_length"] == 16
    assert keys["generation"]["general.sampling.temp"] == pytest.approx(0.6)
    assert "### Instruction:" in keys["chat-template"]["tokenizer.chat_template"]
    assert keys["chinese-alpaca-7b-v1.1"]["general.version"] == "v1.1"


def test_a_merge_is_the_one_that_the_converter_writes(tmp_path: Path) -> None:
    base = _model(tmp_path / "base", num_key_value_heads=4)
    lora = make_adapter(tmp_path / "lora", base, rows=107)
    wanted = {"f16": "float16", "f32": "float32", "q8_0": "float32", "bf16": "bfloat16"}
    jobs = []
    for outtype, dtype in wanted.items():
        ours = tmp_path / outtype / "merged"
        merge_lora(base, lora, ours, output_type="gguf", outtype=outtype)
        model = tmp_path / f"hf-{outtype}" / "merged"
        merge_lora(base, lora, model, output_type="huggingface", dtype=dtype)
        jobs.append([str(model), "--outfile", str(model / "m.gguf"), "--outtype", outtype])
    _convert(jobs)
    for outtype in wanted:
        ours = tmp_path / outtype / "merged" / f"ggml-model-{outtype}.gguf"
        require_equal_files(ours, tmp_path / f"hf-{outtype}" / "merged" / "m.gguf")


def test_the_published_vocabulary_is_the_converters(real_data: Path, tmp_path: Path) -> None:
    """Pieces, scores and types of Chinese-Alpaca's tokenizer, ``[PAD]`` and bytes among them."""
    llama = spm.read_model(real_data / "tokenizers" / "llama.model")
    chinese = spm.read_model(real_data / "tokenizers" / "chinese_sp.model")
    model = extend(llama, select_text_pieces(chinese), "[PAD]").model
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    base = _model(tmp_path / "base", vocab_size=49954, hidden_size=32, **heads)
    spm.write_model(model, base / "tokenizer.model")
    convert_checkpoint(base, tmp_path / "huggingface" / "chinese")
    ours, theirs = tmp_path / "ours" / "chinese", tmp_path / "theirs.gguf"
    convert_checkpoint(base, ours, output_type="gguf")
    _convert([[str(tmp_path / "huggingface" / "chinese"), "--outfile", str(theirs)]])
    # The package's reader takes half a minute over the tokens of two files.
    mine, wanted = (container.read(InputFile(path)) for path in (*ours.glob("*.gguf"), theirs))
    assert {key: mine.metadata[key] for key in wanted.metadata} == wanted.metadata
    assert len(wanted.metadata["tokenizer.ggml.tokens"]) == 49954
    assert list(mine.tensors) == list(wanted.tensors)
    for name, tensor in wanted.tensors.items():
        assert torch.equal(mine.tensors[name].read(), tensor.read()), name
