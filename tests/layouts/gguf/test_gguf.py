"""LLaMA in GGUF: what goes in comes out, and what cannot be right is refused."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece import SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from demo import text
from merge import apply_delta, convert_checkpoint, make_delta
from merge.errors import LayoutError, NumberError, UsageError, VocabularyError
from merge.layouts import llama
from merge.layouts.config import LlamaShape
from merge.layouts.opening import open_checkpoint
from merge.tokenizers import sentencepiece_model as spm
from tests.kit.files import load_weights
from tests.kit.llamas import make_base
from tests.kit.rewritten_gguf import rewrite_gguf
from tests.kit.run import run_python
from tests.kit.tokenizer_models import write_tokenizer

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("gguf") / "base", num_key_value_heads=2)


def _write_gguf(base: Path, output: Path, **options: Any) -> Path:
    convert_checkpoint(base, output, output_type="gguf", **options)
    return output


def test_the_tables_names_are_the_packages() -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    shape = LlamaShape(64, 176, 3, 8, 8, 8, False)
    for entry in llama.entries(shape):
        assert entry.gguf == names.get_name(entry.hf, (".weight",))


@pytest.mark.parametrize("outtype", ["f16", "f32"])
@pytest.mark.parametrize("split", [None, "50kB"])
def test_written_tensors_read_back_equal(
    base: Path, tmp_path: Path, outtype: str, split: str | None
) -> None:
    output = _write_gguf(base, tmp_path / "out", outtype=outtype, split_max_size=split)
    found, wanted = open_checkpoint(output), load_weights(base)
    shape = LlamaShape.from_config(found.config, "")
    assert list(found.tensors) == [entry.hf for entry in llama.entries(shape)]
    for name, tensor in wanted.items():
        read = found.tensors[name].read()
        is_half = outtype == "f16" and tensor.dim() > 1
        assert read.dtype == (torch.float16 if is_half else torch.float32)
        assert torch.equal(read.float(), tensor.float()), name
    assert (len(found.files) == 1) == (split is None)


def test_q8_0_comes_back_within_half_a_step_of_each_block(base: Path, tmp_path: Path) -> None:
    found = open_checkpoint(
        _write_gguf(base, tmp_path / "out", outtype="q8_0") / "ggml-model-q8_0.gguf"
    )
    for name, tensor in load_weights(base).items():
        read, wanted = found.tensors[name].read().double(), tensor.double()
        if tensor.dim() < 2 or tensor.shape[1] % 32:
            assert torch.equal(read, wanted), name
            continue
        blocks = wanted.view(tensor.shape[0], -1, 32)
        steps = blocks.abs().amax(dim=2, keepdim=True) / 127
        off = (read.view_as(blocks) - blocks).abs()
        assert float((off / steps).max()) < 0.5 + 127 * 2**-11, name
        assert float((off / steps).max()) > 0.3, name


def test_the_configuration_is_told_by_the_metadata(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", num_key_value_heads=2, head_dim=16)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    found = open_checkpoint(_write_gguf(base, tmp_path / "out")).config
    shape = LlamaShape.from_config(config, "")
    assert LlamaShape.from_config(found, "") == shape
    assert found["rms_norm_eps"] == pytest.approx(1e-6)
    assert found["max_position_embeddings"] == 64
    assert found["vocab_size"] == 101


def test_rows_that_q8_0_cannot_hold_are_told(base: Path, tmp_path: Path) -> None:
    report = convert_checkpoint(base, tmp_path / "out", output_type="gguf", outtype="q8_0")
    assert "2 tensors have rows that are no multiple of 32 long" in report.summary()
    assert "model.layers.0.mlp.down_proj.weight" in report.summary()
    reader = gguf.GGUFReader(tmp_path / "out" / "ggml-model-q8_0.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["output_norm.weight"] == "F32"


def test_workers_and_memory_change_no_byte(base: Path, tmp_path: Path) -> None:
    files = [
        (
            _write_gguf(
                base, tmp_path / str(n) / "out", outtype="q8_0", num_workers=n, max_memory=memory
            )
            / "ggml-model-q8_0.gguf"
        ).read_bytes()
        for n, memory in ((1, "32MB"), (3, "64MB"))
    ]
    assert files[0] == files[1]


def test_tokens_and_rows_that_differ_are_refused_with_both_numbers(
    base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "tokenizer"
    other.mkdir()
    write_tokenizer(other, 99)
    with pytest.raises(VocabularyError, match=r"101 tokens(.|\n)*99 tokens"):
        _write_gguf(base, tmp_path / "out", tokenizer=other)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def like_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose tokenizer asks for nothing that llama.cpp does not know, as LLaMA's."""
    model = text.train_base_tokenizer(text.read_lines("english"))
    pieces = len(ModelProto.FromString(model).pieces)
    base = make_base(tmp_path_factory.mktemp("like") / "base", vocab_size=pieces)
    (base / "tokenizer.model").write_bytes(model)
    return base


def _with_tokenizer(base: Path, folder: Path, change: Callable[[ModelProto], object]) -> Path:
    model = spm.read_model(base)
    change(model)
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return folder


def _rewrite_characters(model: ModelProto) -> None:
    """As SentencePiece does unless it is told otherwise when a model is trained."""
    trained = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=iter(["a b"]),
        model_writer=trained,
        vocab_size=6,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    rules = ModelProto.FromString(trained.getvalue()).normalizer_spec.precompiled_charsmap
    model.normalizer_spec.precompiled_charsmap = rules


def _without_bytes(model: ModelProto) -> None:
    model.trainer_spec.byte_fallback = False
    for piece in model.pieces:
        if piece.type == spm.BYTE:
            piece.type = spm.NORMAL


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: setattr(m.normalizer_spec, "remove_extra_whitespaces", True), "outer spaces"),
        (_rewrite_characters, "rewriting of characters"),
        (lambda m: setattr(m.normalizer_spec, "escape_whitespaces", False), "stay spaces"),
        (lambda m: setattr(m.trainer_spec, "treat_whitespace_as_suffix", True), "end a piece"),
        (lambda m: setattr(m.pieces[300], "type", spm.USER_DEFINED), "user-defined"),
        (_without_bytes, "no pieces of bytes"),
    ],
)
def test_what_llama_cpp_does_not_do_of_a_tokenizer_is_told(
    like_llama: Path, change: Callable[[ModelProto], object], told: str, tmp_path: Path
) -> None:
    notes = [
        convert_checkpoint(
            like_llama,
            tmp_path / f"out-{name}",
            output_type="gguf",
            tokenizer=_with_tokenizer(like_llama, tmp_path / name, edit),
        ).summary()
        for name, edit in {"plain": lambda _: None, "changed": change}.items()
    ]
    assert "llama.cpp knows nothing" not in notes[0]
    assert re.search(rf"llama\.cpp knows nothing(.|\n)*{told}", notes[1])


def test_a_tokenizer_that_is_not_bpe_is_refused(like_llama: Path, tmp_path: Path) -> None:
    tokenizer = _with_tokenizer(
        like_llama, tmp_path / "unigram", lambda m: setattr(m.trainer_spec, "model_type", 1)
    )
    with pytest.raises(VocabularyError, match=r"a BPE model(.|\n)*unigram"):
        _write_gguf(like_llama, tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_value_that_q8_0_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.float32, max_shard_size="10GB")
    path = next(base.glob("*.bin"))
    weights = torch.load(path, weights_only=True)
    weights["model.layers.1.mlp.up_proj.weight"][5, 7] = 1e9
    torch.save(weights, path)
    with pytest.raises(NumberError, match=r"up_proj(.|\n)*1e\+09"):
        _write_gguf(base, tmp_path / "out", outtype="q8_0")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_type": "huggingface", "outtype": "f16"}, "--output_type gguf"),
        ({"output_type": "pth", "split_max_size": "1GB"}, "--output_type gguf"),
        ({"output_type": "gguf", "num_shards": 2}, "--output_type pth"),
        ({"output_type": "gguf", "safe_serialization": True}, "--output_type huggingface"),
        ({"output_type": "pth", "max_shard_size": "2GB"}, "--output_type huggingface"),
        ({"output_type": "pth", "chat_template": "alpaca"}, "chat_template has no place"),
        ({"output_type": "gguf", "outtype": "q4_km"}, "outtype"),
        ({"output_type": "gguf", "split_max_size": "large"}, "split_max_size"),
        ({"output_type": "gguf", "split_max_size": "0"}, "split_max_size"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    base: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        convert_checkpoint(base, tmp_path / "out", **options)


def test_other_scalings_of_positions_are_refused_by_name(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    path = base / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("rope_parameters", None)
    config["rope_scaling"] = {"type": "longrope", "factor": 2.0}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(LayoutError, match="longrope"):
        _write_gguf(base, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": {"general.architecture": "qwen2"}}, "another architecture(.|\n)*qwen2"),
        ({"names": {"blk.1.ffn_up.weight": ""}}, "lacks a tensor(.|\n)*blk.1.ffn_up.weight"),
        ({"add": "blk.0.ffn_gate_inp.weight"}, "does not describe(.|\n)*ffn_gate_inp"),
    ],
)
def test_a_file_that_is_no_llama_is_refused(
    base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    whole = _write_gguf(base, tmp_path / "out") / "ggml-model-f16.gguf"
    copy = rewrite_gguf(whole, tmp_path / "copy.gguf")
    assert open_checkpoint(copy).tensors.keys() == open_checkpoint(whole).tensors.keys()
    other = rewrite_gguf(whole, tmp_path / "other.gguf", **changes)
    with pytest.raises(LayoutError, match=message):
        open_checkpoint(other)


_SCALING = "llama.rope.scaling"


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({f"{_SCALING}.type": "linear", f"{_SCALING}.factor": 4.0}, 4.0),
        ({f"{_SCALING}.factor": 4.0}, 4.0),
        ({"llama.rope.scale_linear": 4.0}, 4.0),
        ({f"{_SCALING}.factor": 4.0, "llama.rope.scale_linear": 2.0}, 4.0),
        ({f"{_SCALING}.type": "linear"}, None),
        ({f"{_SCALING}.factor": 1.0}, None),
        ({f"{_SCALING}.type": "none", f"{_SCALING}.factor": 4.0}, None),
        ({f"{_SCALING}.type": "none", "llama.rope.scale_linear": 4.0}, None),
    ],
)
def test_positions_are_scaled_as_llama_cpp_scales_them(
    base: Path, tmp_path: Path, keys: dict[str, object], factor: float | None
) -> None:
    """By ``load_hparams``: linear where no type is said."""
    whole = _write_gguf(base, tmp_path / "out") / "ggml-model-f16.gguf"
    config = open_checkpoint(rewrite_gguf(whole, tmp_path / "other.gguf", keys)).config
    wanted = None if factor is None else {"rope_type": "linear", "factor": factor}
    assert config["rope_scaling"] == wanted


def test_a_missing_part_is_named(base: Path, tmp_path: Path) -> None:
    output = _write_gguf(base, tmp_path / "out", split_max_size="60kB")
    (output / "ggml-model-f16-00002-of-00004.gguf").unlink()
    with pytest.raises(LayoutError, match=r"1 missing: ggml-model-f16-00002-of-00004\.gguf"):
        open_checkpoint(output)


def test_two_models_in_one_folder_are_not_guessed_between(base: Path, tmp_path: Path) -> None:
    output = _write_gguf(base, tmp_path / "out")
    (output / "other.gguf").write_bytes((output / "ggml-model-f16.gguf").read_bytes())
    with pytest.raises(LayoutError, match="several GGUF models"):
        open_checkpoint(output)
    assert open_checkpoint(output / "other.gguf").tensors


def test_the_alpaca_template_puts_instructions_as_the_model_was_trained(
    base: Path, tmp_path: Path
) -> None:
    """Rendered by transformers, of whose template language llama.cpp's is a copy."""
    from transformers import AutoTokenizer

    convert_checkpoint(base, tmp_path / "hf", chat_template="alpaca")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    turns = [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "您好！"},
        {"role": "user", "content": "再见"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n\n你好\n\n### Response:\n\n您好！</s>\n\n"
        "### Instruction:\n\n再见\n\n### Response:\n\n"
    )


def test_a_missing_package_is_said_in_one_message(base: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['gguf'] = None\n"
        "from merge.commands.convert_checkpoint import main\n"
        f"sys.exit(main(['--input', {str(base)!r}, '--output', {str(tmp_path / 'out')!r}, "
        "'--output_type', 'gguf']))"
    )
    done = run_python("-c", code)
    assert done.returncode == 2
    assert "pip install 'chinese-llama-merge[gguf]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_delta_is_applied_into_gguf_and_never_made_of_it(base: Path, tmp_path: Path) -> None:
    target = make_base(tmp_path / "target", num_key_value_heads=2, seed=3)
    with pytest.raises(UsageError, match="a delta is no model"):
        make_delta(base, target, tmp_path / "delta", output_type="gguf")
    make_delta(base, target, tmp_path / "delta", dtype="float32")
    apply_delta(base, tmp_path / "delta", tmp_path / "out", output_type="gguf")
    found = open_checkpoint(tmp_path / "out").tensors
    for name, tensor in load_weights(target).items():  # a few differences need more digits
        assert torch.allclose(found[name].read().float(), tensor.float(), atol=1e-6), name


def test_metas_layout_becomes_gguf(base: Path, tmp_path: Path) -> None:
    """Both keep rotary pairs side by side, but the way goes through Hugging Face's order."""
    convert_checkpoint(base, tmp_path / "meta", output_type="pth", num_shards=2)
    report = convert_checkpoint(tmp_path / "meta", tmp_path / "out", output_type="gguf")
    assert "does not say the context length" in report.summary()
    pth = [torch.load(p, weights_only=True) for p in sorted((tmp_path / "meta").glob("*.pth"))]
    reader = gguf.GGUFReader(tmp_path / "out" / "ggml-model-f16.gguf")
    wq = next(t.data for t in reader.tensors if t.name == "blk.1.attn_q.weight")
    name = "layers.1.attention.wq.weight"
    assert torch.equal(torch.from_numpy(wq.copy()), torch.cat([part[name] for part in pth]))


def test_gguf_is_no_base(base: Path, tmp_path: Path) -> None:
    _write_gguf(base, tmp_path / "gguf")
    with pytest.raises(LayoutError, match=r"GGUF, for llama\.cpp"):
        convert_checkpoint(tmp_path / "gguf", tmp_path / "out")


def test_a_list_of_ends_leaves_the_tokenizers_own(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    path = base / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"eos_token_id": [2, 7]}), encoding="utf-8")
    assert open_checkpoint(_write_gguf(base, tmp_path / "out")).config["eos_token_id"] == 2


def test_sources_are_named_without_their_folders(base: Path, tmp_path: Path) -> None:
    path = _write_gguf(base, tmp_path / "out") / "ggml-model-f16.gguf"
    fields = gguf.GGUFReader(path).fields
    assert fields["general.base_model.count"].contents() == 1
    assert fields["general.base_model.0.name"].contents() == "Base"
    assert str(base.parent).encode() not in path.read_bytes()
