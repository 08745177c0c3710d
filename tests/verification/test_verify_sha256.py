"""Files by their published checksums. No published weights are at hand, so files of known content
stand in for them in a table of the same form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from merge import known
from merge.commands.verify_sha256 import main

FILES = {
    "consolidated.00.pth": b"first half",
    "consolidated.01.pth": b"second half",
    "adapter_model.bin": b"an adapter",
    "tokenizer.model": b"its tokenizer",
}


def digest(name: str) -> str:
    return hashlib.sha256(FILES[name]).hexdigest()


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A table of two models, and the folder of their files."""
    text = "\n".join(
        [
            "## Merged models (consolidated.*.pth) · 合并后的模型",
            f"| Chinese-Alpaca-13B | 00 | `{digest('consolidated.00.pth')}` |",
            f"| Chinese-Alpaca-13B | 01 | `{digest('consolidated.01.pth')}` |",
            "## LoRA adapters (adapter_model.bin) · LoRA 权重",
            f"| Chinese-Alpaca-7B | 00 | `{digest('adapter_model.bin')}` |",
            "## Tokenizers (tokenizer.model) · 词表",
            f"| Alpaca (7B, 13B, 33B) | 00 | `{digest('tokenizer.model')}` |",
        ]
    )
    (tmp_path / "SHA256.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(known, "CHECKSUMS", tmp_path / "SHA256.md")
    known.known_files.cache_clear()
    yield folder_of(tmp_path / "files", *FILES)
    known.known_files.cache_clear()


def folder_of(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(FILES[name])
    return folder


def test_each_file_is_told_by_what_it_is_known_as(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (published / "training_args.bin").write_bytes(b"whatever")
    assert main([str(published)]) == 0
    said = capsys.readouterr().out
    assert f"{digest('adapter_model.bin')}  {published / 'adapter_model.bin'}" in said
    assert "Chinese-Alpaca-7B, adapter_model.bin · LoRA adapters (adapter_model.bin)" in said
    assert "Chinese-Alpaca-13B, consolidated.01.pth · Merged models" in said
    assert "unknown: 1 of 5 files" in said
    assert "missing" not in said


def test_a_part_that_is_missing_from_a_set_is_named(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(published / "consolidated.01.pth")]) == 0
    said = capsys.readouterr().out
    assert "missing from Chinese-Alpaca-13B" in said
    assert said.splitlines()[-1].endswith(": consolidated.00.pth")


def test_the_right_set_is_confirmed(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("consolidated.00.pth", "consolidated.01.pth", "tokenizer.model")
    right = folder_of(tmp_path / "right", *names)
    assert main([str(right), "--expect", "Chinese-Alpaca-13B"]) == 0
    assert "all of it is Chinese-Alpaca-13B" in capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert main([*map(str, args)]) == 1
    return capsys.readouterr().err


def test_a_set_without_one_part_is_not_confirmed(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, published / "consolidated.00.pth", "--expect", "Chinese-Alpaca-13B")
    assert "a part of Chinese-Alpaca-13B is missing" in said
    assert digest("consolidated.01.pth") in said


def test_one_changed_byte_is_told_with_both_digests(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "changed", "consolidated.00.pth", "consolidated.01.pth")
    (folder / "consolidated.01.pth").write_bytes(b"second hale")
    said = refused(capsys, folder, "--expect", "Chinese-Alpaca-13B")
    assert digest("consolidated.01.pth") in said
    assert hashlib.sha256(b"second hale").hexdigest() in said
    assert "not a published file" in said


def test_another_model_s_files_are_named(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, published / "adapter_model.bin", "--expect", "Chinese-Alpaca-13B")
    assert "known as Chinese-Alpaca-7B, adapter_model.bin" in said


def test_another_tokenizer_beside_the_right_weights_is_a_mismatch(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "mixed", "adapter_model.bin")
    assert main([str(folder), "--expect", "Chinese-Alpaca-7B"]) == 0
    (folder / "tokenizer.model").write_bytes(b"of a Chinese-LLaMA")
    said = refused(capsys, folder, "--expect", "Chinese-Alpaca-7B")
    assert digest("tokenizer.model") in said


def test_a_git_lfs_pointer_is_not_the_file_that_it_names(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "pointer")
    oid = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest('adapter_model.bin')}\n"
    (folder / "adapter_model.bin").write_text(oid, encoding="utf-8")
    said = refused(capsys, folder, "--expect", "Chinese-Alpaca-7B")
    assert "git lfs pull" in said


def test_no_weights_at_all_confirm_nothing(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, published / "tokenizer.model", "--expect", "Chinese-Alpaca-7B")
    assert "no weights of Chinese-Alpaca-7B" in said


def test_a_name_that_is_not_in_the_table_is_corrected(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(published), "--expect", "Chinese-Alpca-7B"]) == 2
    assert "expected: Chinese-Alpaca-7B" in capsys.readouterr().err


def test_a_folder_without_weights_or_no_folder_is_a_mistake(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere"):
        assert main([str(path)]) == 2
        assert str(path) in capsys.readouterr().err


def test_the_real_tokenizer_of_llama_is_known(
    real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(real_data / "tokenizers")]) == 0
    assert "LLaMA, tokenizer.model · Tokenizer of the original models" in capsys.readouterr().out
