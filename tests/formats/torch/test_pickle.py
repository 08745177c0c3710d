"""What torch.save writes, in its container of today and in that before torch 1.6, read lazily."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merge.errors import FormatError
from merge.formats import open_container
from tests.kit.containers import (
    FLOATS,
    INTEGERS,
    ONE_BYTE_FLOATS,
    Opens,
    any_span,
    any_tensor,
    require_same,
    saved,
    values,
)

both_containers = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@both_containers
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_every_dtype_reads_as_torch_wrote_it(
    tmp_path: Path, dtype: torch.dtype, zipped: bool
) -> None:
    state = {"w": values(7, 5, dtype=dtype), "v": values(3, dtype=dtype)}
    require_same(open_container(saved(tmp_path / "w.bin", state, zipped)), state)


@pytest.mark.parametrize("dtype", ONE_BYTE_FLOATS, ids=str)
def test_dtypes_without_a_storage_class_of_their_own_are_read(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    state = {"w": values(7, 5, dtype=dtype), "columns": values(7, 5, dtype=dtype)[:, 2:4]}
    require_same(open_container(saved(tmp_path / "w.bin", state)), state)


@both_containers
def test_views_of_one_storage_are_read_each_at_its_place(tmp_path: Path, zipped: bool) -> None:
    whole = values(6, 8)
    state = {
        "whole": whole,
        "rows": whole[2:5],
        "columns": whole[:, 3:6],
        "every second column": whole[:, ::2],
        "transposed": whole.T,
        "transposed slice": whole.T[1:7, 2:4],
        "one column": whole[:, 2],
        "expanded": whole[0].expand(4, 8),
        "expanded column": whole[:, :1].expand(6, 3),
        "permuted": whole.view(2, 3, 8).permute(2, 0, 1),
        "again": whole,
    }
    require_same(open_container(saved(tmp_path / "w.bin", state, zipped)), state)


@both_containers
def test_scalars_and_empty_tensors_keep_their_shape(tmp_path: Path, zipped: bool) -> None:
    state = {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0),
        "no rows": torch.empty(0, 4, dtype=torch.float16),
        "no columns": torch.empty(4, 0),
        "after": values(2, 3),
    }
    require_same(open_container(saved(tmp_path / "w.bin", state, zipped)), state)


@both_containers
def test_parameters_are_read_as_tensors(tmp_path: Path, zipped: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2, bias=False))
    state = dict(module.state_dict(keep_vars=True))
    assert isinstance(state["0.weight"], torch.nn.Parameter)
    require_same(open_container(saved(tmp_path / "w.bin", state, zipped)), state)
    with_metadata = saved(tmp_path / "m.bin", module.state_dict(), zipped)  # an attribute on a dict
    require_same(open_container(with_metadata), dict(module.state_dict()))


@both_containers
@pytest.mark.parametrize("wrapper", ["model", "state_dict", "module"])
def test_state_dict_inside_a_training_checkpoint_is_found(
    tmp_path: Path, wrapper: str, zipped: bool
) -> None:
    state = {"w": values(4, 3)}
    checkpoint = {wrapper: OrderedDict(state), "epoch": 3, "optimizer": {"lr": 0.1}}
    require_same(open_container(saved(tmp_path / "w.bin", checkpoint, zipped)), state)


@both_containers
def test_tensors_saved_on_a_gpu_are_read_without_one(tmp_path: Path, zipped: bool) -> None:
    state = {"w": values(4, 3), "v": values(5)}
    path = saved(tmp_path / "w.bin", state, zipped)
    # The pickle says where a storage was: a text of as many bytes as it announces.
    on_cpu, on_gpu = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"
    if zipped:
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in records.items():
                archive.writestr(name, data.replace(on_cpu, on_gpu))
    else:
        path.write_bytes(path.read_bytes().replace(on_cpu, on_gpu))
    assert b"cuda:0" in path.read_bytes()
    require_same(open_container(path), state)


@given(data=st.data())
def test_any_rows_of_any_view_equal_the_slice(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensor = data.draw(any_tensor(6))
    tensor = tensor.permute(data.draw(st.permutations(range(tensor.dim()))))
    for axis, size in enumerate(tensor.shape):
        first = data.draw(st.integers(0, size - 1))
        last = data.draw(st.integers(first + 1, size))
        step = data.draw(st.integers(1, 3))
        tensor = tensor[(slice(None),) * axis + (slice(first, last, step),)]
    folder = tmp_path_factory.mktemp("any")
    for zipped in (True, False):
        path = saved(folder / f"{zipped}.bin", {"w": tensor}, zipped)
        lazy = open_container(path)["w"]
        start, stop = data.draw(any_span(len(tensor)))
        assert torch.equal(lazy.read(start, stop), tensor[start:stop])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    state = {"w": values(4, 3), "v": values(4, 3)[:, 1], "f": values(2).to(torch.float8_e5m2)}
    path = tmp_path / "w.bin"
    torch.save(OrderedDict(state), path, pickle_protocol=protocol)
    require_same(open_container(path), state)


@both_containers
@pytest.mark.parametrize("place", ["value", "key", "beside"])
def test_pickle_that_runs_code_is_refused_and_does_not_run(
    tmp_path: Path, place: str, zipped: bool
) -> None:
    trap = Opens(tmp_path / "it-ran")
    state = {
        "value": {"w": values(2), "trap": trap},
        "key": {("w", trap): values(2)},
        "beside": {"model": {"w": values(2)}, "args": trap},
    }[place]
    path = saved(tmp_path / "w.bin", state, zipped)
    assert b"open" in path.read_bytes()
    with pytest.raises(FormatError, match="asks to run code") as caught:
        open_container(path)
    assert caught.value.facts["file"] == str(path)
    assert "io.open" in caught.value.facts["found"]
    assert "safetensors" in caught.value.facts["remedy"]
    assert "add_safe_globals" not in str(caught.value)  # torch's own advice would let the code run
    assert not (tmp_path / "it-ran").exists()


def test_trap_of_the_test_above_would_run_elsewhere(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.bin", {"trap": Opens(tmp_path / "it-ran")})
    torch.load(path, weights_only=False)["trap"].close()
    assert (tmp_path / "it-ran").exists()


@both_containers
@pytest.mark.parametrize(
    ("value", "name", "found"),
    [
        ({"w": torch.ones(2), "step": 3}, "step", "int"),
        ({"w": torch.ones(2), "more": {"v": torch.ones(2)}}, "more", "dict"),
        ({"w": torch.ones(2).to_sparse()}, "w", "sparse_coo"),
        ({7: torch.ones(2)}, "7", "a key"),
        ({"w": torch.ones(2, device="meta")}, "w", "meta"),
    ],
    ids=["number", "nested", "sparse", "unnamed", "without data"],
)
def test_what_is_no_dense_tensor_is_named(
    tmp_path: Path, value: dict[str, object], name: str, found: str, zipped: bool
) -> None:
    path = saved(tmp_path / "w.bin", value, zipped)
    with pytest.raises(FormatError) as caught:
        open_container(path)
    assert caught.value.facts["tensor"] == name
    assert found in caught.value.facts["found"]


@both_containers
@pytest.mark.parametrize("value", [[torch.ones(2)], torch.ones(2), 3], ids=["list", "tensor", "3"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, value: object, zipped: bool) -> None:
    with pytest.raises(FormatError, match="no mapping of names to tensors") as caught:
        open_container(saved(tmp_path / "w.bin", value, zipped))
    assert caught.value.facts["found"] == type(value).__name__
