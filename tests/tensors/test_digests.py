"""Content digests made in parts: any order, any pieces, any number of threads and processes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge.layouts.rotary import to_interleaved
from merge.tensors.concatenated import concatenate
from merge.tensors.digests import (
    BlockDigest,
    FreshDigests,
    WholeDigest,
    add_digests,
    add_partial_digests,
    compute_digest,
    get_digests,
    get_partial_digests,
)
from merge.tensors.lazy import LazyTensor, take_rows
from tests.kit.content_digests import hash_blocks, hash_whole
from tests.kit.in_memory import lazy

SHAPES = [(1,), (5,), (600_000,), (0, 4), (3, 0), (64, 9000), (130, 9000), (1000, 2048)]


def fill(shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def split(rows: int, chance: random.Random) -> Iterator[tuple[int, int]]:
    """Ranges that cover all rows, some of them twice, in any order."""
    cuts = sorted(chance.sample(range(rows + 1), min(rows + 1, chance.randint(1, 9))))
    ranges = list(pairwise([0, *cuts, rows]))
    ranges += [sorted(chance.choices(range(rows + 1), k=2)) for _ in range(chance.randint(0, 3))]
    chance.shuffle(ranges)
    yield from ((start, stop) for start, stop in ranges)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.uint8], ids=str)
def test_digest_is_that_of_the_blocks_digests(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = fill(shape, dtype)
    assert compute_digest(lazy(tensor)) == hash_blocks(tensor)
    assert compute_digest(lazy(tensor), 1) == hash_whole(tensor)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_rows_may_come_in_any_order_in_any_pieces_and_twice(seed: int) -> None:
    chance = random.Random(seed)
    tensor = fill((chance.randint(1, 400), chance.choice([1500, 9000])))
    digest = BlockDigest(tuple(tensor.shape))
    seen: set[int] = set()
    for start, stop in split(len(tensor), chance):
        assert digest.hexdigest() == (hash_blocks(tensor) if len(seen) == len(tensor) else None)
        digest.add(start, tensor[start:stop])
        seen.update(range(start, stop))
    assert digest.hexdigest() == hash_blocks(tensor)


def test_memory_that_is_used_again_does_not_change_rows_that_came_early() -> None:
    tensor, digest = fill((64, 9000)), BlockDigest((64, 9000))
    early = tensor[30:].clone()
    digest.add(30, early)
    early.zero_()
    digest.add(0, tensor[:30])
    assert digest.hexdigest() == hash_blocks(tensor)


def test_threads_take_rows_side_by_side() -> None:
    tensor = fill((3000, 2048))
    digest = BlockDigest(tuple(tensor.shape))
    chance = random.Random(1)
    with ThreadPoolExecutor(8) as pool:
        for start, stop in split(len(tensor), chance):
            pool.submit(digest.add, start, tensor[start:stop])
    assert digest.hexdigest() == hash_blocks(tensor)


def test_what_processes_know_is_put_together_from_plain_values() -> None:
    tensor = fill((1024, 2048))
    parts = [add_digests({"w": lazy(tensor)}) for _ in range(3)]
    for number, (start, stop) in enumerate([(512, 1024), (0, 300), (256, 512)]):
        parts[number]["w"].reader()(start, stop, torch.empty(stop - start, 2048).half())
    whole = add_digests({"w": lazy(tensor), "other": lazy(tensor)})
    states = [get_partial_digests(part) for part in parts]
    assert states[0].keys() == {"w"}
    assert sorted(states[0]["w"]) == [2, 3]
    assert sorted(states[1]["w"]) == [0]  # rows 256 to 300 are a part of a block
    for state in states:
        assert get_digests(whole) == {"w": None, "other": None}
        add_partial_digests(whole, state)
    assert get_digests(whole) == {"w": hash_blocks(tensor), "other": None}
    assert get_partial_digests(whole) == {"w": hash_blocks(tensor)}


def test_readers_that_do_not_keep_to_blocks_make_the_same_digest() -> None:
    tensor = fill((320, 9000))
    halves = add_digests({"q": lazy(tensor), "k": lazy(tensor + 1), "e": lazy(tensor)})
    turned: list[LazyTensor] = [
        to_interleaved(halves["q"], 80),
        concatenate([lazy(tensor[:10]), halves["k"]], axis=0),
        take_rows(halves["e"], 100),
    ]
    for one in turned:
        read, step = one.reader(), 64
        starts = list(range(0, one.rows, step))
        random.Random(3).shuffle(starts)
        for start in starts:
            stop = min(start + step, one.rows)
            read(start, stop, torch.empty(stop - start, 9000).half())
    assert get_digests(halves) == {
        "q": hash_blocks(tensor),
        "k": hash_blocks(tensor + 1),
        "e": None,
    }


def test_each_digest_is_taken_once_and_known_ones_are_not_made() -> None:
    tensor = fill((10, 4))
    named = add_digests({"a": lazy(tensor), "b": lazy(tensor)})
    fresh = FreshDigests(named, {"b": "of an earlier run", "gone": "x"})
    assert fresh.take() == {}
    named["a"].read()
    named["b"].read()
    assert fresh.take() == {"a": hash_blocks(tensor)}
    assert fresh.take() == {}
    assert get_digests(named)["b"] == "of an earlier run"


def test_first_version_takes_rows_in_order() -> None:
    tensor, digest = fill((100, 8)), WholeDigest()
    for start in range(0, 100, 30):
        digest.add(start, tensor[start : start + 30])
    assert digest.hexdigest() == hash_whole(tensor)
