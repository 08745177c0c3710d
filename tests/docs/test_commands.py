"""Every command of the READMEs and the recipes is run, on tiny models under the same names.

The Chinese pages have the same commands; ``test_readmes.py`` compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from tests.kit.fixtures import PublishFiles
from tests.kit.named_models import WEIGHTS, add_llama3, make_named_models
from tests.kit.page_commands import (
    Block,
    fill_folder,
    list_blocks,
    remove_earlier,
    run_process,
    run_python,
    split_commands,
)
from tests.kit.run import ROOT

PAGES = ("README.md", "docs/recipes.md")
# Commands by their first words, and why they are not run here.
LEFT_OUT = {
    ("pip", "install"): "tests/packaging installs the package",
    ("python", "-m", "venv"): "tests/packaging makes environments",
    (".venv/bin/pip", "install"): "tests/packaging installs the package",
    ("hf", "download"): "it asks the Hub; the folders are there already",
    ("ollama",): "needs its server; tests/layouts/gguf/test_modelfile.py reads the Modelfile",
}
# Values that fit models of a few hundred pieces, and those of the page.
SMALLER = {"20000": "3000"}
# llama.cpp and torch in one process would use two runtimes of OpenMP.
_OWN_PROCESS: Mapping[str, str] = {
    "scripts/chat.py": "from merge.commands.chat import main; main()",
    "chinese-llama": "from merge.commands.main import main; main()",
}
_NEEDS_LLAMA_CPP = ("q4_k_m", "scripts/chat.py")


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, small_llama: ModelProto, small_chinese: ModelProto
) -> Path:
    """The models that need no published file."""
    folder = tmp_path_factory.mktemp("named") / "models"
    folder.mkdir()
    return make_named_models(folder, small_llama, small_chinese)


@pytest.fixture
def published(plain: Path, publish_files: PublishFiles) -> None:
    """Let the tiny models be the published ones; the commands compare them with the table."""
    files = [("7B", plain / "llama-7b-hf" / WEIGHTS)]
    publish_files("Original weights, Hugging Face layout (pytorch_model-*.bin)", files)


def _uses_llama3(text: str) -> bool:
    return "llama-3" in text.lower()


def is_left_out(words: list[str]) -> bool:
    return any(tuple(words[: len(first)]) == first for first in LEFT_OUT)


def run_command(words: list[str]) -> int:
    """Run a command of a page, with smaller values where its models are smaller."""
    words = [SMALLER.get(word, word) for word in words]
    if words[0] == ".venv/bin/python":
        words[0] = "python"
    if words[0] == "python" and words[1] not in _OWN_PROCESS:
        return run_python(words)
    name = words[1] if words[0] == "python" else words[0]
    return run_process(_OWN_PROCESS[name], words[words.index(name) + 1 :])


def run_block(block: Block, inputs: Path, *, llama3: bool) -> None:
    """Run the commands of a block that use Llama 3, or all others."""
    remove_earlier(block, inputs)
    if block.language == "python":
        if not llama3:
            exec(compile(block.text, "page", "exec"), {"__name__": "page"})
        return
    for words in split_commands(block.text):
        text = " ".join(words)
        is_change = words[0] == "cd"
        if is_left_out(words) or is_change or _uses_llama3(text) is not llama3:
            continue
        if any(name in text for name in _NEEDS_LLAMA_CPP) and find_spec("llama_cpp") is None:
            continue
        assert run_command(words) == 0, text


def list_sections(page: str) -> list[tuple[str, list[Block]]]:
    """The sections with commands. Those of the README go on with what the earlier ones made."""
    blocks = list(list_blocks((ROOT / page).read_text(encoding="utf-8")))
    if page == "README.md":
        return [(page, blocks)]
    headings = dict.fromkeys(block.heading for block in blocks)
    return [(one, [b for b in blocks if b.heading == one]) for one in headings]


SECTIONS = [section for page in PAGES for section in list_sections(page)]
LLAMA3_SECTIONS = [
    (name, blocks) for name, blocks in SECTIONS if any(_uses_llama3(b.text) for b in blocks)
]


def each(sections: list[tuple[str, list[Block]]]) -> pytest.MarkDecorator:
    """A case for each of these sections."""
    names = [name for name, _ in sections]
    return pytest.mark.parametrize("blocks", [blocks for _, blocks in sections], ids=names)


@each(SECTIONS)
@pytest.mark.usefixtures("published")
def test_commands_work(
    blocks: list[Block], plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill_folder(tmp_path / "work", plain)
    for block in blocks:
        run_block(block, plain, llama3=False)


@each(LLAMA3_SECTIONS)
def test_commands_with_llama_3_work(
    blocks: list[Block],
    plain: Path,
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their tokenizer is Meta's published one."""
    monkeypatch.chdir(tmp_path)
    fill_folder(tmp_path / "work", plain)
    add_llama3(Path.cwd(), real_data)
    for block in blocks:
        run_block(block, plain, llama3=True)


def test_what_is_left_out_is_on_a_page() -> None:
    """An entry that no page needs any more would hide the next command that begins so."""
    commands = [
        words
        for _, blocks in SECTIONS
        for block in blocks
        if block.language != "python"
        for words in split_commands(block.text)
    ]
    for first in LEFT_OUT:
        assert any(tuple(words[: len(first)]) == first for words in commands), first
    for value in SMALLER:
        assert any(value in words for words in commands), value
