"""Rows for new tokens, against SentencePiece's own spelling and closed forms in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from transformers import AutoModelForCausalLM

from merge import merge_lora
from merge.errors import UsageError, VocabularyError
from merge.jobs.resize_vocabulary import resize_vocabulary
from tests.kit.adapters import LINEAR, make_adapter
from tests.kit.compare import is_rounded_once
from tests.kit.files import load_weights
from tests.kit.llamas import make_base
from tests.kit.tokenizer_models import train_chinese, train_llama
from tokenizer_tools.extend import extend, select_text_pieces

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OLD = 600


def trained(folder: Path) -> tuple[Path, Path]:
    """An English tokenizer of 600 pieces, and the same with Chinese pieces and ``[PAD]``."""
    english, chinese = train_llama(OLD), train_chinese()
    extended = extend(english, select_text_pieces(chinese), "[PAD]").model
    for name, model in {"old": english, "new": extended}.items():
        (folder / name).mkdir()
        (folder / name / "tokenizer.model").write_bytes(model.SerializeToString())
    return folder / "old", folder / "new"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A base with the English tokenizer, the extended one, and the texts of its new pieces."""
    folder = tmp_path_factory.mktemp("grow")
    old, new = trained(folder)
    base = make_base(
        folder / "base",
        vocab_size=OLD,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    (base / "tokenizer.model").write_bytes((old / "tokenizer.model").read_bytes())
    model = ModelProto.FromString((new / "tokenizer.model").read_bytes())
    return base, new, [piece.piece for piece in model.pieces][OLD:]


def spelled(base: Path, piece: str) -> list[int]:
    """The base's ids of a piece inside a text, without the space that begins every text."""
    processor = SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    marked: list[int] = processor.encode("|" + piece.replace("▁", " "))
    bar: list[int] = processor.encode("|")
    assert marked[: len(bar)] == bar
    return marked[len(bar) :]


def is_mean(found: torch.Tensor, rows: torch.Tensor) -> bool:
    """Whether float16 rows are the mean of ``rows``, summed in float32 at least, rounded once."""
    wide = rows.double()
    error = (len(rows) + 1) * 2.0**-24 * wide.abs().mean(dim=0)
    return is_rounded_once(found, wide.mean(dim=0), error)


@pytest.mark.parametrize("name", [EMBED, HEAD])
def test_subtokens_are_the_mean_of_the_rows_of_the_old_spelling(
    tmp_path: Path, models: Any, name: str
) -> None:
    base, new, texts = models
    resize_vocabulary(base, new, tmp_path / "out")
    old, grown = load_weights(base)[name], load_weights(tmp_path / "out")[name]
    assert torch.equal(grown[:OLD], old)
    assert len(grown) == OLD + len(texts)
    # Pieces that join with the bar before them are spelled differently in this oracle.
    for row, text in list(enumerate(texts, start=OLD))[::7]:
        assert is_mean(grown[row], old[spelled(base, text)]), text


def test_mean_and_zeros_are_what_they_say(tmp_path: Path, models: Any) -> None:
    base, new, _ = models
    old = load_weights(base)[EMBED]
    rows = {}
    for init in ("mean", "zeros"):
        resize_vocabulary(base, new, tmp_path / init, init=init)
        rows[init] = load_weights(tmp_path / init)[EMBED][OLD:]
    assert is_mean(rows["mean"], old)
    assert not rows["zeros"].any()


def test_normal_is_seeded_and_has_the_models_deviation(tmp_path: Path, models: Any) -> None:
    base, new, texts = models

    def rows(name: str, **settings: Any) -> torch.Tensor:
        resize_vocabulary(base, new, tmp_path / name, init="normal", **settings)
        return load_weights(tmp_path / name)[EMBED][OLD:]

    one = rows("one", num_workers=1, max_memory="1MB")
    assert torch.equal(one, rows("two", num_workers=3))
    assert not torch.equal(one, rows("three", seed=1))
    assert float(one.float().std()) == pytest.approx(0.02, rel=0.03)
    assert abs(float(one.float().mean())) < 0.001
    assert len({tuple(row.tolist()) for row in one}) == len(texts)


def test_padding_begins_as_the_mean_and_transformers_loads_it(tmp_path: Path, models: Any) -> None:
    base, new, texts = models
    resize_vocabulary(base, new, tmp_path / "out", pad_to_multiple_of=64)
    old, grown = load_weights(base)[EMBED], load_weights(tmp_path / "out")[EMBED]
    assert len(grown) % 64 == 0
    assert OLD + len(texts) < len(grown) < OLD + len(texts) + 64
    padding = grown[OLD + len(texts) :]
    assert is_mean(padding, old)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert model.config.vocab_size == len(grown)


def test_a_smaller_or_other_tokenizer_is_refused(tmp_path: Path, models: Any) -> None:
    base, new, _ = models
    grown = tmp_path / "grown"
    resize_vocabulary(base, new, grown)
    with pytest.raises(VocabularyError, match="would shrink"):
        resize_vocabulary(grown, base / "tokenizer.model", tmp_path / "out")
    model = ModelProto.FromString((new / "tokenizer.model").read_bytes())
    model.pieces[400].piece, model.pieces[401].piece = (
        model.pieces[401].piece,
        model.pieces[400].piece,
    )
    (tmp_path / "swapped.model").write_bytes(model.SerializeToString())
    with pytest.raises(VocabularyError, match="as token 400"):
        resize_vocabulary(base, tmp_path / "swapped.model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"init": "random"}, {"pad_to_multiple_of": 0}])
def test_settings_that_mean_nothing_are_refused(
    tmp_path: Path, models: Any, settings: dict[str, Any]
) -> None:
    base, new, _ = models
    with pytest.raises(UsageError, match=f"--{next(iter(settings))}"):
        resize_vocabulary(base, new, tmp_path / "out", **settings)


@pytest.mark.parametrize("targets", [LINEAR, [*LINEAR, "lm_head"]], ids=["layers", "lm_head too"])
def test_a_merge_grows_to_the_tokenizer_only_when_told(
    tmp_path: Path, models: Any, targets: list[str]
) -> None:
    base, new, texts = models
    adapter = make_adapter(tmp_path / "lora", base, modules_to_save=None, targets=targets)
    merge: Callable[..., Any] = merge_lora
    with pytest.raises(VocabularyError, match="--new_token_init"):
        merge(base, adapter, tmp_path / "out", tokenizer=new)
    assert not (tmp_path / "out").exists()
    merge(base, adapter, tmp_path / "plain", output_type="huggingface", dtype="float32")
    settings = {"output_type": "huggingface", "dtype": "float32", "new_token_init": "subtokens"}
    merge(base, adapter, tmp_path / "out", tokenizer=new, **settings)
    plain, grown = load_weights(tmp_path / "plain"), load_weights(tmp_path / "out")
    for name in (EMBED, HEAD):
        assert torch.equal(grown[name][:OLD], plain[name])
        expected = plain[name][spelled(base, texts[-2])].mean(dim=0)
        torch.testing.assert_close(grown[name][-2], expected)
