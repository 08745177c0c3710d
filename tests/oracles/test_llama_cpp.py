"""llama.cpp itself runs what ``--output_type gguf`` writes: ids, logits, continuations."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from transformers import LlamaForCausalLM

from demo import text
from merge import convert_checkpoint, merge_lora
from merge.tokenizers import sentencepiece_model as spm
from tests.kit.adapters import make_adapter
from tests.kit.llama_cpp_runs import run_llama_cpp, run_transformers
from tests.kit.llamas import llama_config
from tests.kit.run import ROOT
from tests.kit.tokenizer_models import TEXT
from tokenizer_tools import extend

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llama_cpp") is None,
        reason="llama.cpp is not installed: make llama_cpp compiles it",
    ),
]
PROMPTS = ["如果你今天去那个村庄，还能看见那棵柳树。", "The quick brown fox 跳过了 the lazy dog"]
LINES, MORE = 500, 32
OUTPUTS: dict[str, dict[str, Any]] = {
    "hf": {"output_type": "huggingface"},
    **{outtype: {"output_type": "gguf", "outtype": outtype} for outtype in ("f32", "f16", "q8_0")},
    "split": {"output_type": "gguf", "outtype": "f32", "split_max_size": "300kB"},
}


@dataclass(frozen=True)
class Model:
    """One merge in three outputs of the same float16 values."""

    folder: Path

    @property
    def hf(self) -> Path:
        return self.folder / "hf"

    def gguf(self, output: str) -> Path:
        """The file, or the first of several."""
        return min((self.folder / output).glob("*.gguf"))

    @property
    def tokenizer(self) -> SentencePieceProcessor:
        return SentencePieceProcessor(model_file=str(self.hf / "tokenizer.model"))


def _make_demo(folder: Path) -> tuple[Path, Path]:
    """The demo's base and adapter, which it trains."""
    output = folder / "demo"
    command = [sys.executable, str(ROOT / "demo" / "run.py"), "--output_dir", str(output)]
    subprocess.run(command, capture_output=True, check=True)
    return output / "base", output / "lora"


def _make_published(folder: Path, tokenizers: Path) -> tuple[Path, Path]:
    """A base and an adapter with LLaMA's tokenizer and Chinese-Alpaca's, of 49954 pieces."""
    base, lora = folder / "base", folder / "lora"
    for place in (base, lora):
        place.mkdir()
    llama = spm.read_model(tokenizers / "llama.model")
    chinese = extend.select_text_pieces(spm.read_model(tokenizers / "chinese_sp.model"))
    spm.write_model(llama, base / "tokenizer.model")
    grown = extend.extend(llama, [*chinese, "[PAD]"]).model
    spm.write_model(grown, lora / "tokenizer.model")
    files = {place: (place / "tokenizer.model").read_bytes() for place in (base, lora)}
    rows = [len(spm.read_model(place).pieces) for place in (base, lora)]
    _write_base(base, rows[0])
    make_adapter(lora, base, rows=rows[1], dtype=torch.float16)
    _make_decided(lora / "adapter_model.safetensors")
    for place, content in files.items():  # make_adapter writes one of its own
        (place / "tokenizer.model").write_bytes(content)
    return base, lora


def _write_base(folder: Path, rows: int) -> None:
    """Two layers of eight heads in groups of four, float16."""
    torch.manual_seed(0)
    config = llama_config(
        vocab_size=rows,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).half().save_pretrained(folder)


def _make_decided(adapter: Path) -> None:
    """Let each token be followed by the next one, far ahead of the others.

    A model of random values has near ties, which the rounding of activations to float16 decides.
    """
    tensors = load_file(adapter)
    (embed,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    (head,) = (name for name in tensors if name.endswith("lm_head.weight"))
    tensors[head] = tensors[embed].roll(1, 0)
    tensors[embed] = tensors[embed] * 200  # against what the layers add
    save_file(tensors, adapter, metadata={"format": "pt"})


@pytest.fixture(scope="module", params=["the demo's", "49954 pieces"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("llama_cpp")
    if request.param == "the demo's":
        base, lora = _make_demo(folder)
    else:
        real_data: Path = request.getfixturevalue("real_data")
        base, lora = _make_published(folder, real_data / "tokenizers")
    for name, settings in OUTPUTS.items():
        merge_lora(base, lora, folder / name, dtype="float16", **settings)
    return Model(folder)


def _run(model: Model, outtype: str, lines: list[str], out: Path) -> dict[str, Any]:
    return run_llama_cpp(model.gguf(outtype), out, list(_prompts(model)), MORE, lines)


def _prompts(model: Model) -> Iterator[list[int]]:
    for line in PROMPTS:
        ids = [model.tokenizer.bos_id(), *model.tokenizer.encode(line)]
        assert len(ids) >= 8  # a wrong rotary order does not show in the first positions
        yield ids


def test_f32_gives_sentencepiece_ids_and_transformers_logits(model: Model, tmp_path: Path) -> None:
    lines = TEXT.read_text(encoding="utf-8").splitlines()[:LINES]
    assert len(lines) == LINES
    result = _run(model, "f32", lines, tmp_path)
    assert result["ids"] == [model.tokenizer.encode(line) for line in lines]
    for prompt, found, more in zip(
        _prompts(model), result["logits"], result["continuations"], strict=True
    ):
        logits, expected = run_transformers(model.hf, prompt, MORE)
        assert found.shape == logits.shape
        difference = (found - logits).abs().max()
        assert float(difference) < 1e-3
        assert more == expected


def test_f16_continues_as_transformers_does(model: Model, tmp_path: Path) -> None:
    result = _run(model, "f16", [], tmp_path)
    expected = [run_transformers(model.hf, prompt, MORE)[1] for prompt in _prompts(model)]
    assert result["continuations"] == expected


def test_several_files_are_the_model_in_one(model: Model, tmp_path: Path) -> None:
    assert len(list((model.folder / "split").glob("*.gguf"))) > 2
    whole, split = (_run(model, output, [], tmp_path) for output in ("f32", "split"))
    assert split["continuations"] == whole["continuations"]
    for one, other in zip(split["logits"], whole["logits"], strict=True):
        assert torch.equal(one, other)


def test_q8_0_is_near_the_whole_model(model: Model, tmp_path: Path) -> None:
    """In the larger vocabulary's model down_proj, of rows no multiple of 32 long, is f16.

    llama.cpp quantizes activations too; a fiftieth of the spread is what that makes.
    """
    result = _run(model, "q8_0", [], tmp_path)
    for prompt, found in zip(_prompts(model), result["logits"], strict=True):
        logits, _ = run_transformers(model.hf, prompt, MORE)
        difference = (found - logits).abs().max() / (logits.max() - logits.min())
        assert float(difference) < 0.05


def test_a_tokenizer_that_puts_no_space_before_text_gives_the_same_ids(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    tokenizer = ModelProto.FromString(text.train_base_tokenizer(text.read_lines("english")))
    tokenizer.normalizer_spec.add_dummy_prefix = False
    _write_base(base, len(tokenizer.pieces))
    spm.write_model(tokenizer, base / "tokenizer.model")
    convert_checkpoint(base, out / "hf")
    convert_checkpoint(base, out / "f32", output_type="gguf", outtype="f32")
    model = Model(out)
    lines = ["Hello there", " two  spaces ", "中文, then English"]
    expected = [model.tokenizer.encode(line) for line in lines]
    assert not model.tokenizer.id_to_piece(expected[0][0]).startswith("\N{LOWER ONE EIGHTH BLOCK}")
    assert _run(model, "f32", lines, tmp_path)["ids"] == expected
