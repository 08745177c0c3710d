"""Small byte-level BPE tokenizers like Llama 3's, trained by the package ``tokenizers``."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.kit.tokenizer_models import read_lines

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def _train(tokens: int) -> str:
    """All bytes, merges of the test text, and the two special tokens last."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens - 2, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(read_lines(), trainer)
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A:0",
                pair=f"{BOS} $A:0 {BOS} $B:1",
                special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
            ),
        ]
    )
    return str(tokenizer.to_str())


def write_bpe_tokenizer(
    folder: Path, tokens: int, change: Callable[[dict[str, Any]], object] = lambda _: None
) -> Path:
    """Write a tokenizer of so many tokens; ``change`` edits its ``tokenizer.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    fast = json.loads(_train(tokens))
    change(fast)
    (folder / "tokenizer.json").write_text(json.dumps(fast), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
