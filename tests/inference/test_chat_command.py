"""The command as it is used: on a line, from a pipe, with two models, and with Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from merge import convert_checkpoint
from tests.inference.conftest import ANSWER
from tests.kit.models import adapter_tensors, save_adapter
from tests.kit.run import ROOT, quick_environment
from tests.kit.talking_models import byte_ids, make_reciting

_GREEDY = ("--template", "alpaca", "--temperature", "0", "--repetition_penalty", "1")


def start_chat(*words: object) -> subprocess.Popen[bytes]:
    """The command, with pipes."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "chat.py"), *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=quick_environment(),
    )


def chat(*words: object, lines: str = "") -> tuple[int, str, str]:
    """Run it to its end; return exit code, standard output and error."""
    process = start_chat(*words)
    out, err = process.communicate(lines.encode(), timeout=120)
    return process.returncode, out.decode(), err.decode()


def test_every_line_of_a_pipe_is_a_question(reciting: Path) -> None:
    code, out, _ = chat(reciting, *_GREEDY, lines="你好\n\n/forget\nand you?\n")
    assert (code, out) == (0, f"{ANSWER}\n{ANSWER}\n")


def test_base_answers_before_the_merged_model(
    reciting: Path, small_llama: ModelProto, tmp_path: Path
) -> None:
    base = make_reciting(tmp_path / "base", small_llama, [*byte_ids(small_llama, "\nbase"), 2])
    code, out, err = chat(reciting, "--base", base, *_GREEDY, "--prompt", "x")
    assert (code, out) == (0, f"[{base}]\nbase\n\n[{reciting}]\n{ANSWER}\n"), err


def test_a_folder_and_a_gguf_file_answer_side_by_side(reciting: Path, reciting_gguf: Path) -> None:
    code, out, err = chat(reciting_gguf.parent, "--base", reciting, *_GREEDY, "--prompt", "x")
    assert (code, out) == (0, f"[{reciting}]\n{ANSWER}\n\n[{reciting_gguf}]\n{ANSWER}\n"), err


def test_what_a_model_says_cannot_command_the_terminal(
    small_llama: ModelProto, tmp_path: Path
) -> None:
    said = "\n\x1b[2J\r"
    model = make_reciting(tmp_path / "hf", small_llama, [*byte_ids(small_llama, said), 2])
    code, out, _ = chat(model, *_GREEDY, "--prompt", "x")
    assert (code, out) == (0, "\\x1b[2J\\r\n")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "the chat model does not exist"),
        ("pth", "convert it: convert_checkpoint.py"),
        ("adapter", "this is an adapter, not a model"),
        ("no weights", "the folder has no weights"),
        ("spoiled", "transformers cannot load this model"),
        ("gguf", "this is no GGUF file"),
        ("option", "--top_p is out of range"),
    ],
)
def test_mistake_ends_with_one_message(
    kind: str, words: str, reciting: Path, tmp_path: Path
) -> None:
    path, more = tmp_path / "model", ()
    if kind == "pth":
        convert_checkpoint(reciting, path, output_type="pth")
    elif kind == "adapter":
        save_adapter(path, adapter_tensors())
    elif kind == "gguf":
        path = tmp_path / "model.gguf"
        path.write_bytes(b"no model")
    elif kind in ("no weights", "spoiled"):
        path.mkdir()
        for name in ("config.json", "tokenizer.model"):
            (path / name).write_bytes((reciting / name).read_bytes())
        if kind == "spoiled":
            (path / "model.safetensors").write_bytes(b"no model")
    elif kind == "option":
        path, more = reciting, ("--top_p", "2")
    code, out, err = chat(path, *_GREEDY, *more, "--prompt", "x", "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert words in err
    assert "Traceback" not in err


@pytest.mark.skipif(os.name != "posix", reason="a signal as from Ctrl-C")
def test_ctrl_c_stops_an_answer_and_another_one_leaves(
    small_llama: ModelProto, tmp_path: Path
) -> None:
    start, *ring = byte_ids(small_llama, "\nabc")
    model = make_reciting(
        tmp_path / "hf", small_llama, [start, *ring, ring[0]], max_position_embeddings=1_000_000
    )
    words = ("--max_tokens", "900000", "--context", "1000000")
    process = start_chat(model, *_GREEDY, *words)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"first\n")
    process.stdin.flush()
    assert process.stdout.read(30) == b"abc" * 10  # it is answering without an end
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().endswith(b" ...\n")
    process.stdin.write(b"second\n")
    process.stdin.flush()
    assert process.stdout.read(3) == b"abc"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().endswith(b" ...\n")
    process.send_signal(signal.SIGINT)  # it waits for a question
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"under a final name" not in err
