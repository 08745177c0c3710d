"""Merges of Llama 3 and Mixtral in GGUF against llama.cpp's own converter, run on the Hugging Face
output of the same merge.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, MixtralForCausalLM

from merge import convert_checkpoint, merge_lora, verify_merge
from merge.formats import InputFile
from merge.formats import gguf as container
from merge.layouts.opening import open_checkpoint
from tests.kit.adapters import make_adapter
from tests.kit.files import load_weights
from tests.kit.llama3_folders import (
    ROWS,
    SCALED,
    make_llama3,
    with_template,
    write_llama3_tokenizer,
)
from tests.kit.llama3_models import make_llama3 as make_meta_llama3
from tests.kit.llama_cpp import (
    HUGGINGFACE,
    convert,
    converters,
    require_equal_contents,
    require_equal_files,
)
from tests.kit.mixtrals import make_mixtral, make_mixtral_adapter
from tests.kit.transformers_446 import run_in_transformers_446

pytestmark = pytest.mark.slow
pytest.importorskip("gguf", reason="needs the package gguf")
# Without --dtype sums are rounded once, to what the type of the file needs.
DTYPES = {"f16": "float16", "f32": "float32", "bf16": "bfloat16", "q8_0": "float32"}
SCALED_CONFIG = {"rope_parameters": {**SCALED, "rope_theta": 500000.0}}


@pytest.fixture(scope="module", autouse=True)
def _llama_cpp() -> None:
    """Skip without llama.cpp's converter."""
    converters()


@dataclass(frozen=True)
class Case:
    """A base with an adapter, and the type of the file."""

    make: Callable[[Path], tuple[Path, Path]]
    outtype: str = "f16"
    ours: dict[str, Any] = field(default_factory=dict)
    theirs: tuple[str, ...] = ()
    both: dict[str, Any] = field(default_factory=dict)


def _edit_config(folder: Path, without: tuple[str, ...] = (), **changes: Any) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in config.items() if key not in without}
    path.write_text(json.dumps(kept), encoding="utf-8")
    return folder


def _mixtral(**changes: Any) -> Callable[[Path], tuple[Path, Path]]:
    def make(folder: Path) -> tuple[Path, Path]:
        base = make_mixtral(folder / "base", **changes)
        return base, make_mixtral_adapter(folder / "lora", base)

    return make


def _mixtral_with_little_said(folder: Path) -> tuple[Path, Path]:
    """What a configuration leaves out is as transformers' ``MixtralConfig`` has it."""
    sizes = {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
    base, lora = _mixtral(**sizes)(folder)
    left_out = ("rms_norm_eps", "rope_parameters", "max_position_embeddings", "head_dim", *sizes)
    return _edit_config(base, left_out), lora


MIXTRALS = {
    **{outtype: Case(_mixtral(), outtype) for outtype in DTYPES},
    "q8_0-of-short-rows": Case(_mixtral(intermediate_size=80), "q8_0"),
    "head-size": Case(_mixtral(head_dim=16)),
    "bf16-of-bf16": Case(_mixtral(dtype=torch.bfloat16), "bf16"),
    "little-said": Case(_mixtral_with_little_said),
    "one-expert": Case(_mixtral(num_local_experts=1, num_experts_per_tok=1)),
    "split": Case(
        _mixtral(num_hidden_layers=3),
        ours={"split_max_size": "120kB"},
        theirs=("--split-max-size", "120K"),
    ),
}


def _run(cases: dict[str, Case], root: Path) -> dict[str, tuple[Path, Path]]:
    """By case, the folder that was written here and the one that the converter wrote."""
    jobs, found = [], {}
    for name, case in cases.items():
        base, lora = case.make(root / name)
        model, ours, theirs = (root / name / kind / "merged" for kind in ("hf", "ours", "theirs"))
        settings = {"outtype": case.outtype, **case.ours, **case.both}
        merge_lora(base, lora, ours, output_type="gguf", **settings)
        dtype = DTYPES[case.outtype]
        merge_lora(base, lora, model, output_type="huggingface", dtype=dtype, **case.both)
        theirs.mkdir(parents=True)
        words = ("--outfile", str(theirs / "model.gguf"), "--outtype", case.outtype)
        jobs.append([HUGGINGFACE, str(model), *words, *case.theirs])
        found[name] = (ours, theirs)
    for done in convert(jobs):
        assert done.error is None
    return found


@pytest.fixture(scope="module")
def mixtrals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    return _run(MIXTRALS, tmp_path_factory.mktemp("mixtral"))


@pytest.mark.parametrize("name", MIXTRALS)
def test_a_mixtral_is_the_one_that_the_converter_writes(
    mixtrals: dict[str, tuple[Path, Path]], name: str
) -> None:
    ours, theirs = (sorted(folder.glob("*.gguf")) for folder in mixtrals[name])
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        require_equal_files(one, other)


@pytest.mark.parametrize("name", MIXTRALS)
def test_a_merged_mixtral_is_verified(mixtrals: dict[str, tuple[Path, Path]], name: str) -> None:
    found = verify_merge(mixtrals[name][0])
    assert [str(fault) for fault in found.faults] == []
    assert any(line.startswith("vocabulary ") for line in found.checked)


@pytest.mark.parametrize("name", ["f16", "bf16-of-bf16", "head-size", "little-said", "split"])
def test_nothing_that_the_converter_writes_of_a_mixtral_is_called_wrong(
    mixtrals: dict[str, tuple[Path, Path]], name: str
) -> None:
    """Where the dtype of the sums is the base's, as is assumed of other programs' results."""
    folder = mixtrals[name][1]
    base, lora = (folder.parents[1] / kind for kind in ("base", "lora"))
    found = verify_merge(folder, base_model=base, lora_model=lora)
    assert [str(fault) for fault in found.faults] == []


def test_the_converters_mixtral_is_read_as_the_model_that_it_was_made_from(
    mixtrals: dict[str, tuple[Path, Path]],
) -> None:
    wanted = load_weights(mixtrals["f32"][0].parents[1] / "hf" / "merged")
    found = open_checkpoint(mixtrals["f32"][1])
    assert found.config["model_type"] == "mixtral"
    assert found.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found.tensors[name].read(), tensor), name


def test_a_mixtral_in_gguf_is_a_base_as_its_folder_is(tmp_path: Path) -> None:
    base, lora = _mixtral()(tmp_path)
    file = tmp_path / "base.gguf"
    (done,) = convert([[HUGGINGFACE, str(base), "--outfile", str(file), "--outtype", "f16"]])
    assert done.error is None
    contents = []
    for name, given in (("of the file", file), ("of the folder", base)):
        out = tmp_path / name / "merged"
        merge_lora(given, lora, out, output_type="gguf", outtype="f16")
        assert not verify_merge(out).faults
        contents.append(container.read(InputFile(out / "ggml-model-f16.gguf")))
    one, other = contents
    said = [{k: v for k, v in c.metadata.items() if "llama." in k} for c in contents]
    assert said[0] == said[1]
    assert list(one.tensors) == list(other.tensors)
    for name, tensor in other.tensors.items():
        assert torch.equal(one.tensors[name].read(), tensor.read()), name


_RESAVE = """
import json, sys
from transformers import MixtralForCausalLM
model = MixtralForCausalLM.from_pretrained(sys.argv[1], torch_dtype="auto")
model.save_pretrained(sys.argv[2], safe_serialization=False)
print(json.dumps(0))
"""


def test_both_releases_of_transformers_save_a_mixtral_of_which_one_file_is_made(
    tmp_path: Path,
) -> None:
    """transformers 5 keeps experts in one tensor, and saves each by itself as 4.46 does."""
    base = make_mixtral(tmp_path / "base")
    lora = make_mixtral_adapter(tmp_path / "lora", base)
    model = MixtralForCausalLM.from_pretrained(base, dtype=torch.float16)
    model.save_pretrained(tmp_path / "saved by 5")
    run_in_transformers_446(_RESAVE, base, tmp_path / "saved by 446")
    tokenizer = (base / "tokenizer.model").read_bytes()
    contents = []
    for folder in (base, tmp_path / "saved by 5", tmp_path / "saved by 446"):
        (folder / "tokenizer.model").write_bytes(tokenizer)
        out = tmp_path / "out" / folder.name / "merged"
        merge_lora(folder, lora, out, output_type="gguf", outtype="f16")
        contents.append(container.read(InputFile(out / "ggml-model-f16.gguf")))
    first, *others = contents
    for other in others:
        metadata = {k: v for k, v in other.metadata.items() if "base_model" not in k}
        assert metadata == {k: v for k, v in first.metadata.items() if "base_model" not in k}
        assert list(other.tensors) == list(first.tensors)
        for name, tensor in first.tensors.items():
            assert torch.equal(other.tensors[name].read(), tensor.read()), name


@pytest.fixture(scope="module")
def llama3_tokenizer(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama3_tokenizer(tmp_path_factory.mktemp("tokenizer"), real_data)


@pytest.fixture(scope="module")
def llama3s(
    llama3_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path]]:
    tokenizer = llama3_tokenizer

    def instruct(folder: Path) -> tuple[Path, Path]:
        base = with_template(make_llama3(folder / "base", tokenizer.iterdir()))
        return base, make_adapter(folder / "lora", base)

    def grown(folder: Path) -> tuple[Path, Path]:
        """Llama 3.1's scaling, and an adapter with tokens of its own: special, looking so, plain,
        and with a space that llama.cpp wants as it is typed.
        """
        base = make_llama3(folder / "base", tokenizer.iterdir(), **SCALED_CONFIG)
        lora = make_adapter(folder / "lora", base, rows=ROWS + 4)
        (lora / "tokenizer.model").unlink()
        made = AutoTokenizer.from_pretrained(base)
        made.add_special_tokens({"extra_special_tokens": ["[甲]"]})
        made.add_tokens(["<|looks_special|>", "你好世界", "甲▁乙"])
        made.save_pretrained(lora)
        return base, lora

    def tied(folder: Path) -> tuple[Path, Path]:
        """Llama 3.2 with eight rows of padding."""
        changes = {**SCALED_CONFIG, "tie_word_embeddings": True, "vocab_size": ROWS + 8}
        base = make_llama3(folder / "base", tokenizer.iterdir(), **changes)
        return base, make_adapter(folder / "lora", base, modules_to_save=None)

    kept = {"vocab_mismatch": "keep_base_rows"}
    cases = {
        "3-instruct": Case(instruct),
        "3.1-grown": Case(grown, "bf16"),
        "3.2-tied-padded": Case(tied, "q8_0", both=kept),
    }
    return _run(cases, tmp_path_factory.mktemp("llama3"))


LLAMA3S = ("3-instruct", "3.1-grown", "3.2-tied-padded")


@pytest.mark.parametrize("name", LLAMA3S)
def test_a_llama_3_is_the_one_that_the_converter_writes(
    llama3s: dict[str, tuple[Path, Path]], name: str
) -> None:
    (ours,), (theirs,) = (list(folder.glob("*.gguf")) for folder in llama3s[name])
    require_equal_contents(ours, theirs)


@pytest.mark.parametrize("name", LLAMA3S)
def test_a_merged_llama_3_is_verified(llama3s: dict[str, tuple[Path, Path]], name: str) -> None:
    found = verify_merge(llama3s[name][0])
    assert [str(fault) for fault in found.faults] == []
    assert any(line.startswith("vocabulary ") for line in found.checked)


def test_the_converters_llama_3_is_not_called_wrong(llama3s: dict[str, tuple[Path, Path]]) -> None:
    folder = llama3s["3.1-grown"][1]
    base, lora = (folder.parents[1] / kind for kind in ("base", "lora"))
    found = verify_merge(folder, base_model=base, lora_model=lora)
    assert [str(fault) for fault in found.faults] == []


def test_metas_folder_gives_what_the_converter_writes(real_data: Path, tmp_path: Path) -> None:
    base = make_meta_llama3(tmp_path / "base", real_data, "3.1")
    model, ours, theirs = (tmp_path / name / "model" for name in ("hf", "ours", "theirs"))
    convert_checkpoint(base, model, output_type="huggingface", context_length=128)
    convert_checkpoint(base, ours, output_type="gguf", context_length=128)
    theirs.parent.mkdir()
    (done,) = convert([[HUGGINGFACE, str(model), "--outfile", str(theirs.with_suffix(".gguf"))]])
    assert done.error is None
    require_equal_contents(ours / "ggml-model-bf16.gguf", theirs.with_suffix(".gguf"))
    assert not verify_merge(ours, context_length=128).faults


def test_the_cases_of_llama_3_are_what_they_are_called(
    llama3s: dict[str, tuple[Path, Path]],
) -> None:
    """The converter itself saw a template, added tokens, padding, scaling, one vocabulary."""
    found = {
        name: container.read(InputFile(theirs / "model.gguf"))
        for name, (_, theirs) in llama3s.items()
    }
    said = {name: file.metadata for name, file in found.items()}
    for metadata in said.values():
        assert metadata["tokenizer.ggml.model"] == "gpt2"
        assert metadata["tokenizer.ggml.pre"] == "llama-bpe"
        assert len(metadata["tokenizer.ggml.merges"]) == 280_147
    instruct, grown, tied = (said[name] for name in LLAMA3S)
    assert "start_header_id" in instruct["tokenizer.chat_template"]
    assert instruct["tokenizer.ggml.eos_token_id"] == ROWS - 247
    assert grown["tokenizer.ggml.tokens"][ROWS:] == [
        "[甲]",
        "<|looks_special|>",
        "你好世界",
        "甲 乙",
    ]
    control, user_defined, unused = 3, 4, 5
    kinds = [control, control, user_defined, user_defined]
    assert grown["tokenizer.ggml.token_type"][ROWS:] == kinds
    assert tied["tokenizer.ggml.token_type"][ROWS:] == [unused] * 8
    assert "output.weight" not in found["3.2-tied-padded"].tensors
    assert "rope_freqs.weight" in found["3.1-grown"].tensors
