"""Tokenizer folders: a small one trained here, and the published ones when they are at hand."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from merge.tokenizers.sentencepiece_model import read_model, serialize_model
from tests.kit.saved_tokenizers import SavedTokenizers, make_saved_tokenizers
from tests.kit.tokenizer_models import read_lines, train_llama
from tokenizer_tools.extend import extend, select_text_pieces

# A script for other environments, not a module with tests.
collect_ignore = ["probe.py"]

SPECIAL = ("<s>", "</s>", "<unk>", "[PAD]")

AWKWARD = [
    "",
    " ",
    "  ",
    "   你好",
    "你好  世界",
    "尾随空格 ",
    "\n",
    "\n\n你好\n",
    "第一行\n第二行\r\n第三行",
    "\t缩进\t制表",
    "    return 中文, 1  # 注释",
    "😀🎉👨‍👩‍👧 表情 ☕️",
    "𠮷野家在龘龘龘旁边",  # characters that only byte pieces can spell
    "ｆｕｌｌｗｉｄｔｈ，全角。！？：；",
    "\u3000全角空格\u3000",
    "▁下划线▁▁",
    "العربية עברית हिन्दी ไทย 한국어 日本語",
    "e\u0301 é \u200b零宽 \ufeff",
    "“引号”——……《书名》①②③ ½ ﬁ",
    "<0x0A> 不是字节",
    "< s > <S> [pad] [PAD",
    "x" * 300,
    "的" * 300,
    "3.14159 0xFF 1e-05 1,000,000",
]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> SavedTokenizers:
    """Tokenizers as two releases of transformers save them."""
    return make_saved_tokenizers(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="session")
def unpadded_model() -> bytes:
    """A tokenizer.model: 600 trained pieces, then 2000 Chinese ones of score 0."""
    text = "\n".join(read_lines())
    chinese = "".join(c if "\u4e00" <= c <= "\u9fff" else " " for c in text).split()
    parts = {run[i : i + n] for run in chinese for n in (1, 2, 3, 4) for i in range(len(run))}
    pieces = random.Random(0).sample(sorted(parts), 2000)
    return serialize_model(extend(train_llama(), pieces).model)


@pytest.fixture(scope="session")
def small_model(unpadded_model: bytes) -> bytes:
    """The same with [PAD] as its last piece."""
    return serialize_model(extend(ModelProto.FromString(unpadded_model), [], "[PAD]").model)


@pytest.fixture(scope="session")
def n_pieces(small_model: bytes) -> int:
    """What SentencePiece counts in the small model."""
    return int(sentencepiece.SentencePieceProcessor(model_proto=small_model).get_piece_size())


@pytest.fixture(scope="session")
def models(small_model: bytes) -> dict[str, bytes]:
    """The content of each ``tokenizer.model`` at hand, by name."""
    found = {"small": small_model}
    if folder := os.environ.get("CHINESE_LLAMA_MERGE_TEST_DATA"):
        llama = read_model(Path(folder) / "tokenizers" / "llama.model")
        pieces = select_text_pieces(read_model(Path(folder) / "tokenizers" / "chinese_sp.model"))
        found["llama"] = serialize_model(llama)
        found["chinese_llama"] = serialize_model(extend(llama, pieces).model)
        found["chinese_alpaca"] = serialize_model(extend(llama, pieces, "[PAD]").model)
    return found


@pytest.fixture(scope="session")
def lines() -> list[str]:
    """More than 2000 lines: Chinese, English, code, mixed, awkward ones, arbitrary Unicode."""
    lines = [*AWKWARD, *read_lines()]
    if folder := os.environ.get("CHINESE_LLAMA_MERGE_TEST_DATA"):
        text = (Path(folder) / "text" / "zh_dialogues.txt").read_text(encoding="utf-8")
        lines += text.replace("<br/>", "\n").split("\n")
    lines += [f"  {line}" for line in lines[:600]] + [f"{line} \n{line}" for line in lines[:600]]
    chance = random.Random(1)
    lines += [_arbitrary(chance) for _ in range(500)]
    return [line for line in dict.fromkeys(lines) if not any(token in line for token in SPECIAL)]


def _arbitrary(chance: random.Random) -> str:
    blocks = [(0, 0x7F), (0x80, 0x7FF), (0x4E00, 0x9FFF), (0x3000, 0x30FF), (0x1F300, 0x1FAFF)]
    picked = (chance.choice([*blocks, (0xE000, 0x10FFFF)]) for _ in range(chance.randint(1, 20)))
    return "".join(chr(chance.randint(*block)) for block in picked)


@pytest.fixture(scope="session")
def write_folder() -> Callable[..., Path]:
    """A function that writes a tokenizer folder: the model, and each keyword as a JSON file."""
    return _write_folder


def _write_folder(folder: Path, model: bytes, **documents: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    for name, value in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


@pytest.fixture
def folder_with(tmp_path: Path, small_model: bytes) -> Callable[..., Path]:
    """A function that writes a folder with the small model and the given JSON files."""
    return lambda **documents: _write_folder(tmp_path / "tokenizer", small_model, **documents)
