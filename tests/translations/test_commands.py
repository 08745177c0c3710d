"""Commands in Chinese: help, refusals and summaries, and the same bytes as in English."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from merge.commands import merge_lora
from merge.commands.language import chosen_language
from merge.messages import column_width
from tests.kit.refusals import SCRIPTS, commands

NAMES = {command: script for script, command in SCRIPTS.items()}
HAN = re.compile(r"[\u4e00-\u9fff]")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("command", commands())
def test_help_fits_eighty_columns(
    command: str, language: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [f"{NAMES.get(command, command)}.py"])
    main = import_module(f"merge.commands.{command}").main
    with pytest.raises(SystemExit) as ended:
        main(["--help", "--lang", language])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert language == "en" or HAN.search(text)
    for line in text.splitlines():
        assert column_width(line) <= 80, line


@pytest.mark.parametrize("command", commands())
def test_help_in_chinese_leaves_no_english_sentence(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        import_module(f"merge.commands.{command}").main(["-h", "--lang=zh"])
    found = re.findall(r"\b(?:the|of|and|are|is) [a-z]{3,}\b", capsys.readouterr().out)
    assert not found


def test_language_of_the_locale_is_taken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGUAGE", "zh_CN")
    with pytest.raises(SystemExit):
        merge_lora.main(["--help"])
    assert "选项" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        merge_lora.main(["--help", "--lang", "en"])
    assert not HAN.search(capsys.readouterr().out)


def test_mistake_on_the_command_line_is_told_in_chinese(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        merge_lora.main(["--lang", "zh"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "--base_model" in told
    assert HAN.search(told)


def test_refusal_is_told_in_chinese_and_names_stay(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--base_model", str(tmp_path / "no base"), "--lora_model", str(tmp_path)]
    assert merge_lora.main([*words, "--output_dir", str(tmp_path / "out"), "--lang", "zh"]) == 2
    told = capsys.readouterr().err
    assert str(tmp_path / "no base") in told
    assert not re.search(r"\b(the|does|not|exist)\b", told.replace(str(tmp_path), ""))
    assert not (tmp_path / "out").exists()


def test_language_ends_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    parser = merge_lora.make_parser()
    with chosen_language(["--lang", "zh"], parser):
        assert HAN.search(parser.format_help())
    fresh = merge_lora.make_parser()
    with chosen_language([], fresh):
        assert not HAN.search(fresh.format_help())
    assert capsys.readouterr().out == ""
