"""Files of a web server: parts, versions, faults, and what is never printed."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from merge.errors import FormatError, MergeError, NetworkError, UsageError
from merge.storage import http_client, urls
from merge.storage.input_file import InputFile
from merge.storage.offload import Offload
from merge.storage.remote_listing import open_place
from merge.storage.remote_path import PARTS_AHEAD, RemotePath
from merge.storage.urls import hide_credentials
from tests.kit.containers import values
from tests.kit.web_server import Web, serve_files

NAME = "model.safetensors"
BLOCK = 10_000


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(http_client, "_FIRST_WAIT", 0.01)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / NAME).write_bytes(bytes(values(105_000).view(-1).numpy().tobytes())[:105_000])
    (tmp_path / "m" / "config.json").write_text("{}")
    with serve_files(tmp_path) as served:
        yield served


def opened(web: Web, offload: Offload | None = None) -> RemotePath:
    return open_place(f"{web.url}/m", offload) / NAME


def content(web: Web) -> bytes:
    return (web.root / "m" / NAME).read_bytes()


def test_threads_read_any_part_and_each_byte_once(web: Web) -> None:
    file, whole = InputFile(opened(web)), content(web)
    parts = [(start, min(BLOCK, len(whole) - start)) for start in range(0, len(whole), BLOCK)]
    with ThreadPoolExecutor(4) as pool:
        read = pool.map(lambda part: _read_in_steps(file, *part, len(whole)), parts)
    assert b"".join(read) == whole
    assert web.sent[NAME] == len(whole)
    file.close()


@pytest.mark.parametrize(
    "order", [(3, 1, 2, 0, 4), (2, 1, 0, 4, 3), (4, 3, 1, 2, 0), (0, 1, 3, 2, 4)]
)
def test_blocks_in_any_order_come_once_each(web: Web, order: tuple[int, ...]) -> None:
    file, whole, until = InputFile(opened(web)), content(web), 50_000
    for start in (BLOCK * number for number in order):
        assert _read_in_steps(file, start, BLOCK, until) == whole[start : start + BLOCK]
    assert web.sent[NAME] == until


def test_two_tensors_side_by_side_come_once_and_ahead(web: Web) -> None:
    file, whole = InputFile(opened(web)), content(web)
    for step in range(5):
        for first in (0, 50_000):
            start = first + step * BLOCK
            assert (
                _read_in_steps(file, start, BLOCK, first + 50_000) == whole[start : start + BLOCK]
            )
    assert web.sent[NAME] == 100_000


def test_parts_of_a_tensor_that_is_read_no_more_make_room(web: Web) -> None:
    file, whole = InputFile(opened(web)), content(web)
    for start in (0, BLOCK):  # its first rows alone; four more blocks are fetched
        _read_in_steps(file, start, BLOCK, 60_000)
    remote = file._remote
    assert remote is not None
    ahead = []
    for start in range(60_000, 104_000, 1000):
        assert _read_in_steps(file, start, 1000, 104_000) == whole[start : start + 1000]
        ahead.append(len(remote._readings[104_000].ahead))
    assert ahead[1] == 0, "the first tensor's parts take the room"
    assert max(ahead) == PARTS_AHEAD
    assert web.sent[NAME] == 60_000 + 44_000


def test_a_tensor_read_once_more_is_fetched_ahead_again(web: Web) -> None:
    file, whole, until = InputFile(opened(web)), content(web), 45_000
    for _ in range(2):
        for start in range(0, until, BLOCK):
            count = min(BLOCK, until - start)
            assert _read_in_steps(file, start, count, until) == whole[start : start + count]
    assert web.sent[NAME] == 2 * until


def _read_in_steps(file: InputFile, offset: int, count: int, until: int) -> bytes:
    buffer = bytearray(count)
    file.read_into(memoryview(buffer), offset, until)
    return bytes(buffer)


def test_blocks_in_a_row_are_fetched_ahead_but_not_beyond_their_end(web: Web) -> None:
    file, whole, until = InputFile(opened(web)), content(web), 45_000
    asked = []
    for start in range(0, until, BLOCK):
        count = min(BLOCK, until - start)
        assert _read_in_steps(file, start, count, until) == whole[start : start + count]
        asked.append(web.parts[NAME])
    assert asked[0] == 1
    assert asked[-1] == 5
    assert web.sent[NAME] == until


@pytest.mark.parametrize("fault", ["busy", "cut", "short"])
def test_passing_faults_are_not_noticed(web: Web, fault: str) -> None:
    file = InputFile(opened(web))
    getattr(web, fault)[NAME] = 2
    assert file.read(100, 5000) == content(web)[100:5100]


@pytest.mark.parametrize("fault", ["busy", "cut", "short"])
def test_lasting_faults_are_told_with_url_request_and_answer(web: Web, fault: str) -> None:
    path = opened(web)
    getattr(web, fault)[NAME] = 99
    with pytest.raises(NetworkError) as caught:
        InputFile(path).read(100, 5000)
    assert caught.value.facts["file"] == f"{web.url}/m/{NAME}"
    assert "bytes 100 to 5,100" in caught.value.facts["found"]
    assert isinstance(caught.value, OSError), "so that a run can be resumed"


def test_a_server_that_says_nothing_more_is_told(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(http_client, "ATTEMPTS", 2)
    path = opened(web)
    web.stalled.add(NAME)
    with pytest.raises(NetworkError, match="did not answer"):
        InputFile(path).read(0, 10)


@pytest.mark.parametrize("validators", [True, False], ids=["ETag", "without ETag"])
def test_a_file_that_changes_between_two_reads_is_refused(web: Web, validators: bool) -> None:
    web.validators = validators
    file = InputFile(opened(web))
    file.read(0, 100)
    changed = bytes(len(content(web)) - (not validators))
    (web.root / "m" / NAME).write_bytes(changed)
    with pytest.raises(FormatError, match="was changed while it was read"):
        file.read(100, 100)


def test_a_server_without_ranges_is_refused(web: Web) -> None:
    path = opened(web)
    web.ranges = False
    with pytest.raises(UsageError, match="whole files only") as caught:
        InputFile(path).read(0, 100)
    assert "--offload_dir" in caught.value.facts["remedy"]
    assert web.nbytes <= 2 * len(content(web))


@pytest.mark.parametrize("status", [401, 403, 500])
def test_refusals_hide_credentials(web: Web, status: int) -> None:
    web.status = status
    secret = web.url.replace("://", "://me:secret@") + "/m?signature=hidden"
    with pytest.raises(MergeError) as caught:
        open_place(secret, None)
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert f"{web.url}/m" in str(caught.value)


def test_addresses_that_lead_nowhere_are_told(web: Web) -> None:
    with pytest.raises(UsageError, match="holds no files"):
        open_place(f"{web.url}/nowhere", None)
    with pytest.raises(NetworkError, match="did not answer"):
        open_place("http://127.0.0.1:9/m", None)
    with pytest.raises(UsageError, match="URLs of this kind"):
        open_place("ftp://host/m", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        open_place("gs://bucket/m", None)
    assert "[remote]" in caught.value.facts["remedy"]


def test_documents_come_once_and_another_process_can_be_handed_the_place(web: Web) -> None:
    offload = Offload(None, web.root)
    path = opened(web, offload)
    config = path.with_name("config.json")
    assert config.read_bytes() == config.read_bytes() == b"{}"
    assert offload.traffic.nbytes == 2
    InputFile(path).read(0, 7)
    assert offload.traffic.nbytes == 9
    handed = pickle.loads(pickle.dumps(path))
    assert handed == path
    assert handed.stat() == path.stat()
    assert InputFile(handed).read(3, 4) == content(web)[3:7]
    assert offload.traffic.nbytes == 9, "each process counts for itself"


def test_names_are_hidden_only_where_they_are_secret() -> None:
    for plain in ("C:\\a@b/c", "me@host/folder", "hf://owner/name@main/sub", "s3://bucket/a"):
        assert hide_credentials(plain) == plain
    assert hide_credentials("hdfs://me@host:8020/a") == "hdfs://host:8020/a"
    assert urls.split_query("https://host/a/?x=1") == ("https://host/a", "?x=1")
