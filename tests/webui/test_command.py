"""``webui.py`` refuses what would open the page to others, and never shows a password."""

from __future__ import annotations

from pathlib import Path

import pytest

from merge.commands import webui


def refuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run the command, which must refuse; return what it prints."""
    assert webui.main(words) == 2
    printed = capsys.readouterr()
    assert "error: " in printed.err
    return printed.out + printed.err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_an_address_for_others_needs_a_password(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, host: str
) -> None:
    assert "--auth_file" in refuse(capsys, "--root", str(tmp_path), "--host", host)


@pytest.mark.parametrize("login", ["secret", "secret:", ":secret"])
def test_a_password_that_cannot_be_read_is_not_repeated(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    login: str,
) -> None:
    file = tmp_path / "login"
    file.write_text(login)
    root = ("--root", str(tmp_path))
    assert "secret" not in refuse(capsys, *root, "--auth", login)
    assert "secret" not in refuse(capsys, *root, "--auth_file", str(file))
    monkeypatch.setenv("CHINESE_LLAMA_WEBUI_AUTH", login)
    assert "secret" not in refuse(capsys, *root)


def test_a_root_that_is_no_folder_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "--root" in refuse(capsys, "--root", str(tmp_path / "missing"))


def test_a_port_that_is_taken_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "--port" in refuse(capsys, "--root", str(tmp_path), "--port", port)
