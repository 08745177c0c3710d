"""Disks, permissions and renames that fail at the worst moments, and the order of durability."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from merge import convert_checkpoint, merge_lora
from merge.errors import OutputError
from merge.jobs.apply_delta import apply_delta, make_delta
from merge.jobs.job_report import Report
from merge.jobs.resize_vocabulary import resize_vocabulary
from merge.jobs.writing import sum_sizes
from merge.output.journal import JOURNAL_NAME
from tests.interruption.final_names import require_nothing_half
from tests.kit.files import tree
from tests.kit.models import LLAMA_ROWS, adapter_tensors, base_tensors, save_adapter, save_base
from tests.kit.stopped import (
    Merging,
    contents,
    interrupted_at,
    limited_file_size,
    patch_os,
)
from tests.kit.tokenizer_models import tokenizer_model

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs limits and users of POSIX")


def failed(merging: Merging, **options: object) -> OutputError:
    """Merge, and require that it fails with a message and keeps what was written."""
    with pytest.raises(OutputError) as caught:
        merging.merge(**options)
    assert "what was written is kept" in caught.value.facts["remedy"]
    assert "--resume" in caught.value.facts["remedy"]
    assert all(path.name.startswith(".") for path in merging.out.iterdir())
    return caught.value


def resume(merging: Merging) -> str:
    report = merging.merge(resume=True)
    assert contents(merging.out) == merging.whole()
    return report.notes[0]


@posix
def test_full_disk(merging: Merging) -> None:
    if merging.options["output_type"] == "huggingface":
        merging.options["max_shard_size"] = "1GB"
    with limited_file_size(3 << 12):
        error = failed(merging)
    assert error.sentence == "the disk is full: the result could not be written"
    assert error.facts["file"] == str(merging.out)
    assert "resumed after" in resume(merging)


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="reads by position are not to be had here")
def test_read_error_under_the_reader(merging: Merging, monkeypatch: pytest.MonkeyPatch) -> None:
    read, count = os.preadv, 0

    def broken(*arguments: object) -> int:
        nonlocal count
        count += 1
        if count > 60:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", broken)
        error = failed(merging)
    assert error.sentence == "reading or writing failed"
    assert error.facts["file"] == str(merging.base / "pytorch_model.bin")
    assert error.facts["found"] == os.strerror(errno.EIO)
    assert "resumed after" in resume(merging)


@contextmanager
def root_at_the_end() -> Iterator[None]:
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else"
)
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_lost_permission(merging: Merging, share: float) -> None:
    limit, nobody = int(share * merging.nbytes), 65534

    def progress(written: int, _: int) -> None:
        if written >= limit:
            os.seteuid(nobody)

    with pytest.raises(OutputError) as caught, root_at_the_end():
        merging.merge(on_progress=progress)
    error = caught.value
    assert "--resume" in error.facts["remedy"]
    assert all(path.name.startswith(".") for path in merging.out.iterdir())
    assert error.sentence == "reading or writing failed"
    assert error.facts["found"] == os.strerror(errno.EACCES)
    assert "resumed after" in resume(merging)


def test_name_that_is_taken_meanwhile(one: Merging) -> None:
    """A folder under the name of a file: it cannot be replaced, wherever its turn is."""
    blocked = one.out / "params.json" / "something"

    def progress(*_: int) -> None:
        blocked.parent.mkdir(exist_ok=True)
        blocked.touch()

    with pytest.raises(OutputError) as caught:
        one.merge(on_progress=progress)
    assert "--resume" in caught.value.facts["remedy"]
    assert not (one.out / "merge_manifest.json").exists()
    blocked.unlink()
    blocked.parent.rmdir()
    assert "given their names" in resume(one)


@pytest.mark.parametrize("earlier", ["another layout", "the same names"])
def test_interruption_at_every_change_of_a_name(
    merging: Merging, monkeypatch: pytest.MonkeyPatch, earlier: str
) -> None:
    another = {"output_type": "huggingface", "num_shards": None}
    options = another if earlier == "another layout" else {"lora_weights": "0.5"}
    merging.merge(**options, output_dir=merging.folder / "earlier")
    before, whole = contents(merging.folder / "earlier"), merging.whole()
    for number in range(len(before) + len(whole)):
        shutil.rmtree(merging.out, ignore_errors=True)
        shutil.copytree(merging.folder / "earlier", merging.out)
        with (
            interrupted_at(number, merging.out, monkeypatch),
            pytest.raises(KeyboardInterrupt, match="--resume"),
        ):
            merging.merge(overwrite=True)
        require_nothing_half(contents(merging.out), before, whole)
        assert number == 0 or not (merging.out / "merge_manifest.json").exists()
        assert "given their names" in resume(merging)


def test_transformers_loads_one_result_or_none(
    tmp_path: Path, small_writes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models with the same names in several shards: what is there is never half of each."""
    from transformers import AutoModelForCausalLM

    options = {"output_type": "huggingface", "max_shard_size": "8KB", "safe_serialization": True}
    merging = Merging(tmp_path, options)
    save_base(merging.base)
    save_adapter(merging.adapter, adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    merging.merge(lora_weights="0.5", output_dir=tmp_path / "earlier")
    before, whole = contents(tmp_path / "earlier"), merging.whole()
    loaded = []
    for number in range(len(before) + len(whole)):
        shutil.rmtree(merging.out, ignore_errors=True)
        shutil.copytree(tmp_path / "earlier", merging.out)
        with (
            interrupted_at(number, merging.out, monkeypatch),
            pytest.raises(KeyboardInterrupt, match="--resume"),
        ):
            merging.merge(overwrite=True)
        try:
            AutoModelForCausalLM.from_pretrained(merging.out, dtype="auto")
        except (OSError, ValueError):
            continue
        there = contents(merging.out)
        weights = {name for name in whole if name.startswith("model")}
        of = [all(there[name] == one[name] for name in weights) for one in (before, whole)]
        assert any(of)
        loaded.append(of)
    assert [True, False] in loaded
    assert [False, True] in loaded
    assert len(loaded) < len(whole)


def test_everything_is_durable_before_the_first_rename(
    merging: Merging, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[tuple[str, int | str]] = []
    sync, replace, unlink = os.fsync, os.replace, os.unlink

    def synced(handle: int) -> None:
        happened.append(("sync", os.fstat(handle).st_ino))
        sync(handle)

    def renamed(source: Path, target: Path) -> None:
        if Path(target).name != JOURNAL_NAME:
            happened.append(("rename", Path(source).stat().st_ino))
            happened.append(("to", Path(target).name))
        replace(source, target)

    def removed(path: Path, **options: int) -> None:
        happened.append(("unlink", Path(path).name))
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        patch_os(patch, "replace", renamed)
        patch_os(patch, "unlink", removed)
        merging.merge()
    kinds = [kind for kind, _ in happened]
    first = kinds.index("rename")
    last = len(kinds) - 1 - kinds[::-1].index("rename")
    files = [what for kind, what in happened if kind == "rename"]
    before = [what for kind, what in happened[:first] if kind == "sync"]
    after = [what for kind, what in happened[last:] if kind == "sync"]
    names = [what for kind, what in happened if kind == "to"]
    assert set(files) < set(before)
    assert "sync" not in kinds[first:last]
    assert names[-1] == "merge_manifest.json"
    assert sorted(map(str, names)) == sorted(merging.whole())
    if sys.platform != "win32":
        folder = merging.out.stat().st_ino
        assert after == [folder]
        assert before[-1] == folder
    assert happened[::-1].index(("unlink", ".merge_journal")) < happened[::-1].index(
        ("to", "merge_manifest.json")
    )


def test_second_run_is_refused_while_the_first_writes(one: Merging) -> None:
    refusals = []

    def progress(*_: int) -> None:
        if refusals:
            return
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(OutputError, match="another run is writing") as caught:
                merge_lora(one.base, one.adapter, one.out, **options)
            refusals.append(caught.value.facts["found"])

    one.merge(on_progress=progress)
    assert set(refusals) == {f"process {os.getpid()}"}
    assert contents(one.out) == one.whole()


def jobs(folder: Path) -> dict[str, Callable[..., Report]]:
    """Every other job that writes a model."""
    base = save_base(folder / "base")
    other = save_base(folder / "other", {k: v * 1.5 for k, v in base_tensors().items()})
    delta = save_base(folder / "delta", {k: v * -0.5 for k, v in base_tensors().items()})
    larger = folder / "larger"
    larger.mkdir()
    (larger / "tokenizer.model").write_bytes(tokenizer_model(60))
    return {
        "convert": lambda out, **o: convert_checkpoint(base, out, **o),
        "resize": lambda out, **o: resize_vocabulary(base, larger, out, init="normal", **o),
        "make_delta": lambda out, **o: make_delta(base, other, out, **o),
        "apply_delta": lambda out, **o: apply_delta(base, delta, out, **o),
    }


@pytest.mark.parametrize("name", ["convert", "resize", "make_delta", "apply_delta"])
@pytest.mark.usefixtures("small_writes")
def test_every_job_can_be_resumed(tmp_path: Path, name: str) -> None:
    job, out = jobs(tmp_path)[name], tmp_path / "out"

    def progress(written: int, total: int) -> None:
        if written > 0.7 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="--resume"):
        job(out, on_progress=progress)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="was interrupted here"):
        job(out)
    with pytest.raises(OutputError, match="another --dtype"):
        job(out, resume=True, dtype="float32")
    assert tree(tmp_path) == before
    assert any("resumed after" in note for note in job(out, resume=True).notes)
    job(tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_difference_that_was_resumed_does_not_count_half(
    tmp_path: Path, small_writes: None
) -> None:
    job, out = jobs(tmp_path)["make_delta"], tmp_path / "out"
    assert any("gives back" in note for note in job(tmp_path / "whole").notes)

    def progress(written: int, total: int) -> None:
        if written > 0.7 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job(out, on_progress=progress)
    assert not any("gives back" in note for note in job(out, resume=True).notes)


def test_adapter_in_a_zip_can_be_resumed(one: Merging) -> None:
    """It is unpacked into another folder each time."""
    archive = shutil.make_archive(str(one.folder / "zipped"), "zip", one.adapter)

    def progress(written: int, total: int) -> None:
        if written > 0.7 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_lora(one.base, archive, one.out, on_progress=progress, **one.options)
    report = merge_lora(one.base, archive, one.out, resume=True, **one.options)
    assert "resumed after" in report.notes[0]


def test_leftover_that_goes_while_it_is_counted_takes_no_room(tmp_path: Path) -> None:
    """Machines of a cluster remove theirs when they see that the driver has died."""
    (tmp_path / "there").write_bytes(b"1234")
    assert sum_sizes([tmp_path / "there", tmp_path / "gone"]) == 4
