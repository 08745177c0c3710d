"""Hypothesis changes tiny real files; reading them ends as torch reads them, or in one message.

The number of inputs is in the summary of the tests. ``make fuzz`` tries more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.edits import KINDS, Edit
from tests.fuzz.folders import COMPARED, CONFIGURATIONS, RESULT, compared, configurations, manifests
from tests.fuzz.subjects import DOCUMENTS, Subject, containers, documents, try_input, zipped_adapter

EDIT = st.builds(
    Edit, st.sampled_from(KINDS), st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
)
EDITS = st.lists(EDIT, min_size=1, max_size=6)
Record = Callable[[str, object], None]


def fuzz(subject: Subject, folder: Path, inputs: int, record_property: Record) -> None:
    tried, read = 0, 0

    @settings(
        max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(edits=EDITS)
    def every_input(edits: list[Edit]) -> None:
        nonlocal tried, read
        tried += 1
        read += try_input(subject, edits, folder)

    every_input()
    record_property("fuzzed inputs", tried)
    assert 0 < read < tried  # else the inputs are all refused at once, or not changed at all


def test_subjects_are_read_as_they_are(tmp_path: Path) -> None:
    made = containers() | documents(tmp_path / "documents") | manifests(tmp_path / "result")
    made |= configurations(tmp_path / "sizes") | compared(tmp_path / "models")
    for subject in made.values():
        assert subject.check(subject.content, tmp_path)
    assert {*DOCUMENTS, RESULT, *CONFIGURATIONS, *COMPARED} < set(made)


@pytest.mark.parametrize("name", containers())
def test_weight_file(tmp_path: Path, name: str, record_property: Record) -> None:
    fuzz(containers()[name], tmp_path, 250, record_property)


@pytest.mark.parametrize("name", [*DOCUMENTS, "adapter/tokenizer.model"])
def test_document(tmp_path: Path, name: str, record_property: Record) -> None:
    fuzz(documents(tmp_path)[name], tmp_path, 60, record_property)


def test_zipped_adapter(tmp_path: Path, record_property: Record) -> None:
    fuzz(zipped_adapter(tmp_path), tmp_path, 80, record_property)


def test_manifest_given_to_verify_merge(tmp_path: Path, record_property: Record) -> None:
    fuzz(manifests(tmp_path)[RESULT], tmp_path, 150, record_property)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_values_of_a_configuration(tmp_path: Path, name: str, record_property: Record) -> None:
    fuzz(configurations(tmp_path)[name], tmp_path, 120, record_property)


@pytest.mark.parametrize("name", COMPARED)
def test_folder_given_to_compare_checkpoints(
    tmp_path: Path, name: str, record_property: Record
) -> None:
    fuzz(compared(tmp_path)[name], tmp_path, 80, record_property)


@pytest.mark.parametrize("name", ["zip.bin", "legacy.bin", "w.safetensors", "w.gguf"])
def test_file_cut_at_every_length_is_refused(
    tmp_path: Path, name: str, record_property: Record
) -> None:
    subject = containers()[name]
    lengths = range(len(subject.content))
    read = [length for length in lengths if subject.check(subject.content[:length], tmp_path)]
    record_property("fuzzed inputs", len(lengths))
    # GGUF does not say where it ends: padding behind the last tensor may be missing.
    assert all(length > len(subject.content) - 32 for length in read)
    assert not read or name == "w.gguf"
