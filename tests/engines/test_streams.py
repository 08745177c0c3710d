"""Files side by side: the bytes of one stream, errors, and going on where several had come."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merge.engines.local import run
from merge.engines.spans import divide
from merge.errors import NumberError, OutputError
from merge.layouts.huggingface import place_tensors
from merge.layouts.placement import Stream
from merge.output.journal import JOURNAL_NAME, FileProgress, Journal, read_journal
from merge.output.resume import ResumePoint
from merge.output.staged_folder import StagedFolder
from merge.plan.placement import Plan
from merge.tensors.digests import add_digests, get_digests
from merge.tensors.lazy import LazyTensor, RowReader
from tests.kit.content_digests import hash_blocks
from tests.kit.in_memory import lazy
from tests.kit.models import LLAMA_ROWS, adapter_tensors, base_tensors, save_adapter, save_base
from tests.kit.stopped import Merging, contents

LAYOUTS: dict[str, dict[str, Any]] = {
    "bin": {"output_type": "huggingface", "max_shard_size": "5KB"},
    "safetensors": {
        "output_type": "huggingface",
        "max_shard_size": "5KB",
        "safe_serialization": True,
    },
    "one file": {"output_type": "huggingface"},
    "pth": {"output_type": "pth", "num_shards": 1},
    "pth in 2": {"output_type": "pth", "num_shards": 2},
    "gguf": {"output_type": "gguf", "outtype": "f16", "split_max_size": "4kB"},
}
SHARDED = ["bin", "safetensors", "gguf"]


def make(folder: Path, options: dict[str, Any]) -> Merging:
    merging = Merging(folder, dict(options))
    save_base(merging.base)
    save_adapter(merging.adapter, adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    return merging


def plan_streams(merging: Merging) -> Sequence[Stream]:
    return make_whole_plan(merging).streams


def make_whole_plan(merging: Merging) -> Plan:
    return merging.merge(dry_run=True, output_dir=merging.folder / "none").plan


def whole(merging: Merging) -> dict[str, bytes]:
    """The files of an uninterrupted run; GGUF has the name of the folder in it."""
    folder = merging.folder / "whole" / "out"
    merging.merge(output_dir=folder, num_workers=1)
    return contents(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_streams_and_memory_change_no_byte(tmp_path: Path, layout: str) -> None:
    merging = make(tmp_path, LAYOUTS[layout])
    merging.merge(num_workers=1)
    alone = contents(merging.out)
    for workers, memory in ((2, "64MB"), (5, "1MB"), (8, "256MB")):
        out = tmp_path / str(workers) / "out"
        merging.merge(output_dir=out, num_workers=workers, max_memory=memory)
        assert contents(out) == alone


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_file_is_a_stream_but_those_that_share_tensors(tmp_path: Path, layout: str) -> None:
    merging = make(tmp_path, LAYOUTS[layout])
    streams = plan_streams(merging)
    assert (len(streams) > 2) is (layout in SHARDED)
    files = [file for stream in streams for file in stream.files]
    assert len(set(files)) == len(files)
    assert len(files) == len(streams) or layout == "pth in 2"
    numbers = sorted(number for stream in streams for number in stream.tensors)
    assert numbers == list(range(len(make_whole_plan(merging).placed)))


def test_memory_is_one_budget_for_all_streams() -> None:
    streams = [Stream((number,), (str(number),)) for number in range(20)]
    for workers in (1, 2, 8, 16):
        shares = divide(streams, workers, 256 << 20)
        assert shares.streams == workers
        assert shares.streams * shares.buffers * shares.span_bytes <= 256 << 20
    assert divide(streams[:1], 8, 256 << 20).streams == 1


@pytest.mark.parametrize("layout", SHARDED)
def test_error_in_the_inputs_of_one_stream_ends_all_and_leaves_nothing(
    tmp_path: Path, layout: str
) -> None:
    merging = make(tmp_path, LAYOUTS[layout])
    tensors = base_tensors()
    name = "model.layers.1.input_layernorm.weight"
    tensors[name][3] = torch.nan
    save_base(merging.base, tensors)
    with pytest.raises(NumberError) as caught:
        merging.merge(num_workers=4)
    assert name in caught.value.facts["tensor"]
    assert not merging.out.exists()


@pytest.mark.parametrize("layout", SHARDED)
def test_error_of_the_system_in_one_stream_keeps_what_all_have_written(
    tmp_path: Path, layout: str
) -> None:
    merging = make(tmp_path, LAYOUTS[layout])
    limit = merging.nbytes // 2

    def progress(done: int, _: int) -> None:
        if done > limit:
            raise OSError(5, "Input/output error")

    with pytest.raises(OutputError, match="reading or writing failed") as caught:
        merging.merge(num_workers=4, on_progress=progress)
    assert "what was written is kept" in caught.value.facts["remedy"]
    assert "resumed after" in merging.merge(resume=True, num_workers=3).notes[0]
    assert contents(merging.out) == whole(merging)


@dataclass(frozen=True)
class Slow(LazyTensor):
    """Zeros that take their time, or an error at the first row."""

    starts: list[int]
    is_bad: bool

    def reader(self) -> RowReader:
        def fill(start: int, _: int, out: torch.Tensor) -> None:
            if self.is_bad:
                raise OSError(5, "Input/output error")
            self.starts.append(start)
            time.sleep(0.01)
            out.zero_()

        return fill


def test_other_streams_end_soon_after_an_error(tmp_path: Path) -> None:
    starts: list[int] = []
    shape = (64 * 1000, 8192)
    tensors = {
        name: Slow(shape, torch.float16, name, starts, name == "bad") for name in ("long", "bad")
    }
    plan = make_plan(tensors, 64 * 1000 * 8192 * 2)
    assert len(plan.streams) == 2
    with pytest.raises(OSError, match="Input/output"), StagedFolder(tmp_path) as staged:
        write(plan, staged, plan.streams)
    assert len(starts) < 100
    assert not list(tmp_path.glob(".model*"))


def make_plan(tensors: dict[str, Any], shard_bytes: int) -> Plan:
    digested = add_digests(tensors)
    return Plan(tuple(place_tensors(digested, ".safetensors", shard_bytes)), {}, digested)


def write(plan: Plan, staged: StagedFolder, streams: Sequence[Stream]) -> Any:
    return run(
        plan,
        staged,
        num_workers=2,
        max_memory=64 << 20,
        on_bytes=lambda _: None,
        io="auto",
        journal=None,
        resume_point=ResumePoint(),
        named=plan.tensors,
        streams=streams,
    )


def test_some_streams_of_a_plan_can_be_written_by_themselves(tmp_path: Path) -> None:
    values = {f"t{n}": torch.full((100, 30), n, dtype=torch.float32) for n in range(4)}
    plan = make_plan({name: lazy(tensor) for name, tensor in values.items()}, 13_000)
    assert len(plan.streams) == 4
    with StagedFolder(tmp_path) as staged:
        written = write(plan, staged, plan.streams[1:3])
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted(written) == [file for s in plan.streams[1:3] for file in s.files]
    for number, file in enumerate(files, start=1):
        data = (tmp_path / file).read_bytes()
        assert (written[file].nbytes, written[file].sha256) == (
            len(data),
            sha256(data).hexdigest(),
        )
        assert torch.equal(load_file(tmp_path / file)[f"t{number}"], values[f"t{number}"])
    known = {name: hash_blocks(values[name]) for name in ("t1", "t2")}
    assert get_digests(plan.tensors) == {"t0": None, **known, "t3": None}


@pytest.mark.parametrize("layout", SHARDED)
def test_damage_to_one_file_costs_only_its_stream(tmp_path: Path, layout: str) -> None:
    merging = make(tmp_path, LAYOUTS[layout])
    merging.stop(int(merging.nbytes * 0.9))
    record = read_journal(merging.out)
    assert record is not None
    lost = max(record.entries, key=lambda entry: entry.tensors).files
    for name in lost:
        path = merging.out / f".{name}.partial"
        path.write_bytes(bytes(len(path.read_bytes())))
    kept = sum(len(entry.tensors) for entry in record.entries if not entry.files.keys() & lost)
    assert kept
    note = merging.merge(resume=True).notes[0]
    assert f"resumed after {kept} of" in note
    assert contents(merging.out) == whole(merging)


@pytest.mark.parametrize("layout", SHARDED)
def test_whole_file_that_was_written_elsewhere_is_gone_on_from(tmp_path: Path, layout: str) -> None:
    """As an engine of several machines notes it: one entry, with the digests of its tensors."""
    merging = make(tmp_path, LAYOUTS[layout])
    merging.stop(merging.nbytes // 2)
    record = read_journal(merging.out)
    assert record is not None
    wanted, stream = whole(merging), plan_streams(merging)[2]
    said = json.loads(wanted["merge_manifest.json"])
    shutil.rmtree(merging.out)
    merging.out.mkdir()
    journal = Journal(merging.out, record.identity, record.files, record.replaces)
    journal.start()
    plan = make_whole_plan(merging)
    content = {
        f"{role}: {name}": entry["xxh3_128_of_blocks"]
        for role, tensors in (
            ("base_model", said["inputs"]["base_model"]["tensors"]),
            ("result", said["tensors"]),
        )
        for name, entry in tensors.items()
        if name in {plan.placed[number].name for number in stream.tensors} and any(entry.values())
    }
    (file,) = stream.files
    data = wanted[file]
    (merging.out / f".{file}.partial").write_bytes(data)
    place = FileProgress(len(data), sha256(data).hexdigest(), (0,) * len(stream.tensors))
    journal.add(stream.tensors, {file: place}, {n: d for n, d in content.items() if d})
    journal.close()
    note = merging.merge(resume=True).notes[0]
    assert f"resumed after {len(stream.tensors)} of" in note
    assert contents(merging.out) == wanted


def test_journal_of_the_first_format_means_to_begin_anew(tmp_path: Path) -> None:
    merging = make(tmp_path, LAYOUTS["bin"])
    merging.stop(merging.nbytes // 2)
    path = merging.out / JOURNAL_NAME
    path.write_text(path.read_text(encoding="utf-8").replace('"format":2', '"format":1', 1))
    assert "nothing of the interrupted run could be resumed" in merging.merge(resume=True).notes[0]
    assert contents(merging.out) == whole(merging)
