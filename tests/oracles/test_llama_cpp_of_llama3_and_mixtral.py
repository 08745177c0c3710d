"""llama.cpp itself runs Llama 3 and Mixtral as ``--output_type gguf`` writes them: ids, logits,
continuations.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from merge import convert_checkpoint, merge_lora
from tests.kit.adapters import make_adapter
from tests.kit.grown_llama3 import NEW, OLD, Grown
from tests.kit.llama3_folders import ROWS, SCALED, make_llama3, write_llama3_tokenizer
from tests.kit.llama_cpp_runs import run_llama_cpp, run_transformers
from tests.kit.mixtrals import make_mixtral, make_mixtral_adapter
from tests.kit.tokenizer_models import TEXT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llama_cpp") is None,
        reason="llama.cpp is not installed: make llama_cpp compiles it",
    ),
]
PROMPTS = [
    "如果你今天去那个村庄，还能看见那棵柳树。" * 4,
    "The quick brown fox 跳过了 the lazy dog",
]
LINES, MORE = 500, 32
SCALED_CONFIG = {"rope_parameters": {**SCALED, "rope_theta": 500000.0}}
LLAMA3S: dict[str, dict[str, Any]] = {
    "Llama 3": {},
    "Llama 3.1": SCALED_CONFIG,
    "Llama 3.2": {**SCALED_CONFIG, "tie_word_embeddings": True},
}


@dataclass(frozen=True)
class Model:
    """A merge in two outputs of the same float16 values, with ids by the model's own tokenizer."""

    name: str
    folder: Path
    encode: Callable[[str], list[int]]
    begin: int

    @property
    def prompts(self) -> list[list[int]]:
        """The ids that a model is given."""
        return [[self.begin, *self.encode(line)] for line in PROMPTS]


def _merge(folder: Path, base: Path, lora: Path) -> None:
    merge_lora(base, lora, folder / "hf", output_type="huggingface", dtype="float16")
    merge_lora(base, lora, folder / "f32", output_type="gguf", outtype="f32", dtype="float16")


@pytest.fixture(scope="module")
def llama3_tokenizer(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama3_tokenizer(tmp_path_factory.mktemp("tokenizer"), real_data)


@pytest.fixture(scope="module", params=[*LLAMA3S, "Mixtral"])
def model(
    request: pytest.FixtureRequest,
    real_data: Path,
    llama3_tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Model:
    name, folder = request.param, tmp_path_factory.mktemp("llama_cpp")
    if name in LLAMA3S:
        base = make_llama3(folder / "base", llama3_tokenizer.iterdir(), **LLAMA3S[name])
        lora = make_adapter(folder / "lora", base, modules_to_save=None, std=0.05)
        _merge(folder, base, lora)
        tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
        encode = partial(tokenizer.encode, add_special_tokens=False)
        return Model(name, folder, encode, ROWS - 256)
    base = make_mixtral(folder / "base", vocab_size=32000, std=0.15)
    shutil.copyfile(real_data / "tokenizers" / "llama.model", base / "tokenizer.model")
    _merge(folder, base, make_mixtral_adapter(folder / "lora", base))
    pieces = SentencePieceProcessor(model_file=str(folder / "hf" / "tokenizer.model"))
    return Model(name, folder, pieces.encode, pieces.bos_id())


def test_f32_gives_the_tokenizers_ids_and_transformers_logits(model: Model, tmp_path: Path) -> None:
    lines = TEXT.read_text(encoding="utf-8").splitlines()[:LINES]
    assert len(lines) == LINES
    (file,) = (model.folder / "f32").glob("*.gguf")
    result = run_llama_cpp(file, tmp_path, model.prompts, MORE, lines)
    assert result["ids"] == [model.encode(line) for line in lines]
    for prompt, found, more in zip(
        model.prompts, result["logits"], result["continuations"], strict=True
    ):
        assert len(prompt) >= 8  # a wrong rotary order does not show in the first positions
        logits, expected = run_transformers(model.folder / "hf", prompt, MORE)
        assert found.shape == logits.shape
        assert float((found - logits).abs().max()) < 1e-3
        assert more == expected


def test_a_grown_vocabulary_gives_tiktokens_ids(grown: Grown, tmp_path: Path) -> None:
    """llama.cpp's own converter does not know its ids."""
    files = [path for path in grown.folder.iterdir() if path.is_file()]
    base = make_llama3(tmp_path / "base", files, vocab_size=OLD + NEW)
    convert_checkpoint(base, tmp_path / "out", output_type="gguf")
    file = tmp_path / "out" / "ggml-model-bf16.gguf"
    found = run_llama_cpp(file, tmp_path, [[1, 2]], 1, grown.held_out)["ids"]
    meta = grown.meta()
    assert found == [meta.encode(line) for line in grown.held_out]


def test_experts_in_q8_0_are_near_the_whole_model(tmp_path: Path) -> None:
    """llama.cpp quantises activations too; a few hundredths of the spread is what that makes."""
    base = make_mixtral(tmp_path / "base", std=0.15)
    lora = make_mixtral_adapter(tmp_path / "lora", base)
    merge_lora(base, lora, tmp_path / "hf", output_type="huggingface", dtype="float16")
    options = {"output_type": "gguf", "outtype": "q8_0", "dtype": "float16"}
    merge_lora(base, lora, tmp_path / "q8_0", **options)
    prompt = list(range(3, 40))
    result = run_llama_cpp(tmp_path / "q8_0" / "ggml-model-q8_0.gguf", tmp_path, [prompt], 1)
    logits, _ = run_transformers(tmp_path / "hf", prompt, 0)
    difference = (result["logits"][0] - logits).abs().max() / (logits.max() - logits.min())
    assert float(difference) < 0.05
