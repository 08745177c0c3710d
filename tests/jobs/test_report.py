"""Reports beside results: whole or absent, never stale, and no part of what is verified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from merge import apply_delta, merge_lora, merge_many, verify_merge, write_report
from merge.errors import OutputError, UsageError
from tests.kit.dense_deltas import make_vicuna
from tests.kit.files import Tensors, load_weights
from tests.kit.many_merges import make_many
from tests.kit.models import LLAMA_ROWS, PREFIX, adapter_tensors, random_tensor, save_adapter
from tests.kit.reported import Reported, find_entry, make_reported, read_report
from tests.kit.run import ROOT, run_python
from tests.kit.stopped import contents

SCRIPT = ROOT / "scripts" / "report.py"
NAMES = {"report.html", "report.json"}


@pytest.fixture
def reported(tmp_path: Path) -> Reported:
    return make_reported(tmp_path)


def same_numbers(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two reports differ in no more than the run."""
    return all(one[key] == other[key] for key in one.keys() - {"run"})


def test_result_with_a_report_is_that_without_and_two_more_files(
    reported: Reported, tmp_path: Path
) -> None:
    reported.merge()
    merge_lora(output_dir=tmp_path / "x" / "out", output_type="huggingface", **reported.inputs)
    found, plain = contents(reported.out), contents(tmp_path / "x" / "out")
    assert found.keys() - plain.keys() == NAMES
    assert all(found[name] == content for name, content in plain.items())
    assert not verify_merge(reported.out).faults


def test_tensors_that_no_merge_reads_are_not_read_for_a_report(tmp_path: Path) -> None:
    """Base and delta of embeddings that an adapter replaces: the manifest has no digest of them."""
    base, _, delta = make_vicuna(tmp_path)
    rows = load_weights(delta)["lm_head.weight"].shape[0]
    tokenizer = next(p for p in (delta, base) if (p / "tokenizer.model").is_file())
    hidden = load_weights(delta)["lm_head.weight"].shape[1]
    save_adapter(tmp_path / "lora", make_plain_lora(load_weights(delta), rows, hidden))
    found = []
    for name, report in (("a", True), ("b", False)):
        merge_lora(
            base,
            tmp_path / "lora",
            tmp_path / name / "out",
            delta_model=delta,
            tokenizer=tokenizer,
            output_type="huggingface",
            report=report,
        )
        found.append((tmp_path / name / "out" / "merge_manifest.json").read_bytes())
    assert found[0] == found[1]
    entry = find_entry(read_report(tmp_path / "a" / "out"), "lm_head.weight")
    assert entry["relative"] is None


def make_plain_lora(model: Tensors, rows: int, hidden: int) -> Tensors:
    """Whole embeddings and LM head, and a LoRA on q_proj of every layer."""
    tensors = {
        f"{PREFIX}{name}.weight": random_tensor(rows, hidden, seed=number)
        for number, name in enumerate(("model.embed_tokens", "lm_head"))
    }
    for name in (name for name in model if "q_proj" in name):
        module = f"{PREFIX}{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = random_tensor(2, model[name].shape[1], seed=8)
        tensors[f"{module}.lora_B.weight"] = random_tensor(model[name].shape[0], 2, seed=9)
    return tensors


def test_resumed_merge_reports_what_the_earlier_run_wrote(reported: Reported) -> None:
    whole = reported.merge()
    size = whole["run"]["bytes"]

    def stop(written: int, _: int) -> None:
        if written > size // 2:
            raise KeyboardInterrupt

    shutil.rmtree(reported.out)
    with pytest.raises(KeyboardInterrupt):
        reported.merge(on_progress=stop)
    assert not NAMES & contents(reported.out).keys()
    resumed = reported.merge(resume=True)
    assert same_numbers(resumed, whole)
    assert 0 < resumed["run"]["tensors_measured_again"] < len(whole["tensors"])


def test_complete_result_gets_the_report_that_it_lacks(reported: Reported) -> None:
    whole = reported.merge()
    for name in NAMES:
        (reported.out / name).unlink()
    before = contents(reported.out)
    assert same_numbers(reported.merge(resume=True), whole)
    after = contents(reported.out)
    assert {name: after[name] for name in before} == before
    kept = (reported.out / "report.json").read_bytes()
    reported.merge(resume=True)
    assert (reported.out / "report.json").read_bytes() == kept, "a complete one stays"


def test_merge_without_a_report_removes_that_of_the_earlier_result(reported: Reported) -> None:
    reported.merge()
    reported.merge(overwrite=True)
    assert contents(reported.out).keys() >= NAMES
    merge_lora(
        output_dir=reported.out, output_type="huggingface", overwrite=True, **reported.inputs
    )
    assert not NAMES & contents(reported.out).keys()


def test_file_of_somebody_else_by_that_name_is_not_replaced(reported: Reported) -> None:
    reported.out.mkdir()
    (reported.out / "report.html").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match=r"would replace"):
        reported.merge()
    assert contents(reported.out) == {"report.html": b"mine"}


def test_dry_run_writes_no_report(reported: Reported) -> None:
    inputs = reported.inputs
    merge_lora(output_dir=reported.out, report=True, dry_run=True, **inputs)
    assert not reported.out.exists()


def test_report_afterwards_measures_the_same(reported: Reported) -> None:
    whole = reported.merge()
    for name in NAMES:
        (reported.out / name).unlink()
    result = write_report(reported.out)
    assert result.measured
    assert same_numbers(read_report(reported.out), whole | {"options": {"dtype": "float16"}})


def test_page_is_made_anew_from_the_numbers_that_are_there(reported: Reported) -> None:
    reported.merge()
    page = (reported.out / "report.html").read_bytes()
    numbers = (reported.out / "report.json").read_bytes()
    (reported.out / "report.html").unlink()
    shutil.rmtree(reported.folder / "base")  # no input is needed
    result = write_report(reported.out)
    assert not result.measured
    assert (reported.out / "report.html").read_bytes() == page
    assert (reported.out / "report.json").read_bytes() == numbers


@pytest.mark.parametrize(
    "options",
    [
        {"output_type": "pth", "num_shards": 2},
        {"output_type": "gguf", "outtype": "q8_0"},
        {"lora_weights": [0.5, -1.0], "rounding": "per_adapter"},
        {"dtype": "bfloat16", "safe_serialization": True},
    ],
    ids=str,
)
def test_report_afterwards_knows_the_options_of_the_merge(
    reported: Reported, options: dict[str, Any]
) -> None:
    whole = reported.merge(**options)
    for name in NAMES:
        (reported.out / name).unlink()
    write_report(reported.out)
    again = read_report(reported.out)
    assert again["tensors"] == whole["tensors"]
    assert again["findings"] == whole["findings"]
    assert again["output"] == whole["output"]


def test_inputs_of_another_result_are_refused(reported: Reported) -> None:
    reported.merge()
    before = contents(reported.out)
    other = save_adapter(reported.folder / "other", adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    with pytest.raises(UsageError, match="not the inputs"):
        write_report(reported.out, lora_model=[reported.inputs["lora_model"][0], other])
    assert contents(reported.out) == before


def test_report_afterwards_says_where_moved_inputs_can_be_named(reported: Reported) -> None:
    reported.merge()
    (reported.out / "report.json").unlink()
    (reported.folder / "base").rename(reported.folder / "moved")
    with pytest.raises(UsageError, match="--base_model"):
        write_report(reported.out)
    write_report(reported.out, base_model=reported.folder / "moved")
    assert read_report(reported.out)["changes"]["tensors"]


def test_folder_that_is_no_result_is_refused(reported: Reported) -> None:
    done = run_python(SCRIPT, reported.folder / "base")
    assert done.returncode == 2
    assert "merge_manifest.json" in done.stderr
    assert run_python(SCRIPT, reported.folder / "nowhere").returncode == 2
    assert not (reported.folder / "nowhere").exists()


def test_command_makes_both_files(reported: Reported) -> None:
    merge_lora(output_dir=reported.out, **reported.inputs)
    done = run_python(SCRIPT, reported.out, "--quiet")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert contents(reported.out).keys() >= NAMES


def test_delta_can_be_reported_afterwards(tmp_path: Path) -> None:
    base, _, delta = make_vicuna(tmp_path)
    apply_delta(base, delta, tmp_path / "out", report=True)
    whole = read_report(tmp_path / "out")
    (tmp_path / "out" / "report.json").unlink()
    write_report(tmp_path / "out")
    assert read_report(tmp_path / "out")["tensors"] == whole["tensors"]


def test_jobs_of_a_file_can_have_reports(tmp_path: Path) -> None:
    many = make_many(tmp_path)
    jobs = [many.job(1, "a", report=True), many.job(2, "b")]
    merge_many(many.write(*jobs, output_type="huggingface"))
    assert contents(many.out("a")).keys() >= NAMES
    assert not NAMES & contents(many.out("b")).keys()


def test_report_that_cannot_be_drawn_costs_no_model(
    reported: Reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merge.reports import content

    def fail(*_: object) -> None:
        raise ZeroDivisionError("told")

    monkeypatch.setattr(content, "find_findings", fail)
    report = merge_lora(
        output_dir=reported.out, output_type="huggingface", report=True, **reported.inputs
    )
    assert any("ZeroDivisionError: told" in note for note in report.notes)
    assert not NAMES & contents(reported.out).keys()
    assert not verify_merge(reported.out).faults


def test_report_has_neither_nan_nor_infinity(reported: Reported) -> None:
    reported.merge()
    text = (reported.out / "report.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(text, parse_constant=refuse)
