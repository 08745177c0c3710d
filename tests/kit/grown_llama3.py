"""Llama 3's tokenizer grown on dialogs, for tests of what is done with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from merge.commands.extend_llama3_tokenizer import main
from merge.tokenizers.tiktoken_model import map_special_tokens, read_ranks
from tests.kit.tiktoken_encodings import MetaTokenizer
from tests.kit.tokenizer_models import TEXT

OLD, NEW = 128_256, 3000
TIKTOKEN = Path("original/tokenizer.model")


def grow(tokenizer: Path, source: Path, output: Path, *more: str, size: int = OLD + NEW) -> int:
    """Run the command; return its exit code."""
    options = ["--llama3_tokenizer", str(tokenizer), "--input", str(source), "--quiet"]
    return main([*options, "--vocab_size", str(size), "--output_dir", str(output), *more])


@dataclass(frozen=True)
class Grown:
    """A tokenizer grown on every other line of the dialogs, and lines that it has not seen."""

    base: Path
    corpus: Path
    folder: Path
    held_out: list[str]

    def meta(self, path: Path | None = None) -> MetaTokenizer:
        """The tokenizer, or another one, as Meta's code runs it."""
        return MetaTokenizer(path or self.folder / TIKTOKEN, map_special_tokens("3"))

    @property
    def new_tokens(self) -> dict[bytes, int]:
        """The new tokens with their ids."""
        ranks = read_ranks(self.folder / TIKTOKEN)
        return {token: id_ for token, id_ in ranks.items() if id_ >= OLD}


@pytest.fixture(scope="session")
def grown(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """Llama 3's own tokenizer with 3000 tokens more."""
    folder = tmp_path_factory.mktemp("grown")
    base = real_data / "tokenizers" / "llama3_tiktoken.model"
    text = (real_data / "text" / "zh_dialogues.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line]
    (folder / "corpus.txt").write_text("\n".join(lines[::2]), encoding="utf-8")
    assert grow(base, folder / "corpus.txt", folder / "new") == 0
    mixed = [line for line in TEXT.read_text(encoding="utf-8").splitlines() if line]
    return Grown(base, folder / "corpus.txt", folder / "new", lines[1::2] + mixed)
