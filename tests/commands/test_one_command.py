"""``chinese-llama``: all commands under one name, each as its own script, and their completion."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from merge.commands.main import COMMANDS, Command
from tests.kit.run import ROOT, run_python

_START = "from merge.commands.main import main; main()"
# A variant of another, for one option's default.
_VARIANTS = {"merge_llama_with_chinese_lora_to_hf.py"}


def leaves(
    commands: dict[str, Command] | None = None, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Command]]:
    """Every command that is no group, with the words that name it."""
    for name, command in (commands or dict(COMMANDS)).items():
        if command.commands is None:
            yield (*above, name), command
        else:
            yield from leaves(dict(command.commands), (*above, name))


LEAVES = dict(leaves())


def complete(tmp_path: Path, line: str, variables: str = "bash") -> list[str]:
    """What a shell is told for a line with the cursor at its end, by argcomplete's protocol."""
    pytest.importorskip("argcomplete")
    out = tmp_path / "words"
    done = run_python(
        "-c",
        _START,
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_IFS="\n",
        _ARGCOMPLETE_SHELL=variables,
        _ARGCOMPLETE_STDOUT_FILENAME=str(out),
        COMP_LINE=line,
        COMP_POINT=str(len(line.encode())),
    )
    assert done.returncode == 0, done.stderr
    return [word.strip() for word in out.read_text(encoding="utf-8").split("\n") if word]


def test_every_script_is_a_command_with_the_same_parser() -> None:
    scripts = {path.name for path in (ROOT / "scripts").glob("*.py")} - _VARIANTS
    modules = {
        re.search(r"from merge\.commands\.(\w+) import", (ROOT / "scripts" / name).read_text())[1]  # type: ignore[index]
        for name in scripts
    }
    assert modules == {command.module for command in LEAVES.values()}


def test_help_lists_every_command_on_one_line() -> None:
    done = run_python("-c", _START, "--help")
    assert done.returncode == 0
    for name, command in COMMANDS.items():
        assert re.search(rf"^ +{name} +{re.escape(command.text)}$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_a_command_shows_its_own_name_in_usage(words: tuple[str, ...]) -> None:
    done = run_python("-c", _START, *words, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: chinese-llama {' '.join(words)} ")
    assert done.stdout.partition("\n\n")[0].endswith(" [options]")


def test_a_command_imports_no_other_ones() -> None:
    code = (
        "import sys; from merge.commands import main\n"
        "try: main._run([main.PROGRAM], main.COMMANDS, ['compare', '--help'])\n"
        "except SystemExit: print(sorted(m for m in sys.modules if 'merge.commands.' in m))"
    )
    loaded = run_python("-c", code).stdout.splitlines()[-1]
    known = (
        "common",
        "compare_checkpoints",
        "completion",
        "given_options",
        "language",
        "machine",
        "main",
    )
    assert loaded == str([f"merge.commands.{name}" for name in known])


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["mrge"], "merge"),
        (["apply_delta"], "apply-delta"),
        (["inspect_adapter.py"], "inspect"),
        (["compare_tokenizers"], "tokenizer compare"),
        (["tokenizer", "trian"], "train"),
    ],
)
def test_misspelt_command_names_the_one_that_is_meant(words: list[str], meant: str) -> None:
    done = run_python("-c", _START, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no command")
    assert done.stderr.rstrip().endswith(f"did you mean {meant}?")


def test_result_of_a_command_is_that_of_its_script(tmp_path: Path) -> None:
    done = run_python("-c", _START, "convert", "--input", tmp_path / "no", "--output", tmp_path)
    script = run_python(
        ROOT / "scripts/convert_checkpoint.py", "--input", tmp_path / "no", "--output", tmp_path
    )
    assert (done.returncode, done.stderr) == (script.returncode, script.stderr)
    assert done.returncode == 2


def test_installed_commands_of_pyproject_can_be_imported() -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"chinese-llama", "chinese-llama-merge"} <= set(project["scripts"])
    for entry in project["scripts"].values():
        module, _, function = entry.partition(":")
        assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("chinese-llama ver", ["verify", "verify-sha256"]),
        ("chinese-llama tokenizer ", ["--help", *(COMMANDS["tokenizer"].commands or {})]),
        ("chinese-llama merge --output_type h", ["huggingface", "hf"]),
        ("chinese-llama convert --outt", ["--outtype"]),
        ("chinese-llama tokenizer compare --lib", ["--library"]),
        ("chinese-llama nothing --", ["--help", "--version"]),
    ],
)
def test_shell_is_told_what_may_follow(tmp_path: Path, line: str, words: list[str]) -> None:
    assert complete(tmp_path, line) == words


def test_zsh_is_told_what_each_command_does(tmp_path: Path) -> None:
    assert complete(tmp_path, "chinese-llama merg", "zsh") == [
        f"{name}:{COMMANDS[name].text}" for name in ("merge", "merge-many")
    ]


def test_completion_imports_nothing_heavy(tmp_path: Path) -> None:
    line = "chinese-llama merge --output"
    hook = "import sys; sys.addaudithook(lambda e, a: print(a[0]) if e == 'import' else 0)"
    code = f"{hook}\n{_START}"
    done = run_python(
        "-c",
        code,
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_STDOUT_FILENAME=str(tmp_path / "words"),
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
    )
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert "argcomplete" in imported
    assert not imported & {"torch", "numpy", "transformers", "tqdm"}
