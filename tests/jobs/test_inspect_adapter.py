"""``inspect_adapter``, and that it says of each pair what the merge says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.commands.inspect_adapter import main
from merge.commands.merge_lora import main as merge
from merge.jobs.inspect_adapter import compact
from merge.storage.input_file import InputFile
from tests.kit.models import (
    ALPACA_ROWS,
    BASE_ROWS,
    LAYERS,
    LLAMA_ROWS,
    PREFIX,
    RANK,
    adapter_tensors,
    base_tensors,
    random_tensor,
    save_adapter,
    save_base,
)
from tests.kit.run import ROOT, run_merge

SCRIPT = ROOT / "scripts" / "inspect_adapter.py"
Said = Callable[..., tuple[int, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Run the command in this process: its exit code and its words."""

    def inspect(*words: object) -> tuple[int, str]:
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        return code, told.out + told.err

    return inspect


@pytest.mark.slow
def test_the_script_itself(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "lora", adapter_tensors())
    done = run_merge(adapter, script=SCRIPT)
    assert done.returncode == 0, done.stderr
    assert "LORA, PEFT 0.2" in done.stdout


def test_what_an_adapter_is_and_whether_it_fits(tmp_path: Path, said: Said) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "lora", adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    code, told = said(adapter, "--base_model", base)
    assert code == 0
    for words in (
        "LORA, PEFT 0.2",
        "q_proj: rank 2 x 2, in 2 tensors",
        f"vocabulary {LLAMA_ROWS} rows",
        "float16",
        "not known by this digest",
        f"grown from {BASE_ROWS} to {LLAMA_ROWS} rows",
        f"fits       {base}, written as pth or huggingface",
        f"tokenizer  {adapter}",
    ):
        assert words in told


@pytest.mark.parametrize(
    "fields", [{"peft_type": "VERA"}, {"peft_type": "LILY"}, {"use_dora": True}]
)
def test_refusal_is_foretold(tmp_path: Path, said: Said, fields: dict[str, object]) -> None:
    adapter = save_adapter(tmp_path / "lora", adapter_tensors(), **fields)
    code, told = said(adapter)
    assert code == 1
    assert "refused" in told


def test_folder_without_an_adapter(tmp_path: Path, said: Said) -> None:
    code, told = said(tmp_path)
    assert code == 2
    assert "no adapter configuration" in told


def test_every_module_of_its_own_rank_is_told(tmp_path: Path, said: Said) -> None:
    tensors = {}
    for layer, rank in enumerate([2, 2, 4, 4, 2, 4, 2]):
        module = f"{PREFIX}model.layers.{layer}.self_attn.q_proj"
        tensors[f"{module}.lora_A.weight"] = random_tensor(rank, 16)
        tensors[f"{module}.lora_B.weight"] = random_tensor(16, rank)
    pattern = {r"layers\.(2|3|5)\.self_attn\.q_proj": 4}
    adapter = save_adapter(tmp_path / "lora", tensors, rank_pattern=pattern)
    _, told = said(adapter, "--no_digest")
    assert "q_proj: rank 2 x 2, in 4 tensors" in told
    assert "model.layers.{2-3,5}.self_attn.q_proj: rank 4 x 1" in told
    _, told = said(adapter, "--no_digest", "--verbose")
    for layer, words in enumerate(["2 x 2", "2 x 2", "4 x 1", "4 x 1", "2 x 2", "4 x 1", "2 x 2"]):
        assert f"adds       model.layers.{layer}.self_attn.q_proj: rank {words}" in told


def sparse_adapter(folder: Path) -> Path:
    """An adapter of 7B's vocabulary with the three keys of PEFT 0.21: 2.4 GB, none on the disk."""
    shapes = {
        f"{PREFIX}model.layers.{layer}.self_attn.q_proj.{half}.weight": shape
        for layer in range(32)
        for half, shape in (("lora_A", (8, 4096)), ("lora_B", (4096, 8)))
    }
    for name in ("model.embed_tokens", "lm_head"):
        for part in ("", "modules_to_save.", "original_module."):
            shapes[f"{PREFIX}{name}.{part}weight"] = (49953, 4096)
    entries: dict[str, Any] = {}
    end = 0
    for name, (rows, columns) in shapes.items():
        begin, end = end, end + 2 * rows * columns
        entries[name] = {"dtype": "F16", "shape": [rows, columns], "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    folder.mkdir()
    with (folder / "adapter_model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)
    fields = {"peft_type": "LORA", "r": 8, "lora_alpha": 32}
    fields["modules_to_save"] = ["embed_tokens", "lm_head"]
    (folder / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def test_without_a_digest_only_headers_are_read(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = sparse_adapter(tmp_path / "lora")
    read: list[int] = []
    into = InputFile.read_into

    def counted(file: InputFile, buffer: memoryview, offset: int) -> None:
        read.append(len(buffer))
        into(file, buffer, offset)

    monkeypatch.setattr(InputFile, "read_into", counted)
    code, told = said(adapter, "--no_digest")
    assert code == 0
    assert "replaces   lm_head.weight: (49953, 4096)" in told
    assert "copies     of 2 trained tensors not compared" in told
    assert sum(read) < 100_000


@pytest.mark.parametrize("flags", [(), ("--no_digest",)])
def test_copies_that_differ_are_told_where_weights_are_read(
    tmp_path: Path, said: Said, flags: tuple[str, ...]
) -> None:
    tensors = adapter_tensors(LLAMA_ROWS)
    other = torch.ones_like(tensors[f"{PREFIX}lm_head.weight"])
    tensors[f"{PREFIX}lm_head.modules_to_save.weight"] = other
    code, told = said(save_adapter(tmp_path / "lora", tensors), *flags)
    assert code == (0 if flags else 1)
    assert ("two different versions" in told) != bool(flags)


def test_names_are_told_together_only_when_they_differ_by_their_layer() -> None:
    assert compact(["layers.3.a", "layers.3.b", "lm_head"]) == [
        "layers.3.a",
        "layers.3.b",
        "lm_head",
    ]


def quantised() -> dict[str, torch.Tensor]:
    name = "model.layers.0.self_attn.q_proj.qweight"
    return base_tensors() | {name: torch.zeros(4, 4, dtype=torch.int32)}


def merged_already() -> dict[str, torch.Tensor]:
    given = adapter_tensors(LLAMA_ROWS)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    return base_tensors(LLAMA_ROWS) | {name: given[PREFIX + name] for name in names}


def without_lora_b() -> dict[str, torch.Tensor]:
    return {
        name: t
        for name, t in adapter_tensors().items()
        if "layers.0.self_attn.q_proj.lora_B" not in name
    }


def of_layer(number: int) -> dict[str, torch.Tensor]:
    module = f"{PREFIX}model.layers.{number}.self_attn.q_proj"
    return {
        f"{module}.lora_A.weight": random_tensor(RANK, 16),
        f"{module}.lora_B.weight": random_tensor(16, RANK),
    }


SCALED = {"rope_scaling": {"type": "linear", "factor": 4.0}}
GROWN = {"tensors": base_tensors(LLAMA_ROWS), "pieces": LLAMA_ROWS}
WHOLE = adapter_tensors(LLAMA_ROWS)
SECOND = {"base_model_name_or_path": "/Llama-2-7b-hf"}
# What the base is made of, and the adapter.
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fits": ({}, {}),
    "fits and grows": ({}, {"tensors": WHOLE, "pieces": LLAMA_ROWS}),
    "no tokenizer for the new rows": ({}, {"tensors": WHOLE}),
    "a tokenizer of one more": ({}, {"tensors": WHOLE, "pieces": ALPACA_ROWS}),
    "a tokenizer with nothing to it": ({}, {"pieces": LLAMA_ROWS}),
    "the vocabulary would shrink": (GROWN, {"tensors": adapter_tensors(BASE_ROWS)}),
    "no lm_head for new rows": (
        {},
        {
            "tensors": {n: t for n, t in WHOLE.items() if "lm_head" not in n},
            "pieces": LLAMA_ROWS,
        },
    ),
    "merged already": (
        GROWN | {"tensors": merged_already()},
        {"tensors": WHOLE, "pieces": LLAMA_ROWS},
    ),
    "another size": ({}, {"tensors": adapter_tensors(hidden=32)}),
    "a layer too many": ({}, {"tensors": of_layer(LAYERS)}),
    "half an adapter": ({}, {"tensors": without_lora_b()}),
    "of a modified base": ({}, {"init_lora_weights": "pissa"}),
    "no LoRA": ({}, {"peft_type": "IA3"}),
    "a rank of its own": ({}, {"r": 3}),
    "quantised base": ({"tensors": quantised()}, {}),
    "a base without tokenizer": ({"pieces": None}, {}),
    "a base of other numbers": ({"hidden_size": 32}, {}),
    "a base that is no LLaMA": ({"model_type": "mistral"}, {}),
    "a base that is no model": ({"model_type": None}, {}),
    "positions that params.json cannot say": (SCALED, {}),
    "second generation on a merged base": (
        {"tensors": base_tensors(55296)},
        {"tensors": adapter_tensors(55296)} | SECOND,
    ),
}


@pytest.mark.parametrize("layouts", [("pth", "huggingface"), ("gguf",)], ids=" and ".join)
@pytest.mark.parametrize(("base_made", "adapter_made"), PAIRS.values(), ids=PAIRS)
def test_inspection_and_merge_agree(
    tmp_path: Path,
    said: Said,
    capsys: pytest.CaptureFixture[str],
    base_made: dict[str, Any],
    adapter_made: dict[str, Any],
    layouts: tuple[str, ...],
) -> None:
    base = save_base(tmp_path / "base", **base_made)
    adapter = save_adapter(tmp_path / "lora", **adapter_made)
    one = () if len(layouts) > 1 else ("--output_type", layouts[0])
    code, told = said(adapter, "--base_model", base, *one)
    words = ["--base_model", str(base), "--lora_model", str(adapter), "--dry_run"]
    words += ["--output_dir", str(tmp_path / "out"), "--quiet", "--output_type"]
    possible = [layout for layout in layouts if merge([*words, layout]) == 0]
    refusals = capsys.readouterr().err
    assert code == (0 if possible else 1)
    if possible:
        assert f"fits       {base}, written as {' or '.join(possible)}\n" in told
        for line in refusals.splitlines():
            if line.startswith("error: "):
                assert line.removeprefix("error: ") in told
    else:
        assert "fits" not in told
        last = refusals[refusals.rindex("error: ") + 7 :]
        assert f"refused    {last}" in told
