"""``--verify_base`` before a merge and ``--verify`` after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from merge.commands.merge_lora import main_to_hf
from merge.deltas.adapter_config import AdapterConfig
from tests.kit.adapters import make_adapter
from tests.kit.fixtures import PublishFiles
from tests.kit.llamas import make_base

Inputs = tuple[Path, Path]
Publish = Callable[[list[Path]], None]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    base = make_base(folder / "base")
    return base, make_adapter(folder / "lora", base, rows=151)


def run(inputs: Inputs, out: Path, *more: str) -> int:
    base, adapter = map(str, inputs)
    words = ["--base_model", base, "--lora_model", adapter, "--output_dir", str(out)]
    return main_to_hf([*words, *more])


@pytest.fixture
def publish(publish_files: PublishFiles) -> Publish:
    """Let a table of checksums name files as the parts of one model."""
    heading = "Original weights, Hugging Face layout (pytorch_model-*.bin) · 原版"
    return lambda files: publish_files(heading, [("7B", path) for path in files])


def test_a_result_is_verified_at_the_end(
    tmp_path: Path, inputs: Inputs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(inputs, tmp_path / "out", "--verify") == 0
    said = capsys.readouterr()
    assert said.out.index("Done:") < said.out.index("OK:")
    assert "checking: 100 %" in said.err


def test_a_merge_that_goes_wrong_ends_with_1(
    tmp_path: Path,
    inputs: Inputs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The scaling itself is spoilt: the manifest agrees with the result, the inputs do not."""
    scaling = AdapterConfig.scaling
    monkeypatch.setattr(AdapterConfig, "scaling", lambda *given: 2 * scaling(*given))
    assert run(inputs, tmp_path / "out", "--verify") == 1
    said = capsys.readouterr()
    assert "FAILED: 14 faults" in said.out
    assert "what was added is 2 times what the adapters add" in said.err


def test_a_rehearsal_verifies_nothing(tmp_path: Path, inputs: Inputs) -> None:
    assert run(inputs, tmp_path / "out", "--verify", "--dry_run") == 0
    assert not (tmp_path / "out").exists()


def test_a_published_base_is_confirmed(
    tmp_path: Path, inputs: Inputs, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(inputs[0].glob("*.bin"))
    publish(files)
    assert run(inputs, tmp_path / "out", "--verify_base") == 0
    said = capsys.readouterr()
    assert f"all {len(files)} files as published" in said.out
    assert "checking the base: 100 %" in said.err


def test_a_base_with_one_damaged_file_is_refused(
    tmp_path: Path, inputs: Inputs, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(inputs[0].glob("*.bin"))
    publish([files[0], inputs[0] / "config.json", *files[2:]])
    assert run(inputs, tmp_path / "out", "--verify_base") == 2
    said = capsys.readouterr().err
    assert str(files[1]) in said
    assert "not a published file" in said
    assert not (tmp_path / "out").exists()


def test_a_base_with_two_files_in_each_other_s_place_is_refused(
    tmp_path: Path, inputs: Inputs, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(inputs[0].glob("*.bin"))
    publish([files[1], files[0], *files[2:]])
    assert run(inputs, tmp_path / "out", "--verify_base") == 2
    said = capsys.readouterr().err
    assert "contents of another part than its name says" in said
    assert not (tmp_path / "out").exists()


def test_a_base_that_nobody_published_is_said_to_be_unknown(
    tmp_path: Path, inputs: Inputs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(inputs, tmp_path / "out", "--verify_base") == 0
    said = capsys.readouterr().out
    assert "weight files has a published checksum" in said
    assert said.count("no published checksum") == 2, "adapter and tokenizer"
