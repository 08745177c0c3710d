"""A file of jobs is checked whole: each mistake is one message that names file and job."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from merge import MergeError, merge_many
from tests.kit.files import tree, write_json
from tests.kit.many_merges import Many, make_many
from tests.kit.refusals import require_one_message
from tests.kit.run import ROOT, run_python

SCRIPT = ROOT / "scripts" / "merge_many.py"


@pytest.fixture
def many(tmp_path: Path) -> Many:
    return make_many(tmp_path)


def refused(many: Many, file: Path, job: int | None = 2) -> MergeError:
    """Require a refusal that names the job, with nothing written."""
    before = tree(many.folder)
    with pytest.raises(MergeError) as caught:
        merge_many(file)
    assert tree(many.folder) == before
    error = caught.value
    assert len(str(error).splitlines()) == 1 + len(error.facts)
    found = error.facts.get("job", "")
    assert found.startswith(f"{job} of jobs.yaml") if job else not found
    return error


@pytest.mark.parametrize(
    ("options", "expected", "remedy"),
    [
        ({"output_typ": "pth"}, "there is no option output_typ", "did you mean output_type?"),
        ({"lora_modl": "a"}, "there is no option lora_modl", "did you mean lora_model?"),
        ({"jobs": []}, "there is no option jobs", ""),
        ({"on_progress": "x"}, "there is no option on_progress", ""),
        ({"resume": True}, "resume is for all jobs together", "give --resume"),
        ({"dry_run": True}, "dry_run is for all jobs together", "give --dry_run"),
        ({"output_dir": None}, "the job has no output_dir", "add output_dir"),
        ({"lora_model": None}, "the job has no lora_model", "add lora_model"),
        ({"lora_model": 7}, "lora_model is of another kind", ""),
        ({"lora_model": ["a", None]}, "lora_model is of another kind", ""),
        ({"output_dir": ""}, "output_dir is of another kind", ""),
        ({"output_dir": ["a"]}, "output_dir is of another kind", ""),
        ({"tokenizer": "a\0b"}, "tokenizer is of another kind", ""),
        ({"dtype": False}, "dtype is of another kind", ""),
        ({"dtype": {"a": 1}}, "dtype is of another kind", ""),
        ({"output_type": ["pth"]}, "output_type is of another kind", ""),
        ({"model_name": 5}, "model_name is of another kind", ""),
        ({"verify": "yes"}, "verify is of another kind", ""),
        ({"overwrite": 1}, "overwrite is of another kind", ""),
        ({"num_shards": True}, "num_shards is of another kind", ""),
        ({"lora_weights": [True]}, "lora_weights is of another kind", ""),
        ({"lora_weights": [1, 2]}, "must have one number for each adapter", ""),
        ({"lora_weights": float("nan")}, "must be finite numbers", ""),
        ({"lora_weights": 10**400}, "must be finite numbers", ""),
        ({"num_shards": "two"}, "num_shards must be a whole number", ""),
        ({"dtype": "float61"}, "dtype is not one of its values", ""),
        ({"outtype": "f16"}, "outtype means nothing for this type of output", ""),
        ({"base_model": "not/here/at/all/."}, "the base model does not exist", ""),
    ],
    ids=str,
)
def test_mistake_in_a_job_is_told_with_the_job(
    many: Many, options: dict[str, Any], expected: str, remedy: str
) -> None:
    file = many.write(many.job(1, "a"), many.job(2, "b") | options)
    error = refused(many, file)
    assert expected in error.sentence
    assert remedy in error.facts.get("remedy", "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a home for every name")
def test_home_that_nobody_has_is_told_with_the_job(many: Many) -> None:
    file = many.write(many.job(1, "a"), many.job(2, "b", tokenizer="~nobody-has-this-name/a"))
    assert "~nobody-has-this-name/a" in refused(many, file).facts["found"]


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [(None, "the file names no jobs"), ([], "names no jobs"), ({"a": 1}, "names no jobs")],
)
def test_file_without_jobs_is_refused(many: Many, jobs: object, expected: str) -> None:
    file = many.folder / "jobs.yaml"
    write_json(file, {"base_model": "base", "jobs": jobs})
    error = refused(many, file, job=None)
    require_one_message(error)
    assert expected in error.sentence


def test_entry_that_is_no_job_is_refused(many: Many) -> None:
    assert "no mapping of options" in refused(many, many.write(many.job(1, "a"), "b")).sentence


def test_misspelt_default_is_refused(many: Many) -> None:
    error = refused(many, many.write(many.job(1, "a"), output_tipe="pth"), job=None)
    assert error.facts["remedy"] == "did you mean output_type?"
    assert error.facts["file"] == str(many.folder / "jobs.yaml")


def test_missing_file_is_refused(many: Many) -> None:
    error = refused(many, many.folder / "none.yaml", job=None)
    require_one_message(error)


def test_key_that_appears_twice_is_refused(many: Many) -> None:
    file = many.write(many.job(1, "a"))
    file.write_text(file.read_text(encoding="utf-8") + "base_model: other\n", encoding="utf-8")
    assert "'base_model' appears twice" in refused(many, file, job=None).facts["found"]


@pytest.mark.parametrize("name", ["out/a", "out/../out/a/", "./out/a"])
def test_two_jobs_with_one_output_folder_are_refused(
    many: Many, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(many.folder)
    file = many.write(many.job(1, "a"), many.job(2, "b") | {"output_dir": name})
    error = refused(many, file)
    require_one_message(error)
    assert error.sentence == "the output folder of the job is that of another"
    assert error.facts["found"].startswith("job 1 writes to")


def test_two_names_of_one_folder_are_refused(many: Many) -> None:
    many.out("a").mkdir(parents=True)
    try:
        many.out("link").symlink_to(many.out("a"), target_is_directory=True)
    except OSError as error:
        pytest.skip(f"no links here: {error.strerror}")
    file = many.write(many.job(1, "a"), many.job(2, "link"))
    assert "that of another" in refused(many, file).sentence


@pytest.mark.parametrize(("names", "job"), [(("a", "a/b"), 2), (("a/b/c", "a"), 1)])
def test_output_folder_inside_anothers_is_refused(
    many: Many, names: tuple[str, str], job: int
) -> None:
    file = many.write(*(many.job(n, name) for n, name in enumerate(names, start=1)))
    error = refused(many, file, job)
    require_one_message(error)
    assert error.sentence == "the output folder of the job is inside another's"


@pytest.mark.parametrize("key", ["base_model", "lora_model", "tokenizer", "delta_model"])
@pytest.mark.parametrize("order", [1, -1])
def test_job_that_reads_what_another_writes_is_refused(many: Many, key: str, order: int) -> None:
    reading = many.job(2, "b") | {key: str(many.out("a"))}
    file = many.write(*[many.job(1, "a"), reading][::order])
    error = refused(many, file, job=2 if order == 1 else 1)
    require_one_message(error)
    assert error.sentence == "the job reads what a job of the same file writes"
    assert error.facts["found"].startswith(key)


def test_gguf_file_that_another_job_writes_is_refused_as_base(many: Many) -> None:
    base = str(many.out("a") / "ggml-model-f16.gguf")
    file = many.write(many.job(1, "a"), many.job(2, "b", base_model=base))
    assert "reads what a job" in refused(many, file).sentence


def test_job_that_would_write_over_its_own_base_is_refused(many: Many) -> None:
    own = many.job(1, "a") | {"output_dir": str(many.folder / "base")}
    error = refused(many, many.write(own, many.job(2, "b")), job=1)
    assert "reads what a job" in error.sentence
    assert error.facts["found"].endswith("is the output folder of job 1")


def test_inputs_of_a_later_job_are_checked_before_the_first_is_written(many: Many) -> None:
    (Path(many.lora(2)) / "adapter_model.bin").write_bytes(b"not a model")
    error = refused(many, many.write(many.job(1, "a"), many.job(2, "b")))
    assert error.facts["file"] == str(Path(many.lora(2)) / "adapter_model.bin")


def test_results_that_fit_one_by_one_but_not_together_are_refused(many: Many, disk: Path) -> None:
    jobs = [many.job(1, name, num_shards=2) | {"output_dir": str(disk / name)} for name in "abcdef"]
    merge_many(many.write(jobs[0]), dry_run=True)
    error = refused(many, many.write(*jobs), job=6)
    assert error.sentence == "not enough disk space for the results up to that of job 6"
    assert not any(disk.iterdir())


def test_json_with_tabs_is_read(many: Many) -> None:
    file = many.folder / "jobs.json"
    document = {"base_model": str(many.folder / "base"), "jobs": [many.job(1, "a")]}
    file.write_text(json.dumps(document, indent="\t"), encoding="utf-8")
    assert [one.state for one in merge_many(file, dry_run=True).results] == ["planned"]


def test_refusal_is_one_message_and_exit_code_2(many: Many) -> None:
    file = many.write(many.job(1, "a"), many.job(2, "a"))
    done = run_python(SCRIPT, file)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: the output folder of the job is that of another\n")
    assert "Traceback" not in done.stderr
    assert not (many.folder / "out").exists()
