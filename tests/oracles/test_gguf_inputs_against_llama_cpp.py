"""Bases and adapters that llama.cpp's own converters made: merged like the folders of the same
values, and llama.cpp says of the result what it says of base and adapter.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from demo import text
from merge import convert_checkpoint, merge_lora, verify_merge
from merge.tokenizers import sentencepiece_model as spm
from tests.kit.adapters import LINEAR, make_lora
from tests.kit.files import write_json
from tests.kit.llama_cpp import HUGGINGFACE, LORA, convert, gguf_contents
from tests.kit.llama_cpp_runs import run_llama_cpp
from tests.kit.llamas import llama_config

pytestmark = pytest.mark.slow
gguf = pytest.importorskip("gguf", reason="needs the package gguf")

PROMPT = [1, *range(100, 130)]
MORE = 32
OUTTYPES = ("f32", "f16", "bf16", "q8_0")


def make_model(folder: Path, **changes: Any) -> Path:
    """A base in float16 with a tokenizer as LLaMA's, in which a token is added, and a template."""
    model = ModelProto.FromString(text.train_base_tokenizer(text.read_lines("english")))
    torch.manual_seed(0)
    config = llama_config(
        vocab_size=len(model.pieces) + 1,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        **changes,
    )
    LlamaForCausalLM(config).half().save_pretrained(folder)
    spm.write_model(model, folder / "tokenizer.model")
    write_json(folder / "added_tokens.json", {"甲▁乙": len(model.pieces)})
    described = dict.fromkeys(("add_bos_token", "add_prefix_space"), True)
    described |= {"add_eos_token": False, "chat_template": "{{ messages[0]['content'] }}"}
    write_json(folder / "tokenizer_config.json", described)
    write_json(folder / "generation_config.json", {"do_sample": True, "temperature": 0.6})
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` and ``lora`` as PEFT has them, and what llama.cpp's converters make of them."""
    folder = tmp_path_factory.mktemp("made")
    base = make_model(folder / "base")
    make_lora(folder / "lora", base, target_modules=LINEAR, std=0.1)
    jobs = [
        (HUGGINGFACE, base, "--outfile", folder / f"{outtype}.gguf", "--outtype", outtype)
        for outtype in OUTTYPES
    ]
    split = (HUGGINGFACE, base, "--outfile", folder / "split.gguf", "--outtype", "f16")
    jobs += [(*split, "--split-max-size", "200K")]
    lora = [(LORA, folder / "lora", "--outfile", folder / "lora.gguf", "--base", base)]
    assert [done.error for done in convert([*jobs, *lora])] == [None] * (len(jobs) + 1)
    return folder


def contents(path: Path) -> dict[str, Any]:
    """Tensors and metadata, scores and types of tokens too; names of models are left out, and the
    unknown token, which the converter does not write.
    """
    fields = gguf.GGUFReader(path).fields
    kept = ("tokenizer.", "general.sampling", "general.file_type", "general.architecture")
    more = {key: field.contents() for key, field in fields.items() if key.startswith(kept)}
    found = gguf_contents(path) | more
    found.pop("tokenizer.ggml.unknown_token_id", None)
    return found


@pytest.mark.parametrize("of_base", ["f32", "f16", "bf16", "split-00001-of-*"])
@pytest.mark.parametrize("outtype", ["f32", "f16"])
def test_the_result_is_that_of_the_folder(
    made: Path, tmp_path: Path, of_base: str, outtype: str
) -> None:
    """bf16 has fewer digits, so there the folder is what the file holds."""
    source, options = made / "base", {"output_type": "gguf", "outtype": outtype}
    if of_base == "bf16":
        source = tmp_path / "bf16"
        convert_checkpoint(made / "base", source, dtype="bfloat16")
    merge_lora(source, made / "lora", tmp_path / "folder", **options)
    (file,) = made.glob(f"{of_base}.gguf")
    report = merge_lora(file, made / "lora.gguf", tmp_path / "file", **options)
    name = f"ggml-model-{outtype}.gguf"
    found, wanted = (contents(tmp_path / out / name) for out in ("file", "folder"))
    assert found == wanted
    assert found["tokenizer.chat_template"].startswith("{{")
    assert verify_merge(report.output_dir).faults == ()


def test_q8_0_is_read_as_the_package_reads_it(made: Path, tmp_path: Path) -> None:
    """The dequantized values as a folder are the oracle."""
    from gguf.quants import dequantize

    options = {"output_type": "gguf", "outtype": "f32"}
    file = made / "q8_0.gguf"
    merge_lora(file, made / "lora", tmp_path / "file", allow_quantized_input=True, **options)
    writer = gguf.GGUFWriter(tmp_path / "whole.gguf", "llama")
    source = gguf.GGUFReader(file)
    for key, field in source.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            entry = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], entry)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    merge_lora(tmp_path / "whole.gguf", made / "lora", tmp_path / "whole", **options)
    found, wanted = (contents(tmp_path / n / "ggml-model-f32.gguf") for n in ("file", "whole"))
    assert found == wanted


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama.cpp is not installed: make llama_cpp compiles it",
)
def test_llama_cpp_says_the_same_of_the_result_as_of_base_and_adapter(
    made: Path, tmp_path: Path
) -> None:
    merge_lora(
        made / "f32.gguf",
        made / "lora.gguf",
        tmp_path / "out",
        output_type="gguf",
        outtype="f32",
    )
    options = {"output_type": "huggingface", "dtype": "float32"}
    merge_lora(made / "base", made / "lora", tmp_path / "hf", **options)
    file = tmp_path / "out" / "ggml-model-f32.gguf"
    lines = ["Hello there", " two  spaces ", "中文, 甲 乙"]
    merged = run_llama_cpp(file, tmp_path, [PROMPT], MORE, lines)
    base, lora = made / "f32.gguf", made / "lora.gguf"
    both = run_llama_cpp(base, tmp_path, [PROMPT], MORE, lines, lora)
    bare = run_llama_cpp(base, tmp_path, [PROMPT], 1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPT])).logits[0]
    spread = float(logits.max() - logits.min())
    assert float((merged["logits"][0] - both["logits"][0]).abs().max()) < 1e-4 * spread
    assert float((merged["logits"][0] - logits).abs().max()) < 1e-4 * spread
    assert float((bare["logits"][0] - logits).abs().max()) > 0.1 * spread
    assert merged["continuations"] == both["continuations"]
    assert merged["ids"] == both["ids"]
