"""Pickles made to run code, or to cost more than a checkpoint does. Nothing in them runs."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from merge.formats import open_container
from merge.formats.torch import legacy as torch_legacy
from tests.kit.refusals import refused
from tests.kit.run import quick_environment

HEAD = b"\x80\x02"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def state(value: bytes) -> bytes:
    """A state dict with one entry."""
    return HEAD + b"}" + text("w") + value + b"s."


def storage(kind: str = "torch\nFloatStorage", key: bytes = text("0"), count: bytes = b"K\x04"):  # type: ignore[no-untyped-def]
    return b"(" + text("storage") + f"c{kind}\n".encode() + key + text("cpu") + count + b"tQ"


def tensor(*, shape: bytes = b"K\x04\x85", strides: bytes = b"K\x01\x85", of: bytes = b"") -> bytes:
    parts = (of or storage(), b"K\x00", shape, strides, b"\x89", call("collections", "OrderedDict"))
    return call("torch._utils", "_rebuild_tensor_v2", *parts)


def long(value: int) -> bytes:
    content = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def write(folder: Path, pickled: bytes, zipped: bool = True) -> Path:
    path = folder / "w.bin"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", pickled)
            archive.writestr("w/byteorder", "little")
            archive.writestr("w/version", "3\n")
            archive.writestr("w/data/0", struct.pack("<4f", 1, 2, 3, 4))
        return path
    system = HEAD + b"}" + text("little_endian") + b"\x88s."
    keys = HEAD + b"]" + text("0") + b"a."
    start = torch_legacy.MAGIC + b"." + HEAD + b"M\xe9\x03." + system
    data = struct.pack("<q4f", 4, 1, 2, 3, 4)
    path.write_bytes(start + pickled + keys + data)
    return path


both_containers = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@both_containers
def test_the_parts_that_the_cases_are_made_of_are_right(tmp_path: Path, zipped: bool) -> None:
    pickled = state(tensor())
    if not zipped:  # there a storage may be a window on another one
        pickled = pickled.replace(b"K\x04tQ", b"K\x04NtQ")
    path = write(tmp_path, pickled, zipped)
    ours, theirs = open_container(path)["w"].read(), torch.load(path, weights_only=True)["w"]
    assert torch.equal(ours, theirs)
    assert ours.tolist() == [1, 2, 3, 4]


CALLS = {
    "os.system": call("os", "system", text("touch {trap}")),
    "posix.system": call("posix", "system", text("touch {trap}")),
    "nt.system": call("nt", "system", text("touch {trap}")),
    "builtins.eval": call("builtins", "eval", text("open('{trap}', 'w')")),
    "builtins.exec": call("__builtin__", "exec", text("open('{trap}', 'w')")),
    "builtins.getattr": call("builtins", "getattr", text("x"), text("y")),
    "builtins.__import__": call("builtins", "__import__", text("antigravity")),
    "builtins.open": call("io", "open", text("{trap}"), text("w")),
    "subprocess.Popen": call("subprocess", "Popen", text("touch {trap}")),
    "runpy._run_code": call("runpy", "_run_code", text("open('{trap}', 'w')")),
    "nested": call("collections", "OrderedDict", call("os", "system", text("touch {trap}"))),
    "torch.load": call("torch", "load", text("{trap}")),
    "torch.hub.load": call("torch.hub", "load", text("x"), text("y")),
    "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes", text("x")),
    "numpy": call("numpy.core.multiarray", "scalar", text("x")),
    "dotted": call("torch", "serialization.os.system", text("touch {trap}")),
    "by attribute of a class": call("collections", "OrderedDict.__init__", text("x")),
    "marshal": call("marshal", "loads", text("x")),
    "copyreg": call("copy_reg", "_reconstructor", text("x")),
    "by a rebuild": call(
        "torch._tensor", "_rebuild_from_type_v2", b"cos\nsystem\n", b"N", b"(t", b"N"
    ),
    "object of a class": b"csubprocess\nPopen\n(" + text("touch {trap}") + b"t\x81",
    "the build of an object": b"ctypes\nSimpleNamespace\n)\x81}b",
    "extension registry": b"\x82\x01",
    "persistent id of text": b"Pos.system\n",
    "instance": b"(ios\nsystem\n",
    "protocol 4": b"\x8c\x02os\x8c\x06system\x93(" + text("touch {trap}") + b"tR",
}


@both_containers
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("place", ["value", "hidden"])
def test_nothing_is_called(tmp_path: Path, name: str, place: str, zipped: bool) -> None:
    trap = str(tmp_path / "it-ran")
    code = CALLS[name]
    if b"{trap}" in code:  # the length of a text stands before it
        traps = (b"touch {trap}", b"open('{trap}', 'w')", b"{trap}")
        old = next(part for part in traps if part in code)
        new = old.replace(b"{trap}", trap.encode())
        code = code.replace(struct.pack("<I", len(old)) + old, struct.pack("<I", len(new)) + new)
    hidden = HEAD + b"}(" + text("model") + b"}" + text("w") + tensor() + b"s" + text("args")
    pickled = state(code) if place == "value" else hidden + code + b"u."
    error = refused(lambda: open_container(write(tmp_path, pickled, zipped)))
    assert "run code" in error.sentence or "cannot be read" in error.sentence
    assert [path.name for path in tmp_path.iterdir()] == ["w.bin"]


def test_the_traps_would_run_elsewhere(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    trap = tmp_path / "it-ran"
    pickle.loads(HEAD + call("os", "system", text(f"touch {trap}")) + b".")
    assert trap.exists()


DEEP = 100_000
COSTLY = {
    "gigabytes by a call": state(call("builtins", "bytearray", long(1 << 40))),
    "a tensor by its class": state(call("torch", "FloatTensor", long(1 << 40))),
    "a number of 2 GB": state(b"\x8b" + struct.pack("<i", (1 << 31) - 1)),
    "a text of 4 GB": state(b"X\xff\xff\xff\xff"),
    "bytes of 2^63": state(b"\x8e" + struct.pack("<Q", 1 << 63)),
    "the last place of the memo": state(b"Nr\xff\xff\xff\xff"),
    "a place of the memo that is empty": state(b"j\xff\xff\xff\xff"),
    "tuples in tuples": state(b"N" + b"\x85" * DEEP),
    "tuples in tuples as a key": HEAD + b"}N" + b"\x85" * DEEP + b"Ns.",
    "lists in lists": state(b"]" * 20_000 + b"a" * 19_999),
    "marks in marks": state(b"(" * DEEP),
    "doubled forty times": state(b")q\x00" + b"h\x00h\x00\x86q\x00" * 40),
    "doubled forty times, as a key": HEAD + b"})q\x00" + b"h\x00h\x00\x86q\x00" * 40 + b"Ns.",
    "a list in itself": state(b"]q\x00h\x00a"),
    "a dictionary in itself": HEAD + b"}q\x00" + text("model") + b"h\x00s.",
    "more values than a model has": HEAD + b"}" * 400_001 + b".",
    "one list again and again": state(
        b"](" + b"NN\x86" * 50_000 + b"eq\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 1000
    ),
    "17 MB": state(text("x" * (17 << 20))),
    "nothing": b"",
    "only a head": HEAD,
    "no stop": HEAD + b"}",
    "an empty stack": HEAD + b".",
    "more taken than there is": HEAD + b"u.",
    "across a mark": HEAD + b"}(" + b"s.",
    "text that is not UTF-8": HEAD + b"}X\x02\x00\x00\x00\xff\xfeNs.",
}
TENSORS = {
    "negative shape": tensor(shape=b"J\xff\xff\xff\xff\x85"),
    "huge shape": tensor(shape=long(1 << 60) + b"\x85"),
    "huge shape of no step": tensor(shape=long(1 << 60) + b"\x85", strides=b"K\x00\x85"),
    "huge shape of no rows": tensor(
        shape=b"K\x00" + long(1 << 61) + b"\x86", strides=b"K\x00K\x00\x86"
    ),
    "shape beyond 64 bits": tensor(shape=b"\x8a\x14" + b"\x7f" * 20 + b"\x85"),
    "shape that is a truth value": tensor(shape=b"\x88\x85"),
    "shape of text": tensor(shape=text("4") + b"\x85"),
    "a thousand dimensions": tensor(
        shape=b"(" + b"K\x01" * 1000 + b"t", strides=b"(" + b"K\x01" * 1000 + b"t"
    ),
    "more sizes than strides": tensor(shape=b"K\x02K\x02\x86"),
    "negative stride": tensor(strides=b"J\xff\xff\xff\xff\x85"),
    "storage of another kind": tensor(of=storage("os\nsystem")),
    "storage of an unknown class": tensor(of=storage("torch\nQUInt2x4Storage")),
    "storage with a path as its key": tensor(of=storage(key=text("../../etc/passwd"))),
    "storage without a key": tensor(of=storage(key=b"N")),
    "storage of 2^61": tensor(of=storage(count=long(1 << 61))),
    "storage of less than nothing": tensor(of=storage(count=b"J\xff\xff\xff\xff")),
    "storage that is none": tensor(of=b"N"),
    "storage with a window on it": tensor(
        of=b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04"
        b"(" + text("1") + b"K\x00K\x01ttQ"
    ),
    "module that was pickled": tensor(of=b"(" + text("module") + b"NNNtQ"),
    "persistent id that is a number": tensor(of=b"K\x07Q"),
    "parameter of nothing": call("torch._utils", "_rebuild_parameter", b"N", b"\x89", b"N"),
    "call with too few arguments": call("torch._utils", "_rebuild_tensor_v2", storage()),
    "tensor in a tensor": tensor(of=tensor()),
}


@both_containers
@pytest.mark.parametrize("name", [*COSTLY, *TENSORS])
def test_cost_is_bounded(tmp_path: Path, name: str, zipped: bool) -> None:
    path = write(tmp_path, COSTLY.get(name) or state(TENSORS.get(name, b"")), zipped)
    refused(lambda: open_container(path), file=path, seconds=20)


@both_containers
def test_name_that_stands_twice_is_refused(tmp_path: Path, zipped: bool) -> None:
    pickled = HEAD + b"}(" + text("w") + tensor() + text("w") + tensor() + b"u."
    error = refused(lambda: open_container(write(tmp_path, pickled, zipped)))
    assert error.facts["tensor"] == "w"


@both_containers
def test_names_stay_on_their_line(tmp_path: Path, zipped: bool) -> None:
    name = "w\n  remedy:   run this\x1b[2J\u202e\u2028"
    torch.save({name: 3}, tmp_path / "w.bin", _use_new_zipfile_serialization=zipped)
    error = refused(lambda: open_container(tmp_path / "w.bin"))
    assert error.facts["tensor"] == r"w\n  remedy:   run this\x1b[2J\u202e\u2028"


@pytest.mark.parametrize("elements", [-1, 5, 1 << 62, -(1 << 63)])
def test_size_of_a_legacy_storage_is_not_believed(tmp_path: Path, elements: int) -> None:
    path = write(tmp_path, state(tensor()), zipped=False)
    content = path.read_bytes()
    path.write_bytes(content[:-24] + struct.pack("<q", elements) + content[-16:])
    refused(lambda: open_container(path), file=path)


@pytest.mark.parametrize("keys", [b"N", b"]", b"](" + text("0") * 2 + b"e", b"](NK\x07e"])
def test_list_of_legacy_storages_is_not_believed(tmp_path: Path, keys: bytes) -> None:
    path = write(tmp_path, state(tensor()), zipped=False)
    before, after = path.read_bytes().rsplit(HEAD, 1)
    path.write_bytes(before + HEAD + keys + b"." + after[-24:])
    refused(lambda: open_container(path), file=path)


def test_ordered_dicts_of_python_2_are_read(tmp_path: Path) -> None:
    pairs = b"](](U\x01w" + tensor() + b"ee"
    path = write(tmp_path, HEAD + b"ccollections\nOrderedDict\n" + pairs + b"\x85R.")
    assert list(open_container(path)) == list(torch.load(path, weights_only=True)) == ["w"]


def test_real_checkpoint_of_a_large_model_is_far_below_the_bounds() -> None:
    """80 layers of LLaMA 65B."""
    from merge.formats.torch.pickle_machine import MOST_BYTES, PickleMachine
    from merge.layouts.config import LlamaShape
    from merge.layouts.llama import entries

    shape = LlamaShape(8192, 22016, 80, 64, 64, 128, False)
    tensors = OrderedDict((e.hf, torch.empty(1, device="meta")) for e in entries(shape))
    buffer = io.BytesIO()
    torch.save({n: torch.zeros(1) for n in tensors}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        pickled = archive.read("archive/data.pkl")
    assert len(pickled) < MOST_BYTES / 50
    assert len(PickleMachine().load(io.BytesIO(pickled))) == len(tensors) == 723


@pytest.mark.slow
def test_torch_itself_does_not_bound_what_a_pickle_costs(tmp_path: Path) -> None:
    """The reason for a machine of our own; when this fails, torch's may do."""
    path = write(tmp_path, HEAD + b"}N" + b"\x85" * 3_000_000 + b"Ns.")
    words = [sys.executable, "-c", f"import torch; torch.load({str(path)!r}, weights_only=True)"]
    told = subprocess.run(words, capture_output=True, check=False, env=quick_environment())
    assert told.returncode < 0  # ended by the system, for its stack
