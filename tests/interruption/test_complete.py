"""``--resume`` of a result that is complete, of another one, and of one that was changed since."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from merge import merge_lora
from merge.errors import OutputError
from merge.output.preflight import MANIFEST_NAME
from tests.kit.files import tree
from tests.kit.run import run_merge
from tests.kit.stopped import Merging

COMPLETE = "complete already"


def test_resume_of_what_is_complete_is_success_and_changes_nothing(merging: Merging) -> None:
    merging.merge()
    before = tree(merging.out)
    report = merging.merge(resume=True)
    assert COMPLETE in report.summary()
    assert tree(merging.out) == before
    assert COMPLETE in merging.merge(resume=True, overwrite=True).summary()
    assert tree(merging.out) == before


def test_command_may_be_repeated_until_it_ends_with_0(one: Merging) -> None:
    words = ("--base_model", one.base, "--lora_model", one.adapter, "--output_dir", one.out)
    for _ in range(2):
        ended = run_merge(*words, "--resume")
        assert ended.returncode == 0, ended.stderr
    assert COMPLETE in ended.stdout


@pytest.mark.parametrize(
    "other", [{"lora_weights": "0.5"}, {"dtype": "bfloat16"}, {"num_shards": 1}], ids=str
)
def test_resume_of_another_result_is_refused(one: Merging, other: dict[str, object]) -> None:
    one.merge(**other)
    before = tree(one.out)
    with pytest.raises(OutputError, match="holds a model already"):
        one.merge(resume=True)
    assert tree(one.out) == before
    one.merge(resume=True, overwrite=True)
    assert tree(one.out) != before


def test_resume_with_a_file_cut_short_or_an_input_changed_since_is_refused(one: Merging) -> None:
    one.merge()
    shard = one.out / "consolidated.01.pth"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(OutputError, match="one of its files has changed"):
        one.merge(resume=True)
    shard.unlink()
    with pytest.raises(OutputError, match="no such file"):
        one.merge(resume=True)
    shard.write_bytes(data)
    assert COMPLETE in one.merge(resume=True).summary()
    later = (one.out / MANIFEST_NAME).stat().st_mtime_ns + 10**9
    os.utime(one.base / "pytorch_model.bin", ns=(later, later))
    with pytest.raises(OutputError, match="changed after the result was written"):
        one.merge(resume=True)


def test_resume_beside_a_model_of_somebody_else_is_refused(one: Merging, tmp_path: Path) -> None:
    one.out.mkdir()
    (one.out / "pytorch_model.bin").write_bytes(b"somebody else's")
    with pytest.raises(OutputError, match="holds a model already"):
        merge_lora(one.base, one.adapter, one.out, resume=True)
