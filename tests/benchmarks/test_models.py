"""Benchmark models are what they claim: PEFT and transformers load them, sizes are LLaMA's."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from benchmarks.kinds import AdapterKind, BaseKind
from benchmarks.models import make_adapter, make_base
from benchmarks.shapes import SHAPES, Shape
from benchmarks.tokenizers import REAL_DATA, write_tokenizer
from merge import verify_merge
from merge.checksums.known_files import find_tokenizer
from tests.kit.files import load_weights

SHAPE = Shape(64, 2, 8, 4, 176, vocab_size=300)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("7b", 6.738), ("13b", 13.016), ("70b", 68.977)],  # as Meta's papers and files have them
)
def test_shapes_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    assert SHAPES[name].nbytes() / 2e9 == pytest.approx(billions, abs=0.001)


@pytest.mark.parametrize("container", ["bin", "safetensors"])
def test_the_same_bytes_on_every_run(tmp_path: Path, container: str) -> None:
    digests = []
    for run in ("first", "second"):
        base = make_base(tmp_path / run / "base", SHAPE, BaseKind(container))
        adapter = make_adapter(
            tmp_path / run / "adapter", SHAPE, AdapterKind(rows=351, container=container)
        )
        files = sorted([*base.iterdir(), *adapter.iterdir()])
        digests.append([hashlib.sha256(file.read_bytes()).digest() for file in files])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == len(digests[0])


def test_a_complete_model_is_kept_and_an_unfinished_one_is_made_anew(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", SHAPE)
    shard = folder / "pytorch_model-00001-of-00002.bin"
    content = shard.read_bytes()
    shard.write_bytes(b"changed")
    make_base(folder, SHAPE)
    assert shard.read_bytes() == b"changed"
    (folder / "benchmark_model.json").write_text("{}", encoding="utf-8")
    make_base(folder, SHAPE)
    assert shard.read_bytes() == content


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="not a benchmark's"):
        make_base(tmp_path, SHAPE)
    assert (tmp_path / "pytorch_model.bin").read_bytes() == b"precious"


@pytest.mark.parametrize("pieces", [300, 32000, 49953, 49954])
def test_synthetic_tokenizer_has_as_many_pieces_as_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    monkeypatch.delenv(REAL_DATA, raising=False)
    write_tokenizer(tmp_path, pieces)
    tokenizer = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert tokenizer.get_piece_size() == pieces
    assert tokenizer.decode(tokenizer.encode("a 中 text")) == "a 中 text"


@pytest.mark.parametrize(
    ("pieces", "model"), [(49953, "Chinese-LLaMA-7B"), (49954, "Chinese-Alpaca-7B")]
)
def test_real_tokenizers_are_the_published_ones(
    tmp_path: Path, real_data: Path, pieces: int, model: str
) -> None:
    assert real_data.is_dir()
    write_tokenizer(tmp_path, pieces)
    digest = hashlib.sha256((tmp_path / "tokenizer.model").read_bytes()).hexdigest()
    published = find_tokenizer(model)
    assert published is not None
    assert digest == published.sha256


@pytest.mark.parametrize("container", ["bin", "safetensors"])
def test_sparse_base_has_the_shapes_and_takes_no_room(tmp_path: Path, container: str) -> None:
    sparse = make_base(tmp_path / "base", SHAPES["tiny"], BaseKind(container, sparse=True))
    files = list(sparse.glob(f"*model*.{container}"))
    tensors = load_weights(sparse)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == (
        SHAPES["tiny"].tensors()
    )
    assert not any(tensor.any() for tensor in tensors.values())
    assert sum(path.stat().st_size for path in files) > SHAPES["tiny"].nbytes()
    if sys.platform == "linux":
        assert sum(path.stat().st_blocks * 512 for path in files) < SHAPES["tiny"].nbytes() // 10


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")  # fields of PEFT 0.2
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's own call
def test_merge_and_unload_of_peft_passes(tmp_path: Path, dora: bool) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = make_base(tmp_path / "base", SHAPE, BaseKind("safetensors"))
    adapter = make_adapter(tmp_path / "adapter", SHAPE, AdapterKind(rows=351, dora=dora))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(351, mean_resizing=False)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    output = tmp_path / "output"
    output.mkdir()
    torch.save(
        {name: tensor.half() for name, tensor in merged.state_dict().items()},
        output / "pytorch_model.bin",
    )
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (output / "config.json").write_text(json.dumps(config | {"vocab_size": 351}), "utf-8")
    shutil.copy(adapter / "tokenizer.model", output)
    assert verify_merge(output, base_model=base, lora_model=adapter).faults == ()
