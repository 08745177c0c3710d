"""Files by their published checksums. No published weights are at hand, so files of known content
stand in for them in a table of the same form."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from merge.checksums import known_files
from merge.commands.verify_sha256 import main

FILES = {
    "consolidated.00.pth": b"first half",
    "consolidated.01.pth": b"second half",
    "adapter_model.bin": b"an adapter",
    "tokenizer.model": b"its tokenizer",
}
ORIGINAL = {
    "pytorch_model-00001-of-00002.bin": b"first shard",
    "pytorch_model-00002-of-00002.bin": b"second shard",
    "tokenizer.model": b"LLaMA's own tokenizer",
}


def digest(name: str, files: Mapping[str, bytes] = FILES) -> str:
    return hashlib.sha256(files[name]).hexdigest()


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A table of three models, and the folder of the files of two."""
    shards = [digest(name, ORIGINAL) for name in ORIGINAL]
    text = "\n".join(
        [
            "## Original weights, Hugging Face layout (pytorch_model-*.bin) · 原版模型权重",
            f"| 7B | 00 | `{shards[0]}` |",
            f"| 7B | 01 | `{shards[1]}` |",
            "## Tokenizer of the original models (tokenizer.model) · 原版词表",
            f"| LLaMA | 00 | `{shards[2]}` |",
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
    monkeypatch.setattr(known_files, "CHECKSUMS", tmp_path / "SHA256.md")
    known_files.load_known_files.cache_clear()
    yield folder_of(tmp_path / "files", *FILES)
    known_files.load_known_files.cache_clear()


def folder_of(folder: Path, *names: str) -> Path:
    return written(folder, {name: FILES[name] for name in names})


def written(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
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


ALPACA = "Chinese-Alpaca-13B"
FIRST, SECOND = FILES["consolidated.00.pth"], FILES["consolidated.01.pth"]


def test_swapped_parts_are_told_and_not_confirmed(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("consolidated.00.pth", "consolidated.01.pth")
    folder = written(tmp_path / "swapped", dict(zip(names, (SECOND, FIRST), strict=True)))
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.count("misnamed: these are the contents of consolidated.0") == 2
    said = refused(capsys, folder, "--expect", ALPACA)
    assert said.count("contents of another part than its name says") == 2
    assert "rename it to consolidated.01.pth" in said


@pytest.mark.parametrize(
    "name", ["consolidated.02.pth", "consolidated.000.pth", "pytorch_model.bin", "copy.pth"]
)
def test_a_part_again_under_another_name_is_not_confirmed(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = folder_of(tmp_path / "surplus", "consolidated.00.pth", "consolidated.01.pth")
    (folder / name).write_bytes(FIRST)
    said = refused(capsys, folder, "--expect", ALPACA)
    assert f"{ALPACA} has no file of that name" in said
    assert str(folder / name) in said


def test_one_layout_s_parts_under_the_other_s_names_are_not_confirmed(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"pytorch_model-{number:05}-of-00002.bin" for number in (1, 2)]
    folder = written(tmp_path / "other", dict(zip(names, (FIRST, SECOND), strict=True)))
    said = refused(capsys, folder, "--expect", ALPACA)
    assert said.count("rename it to consolidated.0") == 2


@pytest.mark.parametrize("first", [0, 1])
def test_shards_of_hugging_face_s_layout_count_from_either_number(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], first: int
) -> None:
    names = [f"pytorch_model-{number + first:05}-of-00002.bin" for number in (0, 1)]
    contents = list(ORIGINAL.values())
    right = written(tmp_path / "right", dict(zip(names, contents[:2], strict=True)))
    assert main([str(right), "--expect", "7B"]) == 0
    wrong = written(tmp_path / "wrong", dict(zip(names, contents[1::-1], strict=True)))
    said = refused(capsys, wrong, "--expect", "7B")
    assert f"rename it to {names[0]}" in said
    assert f"rename it to {names[1]}" in said


def test_a_number_of_shards_that_the_model_has_not_is_not_confirmed(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"pytorch_model-{number:05}-of-00003.bin" for number in (1, 2)]
    contents = list(ORIGINAL.values())[:2]
    folder = written(tmp_path / "of three", dict(zip(names, contents, strict=True)))
    said = refused(capsys, folder, "--expect", "7B")
    assert "rename it to pytorch_model-00002-of-00002.bin" in said


def test_parts_in_two_folders_are_no_model(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    halves = [folder_of(tmp_path / n, f"consolidated.{n}.pth") for n in ("00", "01")]
    said = refused(capsys, *halves, "--expect", ALPACA)
    assert said.count("1 of 2 parts in this folder") == 2
    files = [next(folder.iterdir()) for folder in halves]
    assert main([*map(str, files), "--expect", ALPACA]) == 0


@pytest.mark.parametrize("name", ["ggml-model-q4_0.gguf", "pytorch_model.pt", "tf_model.h5"])
def test_other_weights_beside_the_right_ones_are_not_confirmed(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = folder_of(tmp_path / "beside", "adapter_model.bin")
    (folder / name).write_bytes(b"of something else")
    said = refused(capsys, folder, "--expect", "Chinese-Alpaca-7B")
    assert "has no such file" in said
    assert "move it away" in said


def test_the_original_models_have_llama_s_tokenizer(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "original", ORIGINAL)
    assert main([str(folder), "--expect", "7B"]) == 0
    assert "all of it is 7B, as published" in capsys.readouterr().out
    (folder / "tokenizer.model").write_bytes(b"some other tokenizer")
    said = refused(capsys, folder, "--expect", "7B")
    assert digest("tokenizer.model", ORIGINAL) in said


def test_a_tokenizer_of_which_no_checksum_is_published_is_not_confirmed(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "SHA256.md"
    text = table.read_text(encoding="utf-8").replace(digest("tokenizer.model", ORIGINAL), "")
    table.write_text(text, encoding="utf-8")
    folder = written(tmp_path / "original", ORIGINAL)
    assert main([str(folder), "--expect", "7B"]) == 0
    assert "of its tokenizer no checksum is" in capsys.readouterr().out
    (folder / "tokenizer.model").write_bytes(FILES["tokenizer.model"])
    said = refused(capsys, folder, "--expect", "7B")
    assert "known as Alpaca (7B, 13B, 33B)" in said


@pytest.mark.parametrize(
    ("name", "told"), [("consolidated.00.pth", True), ("f00d", False), ("tokenizer.model", True)]
)
def test_a_file_given_by_itself_is_judged_by_its_contents(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, told: bool
) -> None:
    adapter = written(tmp_path / "one", {name: FILES["adapter_model.bin"]}) / name
    assert main([str(adapter), "--expect", "Chinese-Alpaca-7B"]) == 0
    said = capsys.readouterr().out
    assert ("misnamed: these are the contents of adapter_model.bin" in said) == told
    assert "all of it is Chinese-Alpaca-7B" in said


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names")
def test_names_cannot_write_lines_or_colours_of_their_own(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "x\n0000  adapter_model.bin\n    known\x1b[32m.bin"
    folder = written(tmp_path / "a\nb", {name: b"hostile", "consolidated.00.pth": FIRST})
    assert main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert r"a\nb/x\n0000  adapter_model.bin\n    known\x1b[32m.bin" in said
    assert "\x1b" not in said
    assert len(said.splitlines()) == 2 * 2 + 2


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
