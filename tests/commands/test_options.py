"""Options at their extremes and beyond, from Python and on the command line alike."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import apply_delta, convert_checkpoint, merge_lora
from merge.errors import UsageError
from merge.job_settings import MergeSettings
from tests.kit.files import Tensors, load_weights, tree
from tests.kit.models import LLAMA_ROWS, adapter_tensors, base_tensors, save_adapter, save_base
from tests.kit.run import run_merge, run_python

# A width and heads that every number of files from 1 to 16 divides into, in turn.
HEADS = {shards: shards * 2 for shards in range(1, 17)}
HEAD_WIDTH = 128


def wide_model(heads: int) -> tuple[Tensors, dict[str, Any]]:
    """One layer of so many heads, large enough for direct reads and several write buffers."""
    width, inner = heads * HEAD_WIDTH, heads * 64
    shapes = {
        "model.embed_tokens.weight": (256, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (256, width),
        "model.layers.0.input_layernorm.weight": (width,),
        "model.layers.0.post_attention_layernorm.weight": (width,),
        **{f"model.layers.0.self_attn.{n}_proj.weight": (width, width) for n in "qkvo"},
        "model.layers.0.mlp.gate_proj.weight": (inner, width),
        "model.layers.0.mlp.up_proj.weight": (inner, width),
        "model.layers.0.mlp.down_proj.weight": (width, inner),
    }
    torch.manual_seed(heads)
    tensors = {name: torch.randn(shape).mul_(0.02).half() for name, shape in shapes.items()}
    tensors["model.norm.weight"].abs_()
    config = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": 1,
        "vocab_size": 256,
    }
    return tensors, config


def equal_tensors(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("shards", range(1, 17))
def test_every_number_of_files_is_written_in_every_way_and_read_back(
    tmp_path: Path, shards: int
) -> None:
    tensors, config = wide_model(HEADS[shards])
    base = save_base(tmp_path / "base", tensors, pieces=256, **config)
    written = {}
    for io in ("auto", "direct", "buffered"):
        out = tmp_path / io
        convert_checkpoint(base, out, output_type="pth", num_shards=shards, io=io)
        files = sorted(out.glob("consolidated.*.pth"))
        assert len(files) == shards
        written[io] = [path.read_bytes() for path in files]
        norm = torch.load(files[-1], weights_only=True)["norm.weight"]
        assert torch.equal(norm, tensors["model.norm.weight"])
    assert written["auto"] == written["direct"] == written["buffered"]
    convert_checkpoint(tmp_path / "direct", tmp_path / "back", context_length=2048)
    assert equal_tensors(load_weights(tmp_path / "back"), tensors)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "lora", adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)


def test_python_takes_what_the_command_line_takes(base: Path, lora: Path, tmp_path: Path) -> None:
    merge_lora(base, lora, tmp_path / "python", output_type="hf", max_shard_size=4000)
    words = ("--base_model", base, "--lora_model", lora, "--output_dir", tmp_path / "command")
    ended = run_merge(*words, "--output_type", "hf", "--max_shard_size", "4000")
    assert ended.returncode == 0, ended.stderr
    ours, theirs = (
        {p.name: p.read_bytes() for p in (tmp_path / name).glob("*.bin")}
        for name in ("python", "command")
    )
    assert len(ours) > 1
    assert ours == theirs


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_memory", "1"),
        ("max_memory", "999999"),
        ("max_memory", -1),
        ("max_memory", 1.5),
        ("max_memory", True),
        ("max_memory", "nan"),
        ("max_shard_size", None),
        ("max_shard_size", 0),
        ("max_shard_size", 4e9),
        ("num_workers", "2"),
        ("num_workers", 1.0),
        ("num_workers", True),
        ("num_shards", "two"),
        ("context_length", "long"),
        ("safe_serialization", "no"),
        ("resume", 1),
        ("overwrite", "false"),
        ("dry_run", None),
        ("copy_code", "yes"),
        ("lora_weights", "nan"),
        ("lora_weights", "inf"),
        ("lora_weights", "1,2"),
        ("lora_weights", [float("-inf")]),
        ("lora_weights", ["a"]),
        ("lora_weights", 1.0),
        ("io", "fast"),
        ("rounding", None),
        ("output_type", "HF"),
    ],
)
def test_value_that_means_nothing_is_refused_by_name(
    base: Path, lora: Path, tmp_path: Path, option: str, value: object
) -> None:
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=f"--{option}"):
        merge_lora(base, lora, tmp_path / "out", **{option: value})  # type: ignore[arg-type]
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "words",
    [
        ("--max_memory", "1"),
        ("--max_memory", "nan"),
        ("--max_memory=-64MB",),
        ("--lora_weights", "nan"),
        ("--lora_weights", "inf"),
        ("--num_workers", "0"),
        ("--num_shards", "0"),
        ("--num_shards", "3"),
        ("--num_shards", "99999999999999999999"),
        ("--output_type", "hf", "--max_shard_size", "0"),
        ("--context_length", "-1"),
    ],
    ids=" ".join,
)
def test_value_that_means_nothing_ends_the_command_in_one_message(
    base: Path, lora: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    before = tree(tmp_path)
    out = tmp_path / "out"
    given = ("--base_model", base, "--lora_model", lora, "--output_dir", out, *words)
    ended = run_merge(*given)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert words[-2:][0].partition("=")[0] in ended.stderr or "heads" in ended.stderr
    assert tree(tmp_path) == before


@pytest.mark.parametrize("option", ["max_memory", "num_workers"])
def test_largest_values_change_no_byte(base: Path, lora: Path, tmp_path: Path, option: str) -> None:
    values = {"max_memory": ("1MB", "1000TB"), "num_workers": (1, 64)}[option]
    outs = []
    for value in values:
        out = tmp_path / str(value)
        merge_lora(base, lora, out, **{option: value})  # type: ignore[arg-type]
        outs.append((out / "consolidated.00.pth").read_bytes())
    assert outs[0] == outs[1]


@pytest.mark.parametrize(
    ("memory", "workers", "used"),
    [("64MB", 2, 2), ("64MB", 16, 5), ("1MB", 16, 1), ("256MB", 16, 16)],
)
def test_no_more_threads_compute_than_the_budget_has_room_for(
    memory: str, workers: int, used: int
) -> None:
    assert MergeSettings(max_memory=memory, num_workers=workers).workers == used


@pytest.mark.parametrize(
    ("misspelt", "meant"), [("ouput_type", "output_type"), ("num_worker", "num_workers")]
)
def test_misspelt_keyword_names_the_one_that_is_meant(
    base: Path, lora: Path, tmp_path: Path, misspelt: str, meant: str
) -> None:
    jobs: list[Any] = [
        lambda **given: merge_lora(base, lora, tmp_path / "out", **given),
        lambda **given: convert_checkpoint(base, tmp_path / "out", **given),
        lambda **given: apply_delta(base, lora, tmp_path / "out", **given),
    ]
    for job in jobs:
        with pytest.raises(UsageError, match=f"no option {misspelt}") as caught:
            job(**{misspelt: 1})
        assert caught.value.facts["remedy"] == f"did you mean {meant}?"


def test_weight_of_zero_is_told(base: Path, lora: Path, tmp_path: Path) -> None:
    report = merge_lora(base, lora, tmp_path / "out", lora_weights="0")
    assert "its weight is 0" in report.summary()


def test_two_merges_side_by_side_give_the_same_bytes_and_keep_torchs_threads(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    merge_lora(base, lora, tmp_path / "alone")
    alone = (tmp_path / "alone" / "consolidated.00.pth").read_bytes()
    with ThreadPoolExecutor(2) as pool:
        outs = [tmp_path / f"out{number}" for number in range(8)]
        list(pool.map(lambda out: merge_lora(base, lora, out), outs))
    assert {(out / "consolidated.00.pth").read_bytes() for out in outs} == {alone}
    assert torch.get_num_threads() == before
    fresh: list[int] = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [before]


def test_no_thread_of_a_merge_lets_torch_start_others(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(3)
    try:
        merge_lora(base, lora, tmp_path, on_progress=lambda *_: seen.add(torch.get_num_threads()))
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert seen == {1}
    assert after == 3


MANY = """
import gc, os, sys, threading
from pathlib import Path
from merge import merge_lora

base, lora, work = map(Path, sys.argv[1:])
def merge(number):
    io = ("direct", "buffered", "auto")[number % 3]
    kind = ({"output_type": "pth", "num_shards": 2}, {"output_type": "hf", "max_shard_size": 5000})
    merge_lora(base, lora, work / f"out{number}", io=io, **kind[number % 2])
def held():
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()
merge(0), merge(1), merge(2)
before = held()
for number in range(3, 103):
    merge(number)
assert held() == before, (before, held())
left = list(work.rglob(".*"))
assert not left, left
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
def test_hundred_merges_leave_no_descriptor_thread_or_folder(tmp_path: Path) -> None:
    tensors, config = wide_model(2)
    base = save_base(tmp_path / "base", tensors, pieces=256, **config)
    matrices = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.randn(2, 256),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.randn(256, 2),
    }
    lora = save_adapter(tmp_path / "lora", matrices)
    (tmp_path / "work").mkdir()
    work = tmp_path / "work"
    ended = run_python("-c", MANY, base, lora, work, timeout=300, TMPDIR=str(work))
    assert ended.returncode == 0, ended.stderr


def test_tensors_without_elements_are_written(base: Path, lora: Path, tmp_path: Path) -> None:
    """Some decoders keep empty buffers; nothing may be divided by their size."""
    empty = {"model.layers.0.empty": torch.zeros(3, 0), "model.zz": torch.zeros(0, 4)}
    other = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    save_base(base, base_tensors() | empty, **other)
    for safe in (False, True):
        out = tmp_path / str(safe)
        options = {"safe_serialization": safe, "max_shard_size": 4000}
        merge_lora(base, lora, out, output_type="huggingface", dtype="auto", **options)
        found = load_weights(out)
        assert all(found[name].shape == tensor.shape for name, tensor in empty.items())
