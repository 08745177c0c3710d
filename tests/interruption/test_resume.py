"""What an interrupted run leaves, when it is gone on with, and when that is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from merge.errors import OutputError
from merge.output.journal import JOURNAL_NAME
from tests.kit.files import tree
from tests.kit.models import LLAMA_ROWS, adapter_tensors, base_tensors, save_adapter
from tests.kit.stopped import Merging, contents


def note(merging: Merging, **options: object) -> str:
    """Resume, require the right bytes and nothing else, and return what is told of it."""
    report = merging.merge(resume=True, **options)
    assert contents(merging.out) == merging.whole()
    return report.notes[0]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_interrupted_run_goes_on_where_it_was(merging: Merging, share: float) -> None:
    told = merging.stop(int(share * merging.nbytes))
    assert told.startswith("what was written is kept")
    assert "--resume" in told
    names = [path.name for path in merging.out.iterdir()]
    assert JOURNAL_NAME in names
    assert all(name.startswith(".") for name in names)
    done, of = (int(word) for word in note(merging).split() if word.isdigit())
    assert share * of * 0.25 < done < of  # of each file at once, a tensor may be in parts


def test_leftovers_are_named_and_not_touched(merging: Merging) -> None:
    merging.stop(merging.nbytes // 2)
    before = tree(merging.folder)
    with pytest.raises(OutputError, match="an earlier run was interrupted here") as caught:
        merging.merge()
    assert JOURNAL_NAME in caught.value.facts["found"]
    assert ".partial" in caught.value.facts["found"]
    assert "--resume" in caught.value.facts["remedy"]
    assert "--overwrite" in caught.value.facts["remedy"]
    merging.merge(resume=True, dry_run=True)
    assert tree(merging.folder) == before
    assert not any("resumed" in note for note in merging.merge(overwrite=True).notes)
    assert contents(merging.out) == merging.whole()


def test_interruption_before_the_first_tensor_leaves_nothing(merging: Merging) -> None:
    assert merging.stop(1) == ""
    assert not merging.out.exists()
    assert "could be resumed" in note(merging)


def lost(lines: list[bytes]) -> None:
    del lines[len(lines) // 2]


def to_float64(lines: list[bytes]) -> None:
    lines.insert(len(lines) // 2, lines[len(lines) // 2])


def of_another_file(lines: list[bytes]) -> None:
    middle = len(lines) // 2
    lines[middle] = lines[middle].replace(b"consolidated.01", b"consolidated.07")


def with_a_piece_too_many(lines: list[bytes]) -> None:
    middle = len(lines) // 2
    lines[middle] = re.sub(rb"\[(\d+)\]\]", rb"[\1,\1]]", lines[middle])


@pytest.mark.parametrize("change", [lost, to_float64, of_another_file, with_a_piece_too_many])
def test_entries_that_no_plan_explains_are_not_gone_on_from(
    one: Merging, change: Callable[[list[bytes]], None]
) -> None:
    """As an interruption between the two halves of writing an entry once left them."""
    one.stop(one.nbytes * 3 // 4)
    journal = one.out / JOURNAL_NAME
    all_lines = journal.read_bytes().splitlines(keepends=True)
    content = [line for line in all_lines if line.startswith(b'{"content"')]
    lines = [line for line in all_lines if line not in content]
    assert len(lines) > 8
    before = list(lines)
    change(lines)
    assert lines != before
    journal.write_bytes(b"".join([lines[0], *content, *lines[1:]]))
    kept = len(before) // 2 - 1  # the first line says what the run is
    told = one.merge(resume=True).summary()
    assert f"resumed after {kept} of" in told or f"resumed after {kept + 1} of" in told
    assert "do not match the plan" in told
    assert contents(one.out) == one.whole()


def touch(merging: Merging) -> Path:
    path = merging.base / "pytorch_model.bin"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    return path


def copy_over(merging: Merging) -> Path:
    """As ``cp -p`` and ``rsync -t`` do: another model with the size and time of the one before."""
    path = merging.base / "pytorch_model.bin"
    status = path.stat()
    torch.save({name: tensor * 1.5 for name, tensor in base_tensors().items()}, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    return path


def move_over(merging: Merging) -> Path:
    """The same, made elsewhere and moved there."""
    path = merging.base / "pytorch_model.bin"
    status, other = path.stat(), merging.folder / "other.bin"
    torch.save({name: tensor * 1.5 for name, tensor in base_tensors().items()}, other)
    data = other.read_bytes()  # torch notes a file's own name in it
    other.write_bytes(data + bytes(status.st_size - len(data)))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    return path


def train_on(merging: Merging) -> Path:
    save_adapter(merging.adapter, adapter_tensors(LLAMA_ROWS, seed=5), pieces=LLAMA_ROWS)
    return merging.adapter / "adapter_model.bin"


def scale(merging: Merging) -> Path:
    path = merging.adapter / "adapter_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"lora_alpha": 4', '"lora_alpha": 8'))
    return path


no_change_time = pytest.mark.skipif(os.name == "nt", reason="Windows has no change time")


@pytest.mark.parametrize(
    "change",
    [
        touch,
        pytest.param(copy_over, marks=no_change_time),
        pytest.param(move_over, marks=no_change_time),
        train_on,
        scale,
    ],
)
def test_input_that_has_changed_is_named(one: Merging, change: object) -> None:
    one.stop(one.nbytes // 2)
    assert callable(change)
    path = change(one)
    before = tree(one.folder)
    with pytest.raises(OutputError, match="an input has changed") as caught:
        one.merge(resume=True)
    assert caught.value.facts["file"] == str(path)
    assert caught.value.facts["expected"] != caught.value.facts["found"]
    assert "--overwrite" in caught.value.facts["remedy"]
    assert tree(one.folder) == before


@pytest.mark.parametrize(
    ("name", "value"), [("dtype", "float32"), ("num_shards", 1), ("rounding", "per_adapter")]
)
def test_other_option_is_named(one: Merging, name: str, value: object) -> None:
    one.stop(one.nbytes // 2)
    before = tree(one.folder)
    with pytest.raises(OutputError, match=f"had another --{name}") as caught:
        one.merge(**{"resume": True, name: value})
    assert caught.value.facts["found"] == str(value)
    assert tree(one.folder) == before


def test_other_tokenizer_is_refused(one: Merging) -> None:
    one.stop(one.nbytes // 2)
    path = one.adapter / "tokenizer.model"
    tokenizer = ModelProto.FromString(path.read_bytes())
    tokenizer.pieces[-1].score -= 1
    path.write_bytes(tokenizer.SerializeToString())
    before = tree(one.folder)
    with pytest.raises(OutputError, match="the interrupted run was to write another model"):
        one.merge(resume=True)
    assert tree(one.folder) == before


def partials(merging: Merging) -> list[Path]:
    return sorted(merging.out.glob(".*.partial"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def lose_the_end(merging: Merging) -> None:
    """As a power cut does: the length is there, the last pages are zero."""
    for path in partials(merging):
        size = path.stat().st_size
        os.truncate(path, size * 2 // 3)
        os.truncate(path, size)


def damage_the_first(merging: Merging) -> None:
    flip(partials(merging)[0], 5000)


def damage_the_last(merging: Merging) -> None:
    flip(partials(merging)[-1], partials(merging)[-1].stat().st_size - 100)


def cut(merging: Merging) -> None:
    for path in partials(merging):
        os.truncate(path, path.stat().st_size // 2)


def lose_a_file(merging: Merging) -> None:
    partials(merging)[-1].unlink()


def tear_the_journal(merging: Merging) -> None:
    path = merging.out / JOURNAL_NAME
    os.truncate(path, path.stat().st_size - 7)


@pytest.mark.parametrize(
    "damage",
    [lose_the_end, damage_the_first, damage_the_last, cut, lose_a_file, tear_the_journal],
)
def test_what_is_not_right_is_made_again(merging: Merging, damage: object) -> None:
    merging.stop(int(0.9 * merging.nbytes))
    assert callable(damage)
    damage(merging)
    note(merging)


@pytest.mark.parametrize(
    "text", [b"", b"{}\n", b"[1]\n", b"null\n{}\n", b"\xff\x00", b'{"format": 1}\n', b"\n"]
)
def test_journal_of_no_use_means_to_begin_anew(one: Merging, text: bytes) -> None:
    one.stop(one.nbytes // 2)
    (one.out / JOURNAL_NAME).write_bytes(text)
    assert "could be resumed" in note(one)


@pytest.mark.parametrize("where", ["files", "replaces", "committed"])
def test_journal_that_names_files_elsewhere_is_not_believed(one: Merging, where: str) -> None:
    one.stop(one.nbytes // 2)
    outside = one.folder / "precious.json"
    outside.write_text("{}", encoding="utf-8")
    path = one.out / JOURNAL_NAME
    head, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    name = "../precious.json"
    if where == "committed":
        lines = [{"committed": {name: hashlib.sha256(b"{}").hexdigest()}}]
    else:
        head[where].append(name)
    text = "".join(json.dumps(line) + "\n" for line in (head, *lines))
    path.write_text(text, encoding="utf-8")
    assert "could be resumed" in note(one)
    assert outside.read_text(encoding="utf-8") == "{}"


def test_journal_that_disagrees_with_the_files_means_to_begin_anew(one: Merging) -> None:
    one.stop(one.nbytes // 2)
    for path in partials(one):
        flip(path, 0)
    assert "could be resumed" in note(one)


def test_every_budget_goes_on_to_the_same_bytes(one: Merging) -> None:
    for number, share in enumerate((0.4, 0.7)):
        one.options |= {"resume": number > 0, "num_workers": number + 1}
        one.options["io"] = ("direct", "buffered")[number]
        one.stop(int(share * one.nbytes))
    one.options = {"output_type": "pth", "num_shards": 2}
    assert "resumed after" in note(one, io="auto", max_memory="200MB")
