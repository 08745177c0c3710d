"""Models that are talked to: one that says what is known, and random ones of another vocabulary."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from merge import convert_checkpoint
from tests.kit.talking_models import byte_ids, make_reciting

ANSWER = "中文😀"
_EOS = 2


@pytest.fixture(scope="session")
def reciting(tmp_path_factory: pytest.TempPathFactory, small_llama: ModelProto) -> Path:
    """A Hugging Face folder that answers ``ANSWER`` to a prompt that ends in a line break."""
    chain = [*byte_ids(small_llama, "\n" + ANSWER), _EOS]
    return make_reciting(tmp_path_factory.mktemp("reciting") / "hf", small_llama, chain)


@pytest.fixture(scope="session")
def reciting_gguf(reciting: Path) -> Path:
    """The same as a GGUF file."""
    if find_spec("llama_cpp") is None:
        pytest.skip("llama.cpp is not installed: make llama_cpp compiles it")
    out = reciting.parent / "gguf"
    convert_checkpoint(reciting, out, output_type="gguf", outtype="f32")
    return next(out.glob("*.gguf"))


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory, small_llama: ModelProto) -> Path:
    """A Hugging Face folder whose likeliest tokens are all words, in an order that nobody knows."""
    folder = make_reciting(tmp_path_factory.mktemp("random") / "hf", small_llama, [])
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(3)
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            torch.nn.init.normal_(tensor, std=0.3)
        if name == "lm_head.weight":
            tensor[: 3 + 256] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def random_gguf(random_model: Path) -> Path:
    """The same as a GGUF file."""
    if find_spec("llama_cpp") is None:
        pytest.skip("llama.cpp is not installed: make llama_cpp compiles it")
    out = random_model.parent / "gguf"
    convert_checkpoint(random_model, out, output_type="gguf", outtype="f32")
    return next(out.glob("*.gguf"))
