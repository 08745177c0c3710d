"""Results in a bucket: the bytes of local ones, visible only when all are whole."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from merge import apply_delta, convert_checkpoint, merge_lora
from merge.errors import MergeError, OutputError, UsageError
from merge.interruption import Interrupted
from merge.jobs.verify_merge import verify_merge
from tests.kit.adapters import make_adapter
from tests.kit.llamas import make_base
from tests.kit.s3_server import BUCKET, fetch, list_keys, list_uploads, serve_bucket
from tests.kit.stopped import contents

PLACE = f"s3://{BUCKET}/results/merged"
HF = {"output_type": "huggingface", "max_shard_size": "2MB"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("inputs")
    sizes = {"hidden_size": 256, "intermediate_size": 704, "vocab_size": 501}
    base = make_base(root / "base", container=".safetensors", **sizes)
    return base, make_adapter(root / "lora", base)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with serve_bucket(monkeypatch) as client:
        yield client


def result(client: Any) -> dict[str, bytes]:
    return fetch(client, "results/merged")


def test_a_bucket_gets_the_bytes_of_a_local_result_all_at_once(
    tmp_path: Path, inputs: tuple[Path, Path], bucket: Any
) -> None:
    seen: set[str] = set()
    uploading: list[str] = []

    def look(written: int, total: int) -> None:
        seen.update(list_keys(bucket))
        uploading[:] = list_uploads(bucket)

    report = merge_lora(*inputs, PLACE, **HF, on_progress=look)
    merge_lora(*inputs, tmp_path / "out", **HF)
    assert result(bucket) == contents(tmp_path / "out")
    assert not seen
    assert any(name.endswith(".bin") for name in uploading)
    assert not list_uploads(bucket)
    assert PLACE in report.summary()
    checked = verify_merge(PLACE, base_model=inputs[0], lora_model=inputs[1])
    assert not checked.faults


def test_other_results_can_be_uploaded(
    tmp_path: Path, inputs: tuple[Path, Path], bucket: Any
) -> None:
    convert_checkpoint(inputs[0], PLACE, output_type="pth")
    convert_checkpoint(inputs[0], tmp_path / "out", output_type="pth")
    assert result(bucket) == contents(tmp_path / "out")


@pytest.mark.parametrize("reason", [Interrupted(signal.SIGINT), OSError(5, "no such luck")])
def test_whatever_stops_a_run_leaves_nothing(
    inputs: tuple[Path, Path], bucket: Any, reason: BaseException
) -> None:
    def stop(written: int, total: int) -> None:
        if written > total // 2:
            raise reason

    with pytest.raises(type(reason)):
        merge_lora(*inputs, PLACE, **HF, on_progress=stop)
    assert not list_keys(bucket)
    assert not list_uploads(bucket)


def test_what_is_there_is_replaced_only_with_overwrite_and_only_if_it_is_a_result(
    inputs: tuple[Path, Path], bucket: Any
) -> None:
    merge_lora(*inputs, PLACE, **HF)
    before = result(bucket)
    with pytest.raises(OutputError, match="holds a model already"):
        merge_lora(*inputs, PLACE, **HF)
    report = merge_lora(*inputs, PLACE, **HF, resume=True)
    assert report.was_complete
    bucket.put_object(Bucket=BUCKET, Key="results/merged/mine.txt", Body=b"mine")
    merge_lora(*inputs, PLACE, output_type="pth", overwrite=True)
    after = result(bucket)
    assert after.pop("mine.txt") == b"mine"
    assert not [name for name in after if name in before and name.endswith(".bin")]
    assert "consolidated.00.pth" in after
    bucket.put_object(Bucket=BUCKET, Key="results/merged/model.safetensors", Body=b"foreign")
    with pytest.raises(OutputError, match="no earlier merge wrote"):
        merge_lora(*inputs, PLACE, output_type="pth", overwrite=True)
    assert not list_uploads(bucket)


def test_a_second_run_into_one_place_does_not_replace_the_first(
    inputs: tuple[Path, Path], bucket: Any
) -> None:
    def write_there(written: int, total: int) -> None:
        bucket.put_object(Bucket=BUCKET, Key="results/merged/config.json", Body=b"{}")

    with pytest.raises(MergeError, match="could not be completed"):
        merge_lora(*inputs, PLACE, **HF, on_progress=write_there)
    assert result(bucket) == {"config.json": b"{}"}
    assert not list_uploads(bucket)


def test_places_that_take_no_uploads_are_refused(
    tmp_path: Path, inputs: tuple[Path, Path], bucket: Any
) -> None:
    with pytest.raises(OutputError, match="hf upload"):
        merge_lora(*inputs, "hf://owner/name", **HF)
    with pytest.raises(OutputError, match="cannot be written to https"):
        apply_delta(inputs[0], inputs[0], "https://host/a")
    with pytest.raises(UsageError, match="no such file, folder or bucket"):
        merge_lora(*inputs, "s3://nobody/a", **HF)
    jobs = {"base_model": "a", "jobs": [{"lora_model": "b", "output_dir": PLACE}]}
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    from merge.jobs.merge_many import merge_many

    with pytest.raises(UsageError, match="local folders"):
        merge_many(tmp_path / "jobs.json")
    assert not list_keys(bucket)
