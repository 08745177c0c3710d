"""The verifier passes what is right and finds what is wrong.

It is tried on the output of a plain merge that holds everything in memory, into which faults are
planted one by one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.kinds import AdapterKind
from benchmarks.models import make_adapter, make_base
from benchmarks.reference import round_once
from benchmarks.shapes import Shape
from benchmarks.verify import main, ulps, verify
from tests.benchmarks.plain_merge import (
    State,
    cut,
    plain_merge,
    to_meta,
    write_huggingface,
    write_json,
    write_meta,
)

SHAPE = Shape(64, 2, 8, 4, 176, vocab_size=300)
STAGES = (351, 353)
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "model", SHAPE, shards=3)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(folder / "llama", SHAPE, AdapterKind(8, 32, STAGES[0]), seed=1),
        make_adapter(
            folder / "alpaca", SHAPE, AdapterKind(4, 24, STAGES[1], "safetensors"), seed=2
        ),
    ]


def edit_json(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


@pytest.fixture
def output(tmp_path: Path, adapters: list[Path]) -> Path:
    shutil.copy(adapters[-1] / "tokenizer.model", tmp_path)
    return tmp_path


@pytest.mark.parametrize("end", ["bin", "safetensors"])
def test_right_huggingface_output_passes(
    base: Path, adapters: list[Path], output: Path, end: str
) -> None:
    write_huggingface(output, plain_merge(base, adapters), base, end)
    verdict = verify(base, adapters, output)
    assert verdict.faults == []
    assert sum(c.elements for c in verdict.comparisons) == SHAPE.nbytes(STAGES[1]) // 2


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_right_meta_output_passes(
    base: Path, adapters: list[Path], output: Path, shards: int
) -> None:
    write_meta(output, cut(to_meta(plain_merge(base, adapters), SHAPE.head_dim), shards), base)
    verdict = verify(base, adapters, output)
    assert verdict.faults == []
    assert len(verdict.comparisons) == len(SHAPE.tensors())


def swap_layers(state: State) -> None:
    other = Q.replace("layers.1", "layers.0")
    state[Q], state[other] = state[other], state[Q]


def scale_by_one_percent(state: State) -> None:
    state["model.layers.0.mlp.up_proj.weight"] *= 1.01


def move_rows(state: State) -> None:
    state["lm_head.weight"] = state["lm_head.weight"].roll(1, 0)


def change_one_row(state: State) -> None:
    state["model.embed_tokens.weight"][STAGES[1] - 1] += 0.01


def change_one_element_by_two_ulp(state: State) -> None:
    state["model.layers.1.mlp.down_proj.weight"].view(torch.int16)[7, 100] += 2


def drop_a_norm(state: State) -> None:
    del state["model.layers.1.input_layernorm.weight"]


def add_a_tensor(state: State) -> None:
    state["model.layers.2.input_layernorm.weight"] = torch.ones(64).half()


def lose_a_row(state: State) -> None:
    state["lm_head.weight"] = state["lm_head.weight"][:-1].clone()


def put_a_nan(state: State) -> None:
    state[Q][0, 0] = float("nan")


def widen(state: State) -> None:
    state[Q] = state[Q].float()


def permute_q(state: State) -> None:
    q = state[Q].view(8, 2, 4, 64)
    state[Q] = q.transpose(1, 2).reshape(64, 64).contiguous()


def share_a_storage(state: State) -> None:
    both = torch.stack([state[Q], state[Q]])
    state[Q] = both[0]


FAULTS: dict[Callable[[State], None], str] = {
    swap_layers: "layers.0.self_attn.q_proj",
    scale_by_one_percent: "layers.0.mlp.up_proj",
    move_rows: "lm_head",
    change_one_row: "model.embed_tokens",
    change_one_element_by_two_ulp: "layers.1.mlp.down_proj.weight: 2 ulp",
    drop_a_norm: "layers.1.input_layernorm.weight is missing",
    add_a_tensor: "layers.2.input_layernorm.weight belongs to no model",
    lose_a_row: "lm_head.weight: shape (352, 64), expected (353, 64)",
    put_a_nan: "q_proj",
    widen: "q_proj.weight: ['torch.float32']",
    permute_q: "q_proj",
    share_a_storage: "q_proj.weight is a view",
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_planted_fault_is_found(
    base: Path,
    adapters: list[Path],
    output: Path,
    plant: Callable[[State], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = plain_merge(base, adapters)
    plant(state)
    write_huggingface(output, state, base)
    paths = [str(path) for path in adapters]
    arguments = ["--base_model", str(base), "--output_dir", str(output), "--lora_model", *paths]
    assert main(arguments) == 1
    assert FAULTS[plant] in capsys.readouterr().out


def test_wrong_lora_scaling_is_found(base: Path, adapters: list[Path], output: Path) -> None:
    twice = output / "twice"
    shutil.copytree(adapters[1], twice)
    edit_json(twice / "adapter_config.json", lora_alpha=48)
    state = plain_merge(base, [adapters[0], twice])
    write_huggingface(output, state, base)
    faults = verify(base, adapters, output).faults
    assert len(faults) == 7 * SHAPE.num_hidden_layers


def test_adapters_merged_in_the_other_order_are_found(
    base: Path, adapters: list[Path], output: Path
) -> None:
    write_huggingface(output, plain_merge(base, adapters[::-1]), base)
    assert any("lm_head" in fault for fault in verify(base, adapters, output).faults)


def unpermuted(state: State) -> list[State]:
    k = state["model.layers.0.self_attn.k_proj.weight"]
    return cut(to_meta(state, SHAPE.head_dim) | {"layers.0.attention.wk.weight": k}, 2)


def permuted_with_the_wrong_heads(state: State) -> list[State]:
    k = state["model.layers.0.self_attn.k_proj.weight"]
    wrong = k.view(8, 2, 2, 64).transpose(1, 2).reshape(32, 64)
    return cut(to_meta(state, SHAPE.head_dim) | {"layers.0.attention.wk.weight": wrong}, 2)


def cut_on_the_wrong_axis(state: State) -> list[State]:
    parts = cut(to_meta(state, SHAPE.head_dim), 2)
    for part, half in zip(
        parts, to_meta(state, SHAPE.head_dim)["layers.0.attention.wo.weight"].chunk(2), strict=True
    ):
        part["layers.0.attention.wo.weight"] = half.clone()
    return parts


def shards_swapped(state: State) -> list[State]:
    return cut(to_meta(state, SHAPE.head_dim), 2)[::-1]


def remainder_first(state: State) -> list[State]:
    parts = cut(to_meta(state, SHAPE.head_dim), 2)
    rows = to_meta(state, SHAPE.head_dim)["output.weight"].split([177, 176])
    for part, piece in zip(parts, rows, strict=True):
        part["output.weight"] = piece.clone()
    return parts


def norm_differs_between_shards(state: State) -> list[State]:
    parts = cut(to_meta(state, SHAPE.head_dim), 2)
    parts[1]["norm.weight"][3] = 2
    return parts


def missing_in_one_shard(state: State) -> list[State]:
    parts = cut(to_meta(state, SHAPE.head_dim), 2)
    del parts[1]["layers.1.attention_norm.weight"]
    return parts


META_FAULTS: dict[Callable[[State], list[State]], str] = {
    unpermuted: "layers.0.self_attn.k_proj",
    permuted_with_the_wrong_heads: "layers.0.self_attn.k_proj",
    cut_on_the_wrong_axis: "layers.0.self_attn.o_proj.weight: shape (32, 128)",
    shards_swapped: "model.embed_tokens",
    remainder_first: "lm_head.weight: cut into [177, 176] on axis 0, expected [176, 177]",
    norm_differs_between_shards: "model.norm.weight: copy in shard 1 differs",
    missing_in_one_shard: "layers.1.input_layernorm.weight is missing",
}


@pytest.mark.parametrize("plant", META_FAULTS, ids=lambda plant: plant.__name__)
def test_planted_fault_in_shards_is_found(
    base: Path, adapters: list[Path], output: Path, plant: Callable[[State], list[State]]
) -> None:
    write_meta(output, plant(plain_merge(base, adapters)), base)
    faults = verify(base, adapters, output).faults
    assert any(META_FAULTS[plant] in fault for fault in faults)


def test_wrong_documents_are_found(base: Path, adapters: list[Path], output: Path) -> None:
    write_huggingface(output, plain_merge(base, adapters), base)
    shutil.copy(base / "tokenizer.model", output)
    edit_json(output / "config.json", vocab_size=300, torch_dtype="float32")
    edit_json(output / "pytorch_model.bin.index.json", metadata={"total_size": 7}, weight_map={})
    told = "\n".join(verify(base, adapters, output).faults)
    for part in ("has 300 pieces", "vocab_size is 300", "dtype", "weight_map", "total_size 7"):
        assert part in told


def test_wrong_params_are_found(base: Path, adapters: list[Path], output: Path) -> None:
    write_meta(output, cut(to_meta(plain_merge(base, adapters), SHAPE.head_dim), 1), base)
    changes: dict[str, Any] = {"n_kv_heads": None, "multiple_of": 256, "origin": "merged"}
    edit_json(output / "params.json", vocab_size=-1, **changes)
    shutil.copy(base / "config.json", output)
    told = "\n".join(verify(base, adapters, output).faults)
    for part in ("n_kv_heads is 8", "256 wide", "no origin", "vocab_size is -1", "config.json st"):
        assert part in told


def test_damaged_byte_is_found(base: Path, adapters: list[Path], output: Path) -> None:
    write_meta(output, cut(to_meta(plain_merge(base, adapters), SHAPE.head_dim), 1), base)
    path = output / "consolidated.00.pth"
    content = bytearray(path.read_bytes())
    row = torch.load(path)["output.weight"][200].numpy().tobytes()
    content[content.index(row)] ^= 1
    path.write_bytes(content)
    assert any("bad CRC-32" in fault for fault in verify(base, adapters, output).faults)


def test_truncated_file_cannot_be_compared(base: Path, adapters: list[Path], output: Path) -> None:
    (output / "consolidated.00.pth").write_bytes(b"PK\x03\x04 cut short")
    paths = [str(path) for path in adapters]
    arguments = ["--base_model", str(base), "--output_dir", str(output), "--lora_model", *paths]
    assert main(arguments) == 2


def test_round_once_agrees_with_numpy() -> None:
    generator = torch.Generator().manual_seed(3)
    halves = torch.empty(200_000).normal_(0, 0.02, generator=generator).half().double()
    between = (halves + halves.half().view(torch.int16).add(1).view(torch.float16).double()) / 2
    near_ties = torch.cat([between, between * (1 + 2**-40), between * (1 - 2**-40)])
    values = torch.cat([near_ties, near_ties * 2**-12, torch.tensor([0.0, 65519.9, 1e-9, -1e-9])])
    expected = values.numpy().astype(np.float16)
    rounded = round_once(values, torch.float16)
    assert np.array_equal(rounded.numpy().view(np.int16), expected.view(np.int16))
    assert not torch.equal(values.half(), rounded)  # rounding by way of float32 is not enough


def test_ulps_count_the_floats_in_between() -> None:
    walk = [np.float16(-2e-7)]
    for _ in range(2000):
        walk.append(np.nextafter(walk[-1], np.float16(np.inf)))
    distinct = torch.from_numpy(np.array(walk))
    # -0 and 0 are one number: nextafter steps over them at once
    assert torch.equal(ulps(distinct[:1].expand(2001), distinct), torch.arange(2001).int())
    assert ulps(torch.tensor([float("nan")]).half(), torch.tensor([float("inf")]).half()) > 60_000
