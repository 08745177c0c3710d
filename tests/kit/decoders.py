"""Random decoders of any class, and a byte-level tokenizer beside them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEXTS = [
    "<|im_start|>user\nhello, world<|im_end|>",
    "the quick brown fox 中文 123",
    "  two  spaces",
]
SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


def make_tokenizer(folder: Path) -> Path:
    """A byte-level BPE as Qwen2 has it: 300 tokens, the last of them added."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=298, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator(TEXTS * 3, trainer)
    assert made.get_vocab_size() <= 298
    fill = [f"<|fill_{n}|>" for n in range(298 - made.get_vocab_size())]
    made.add_special_tokens([*fill, "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
    fast.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    fast.save_pretrained(folder)
    return folder


def make_decoder(folder: Path, kind: str, settings: dict[str, Any], tokenizer: Path | None) -> Path:
    """A random model of any class, as transformers saves it, beside a tokenizer."""
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if "norm" in name:
            parameter.data.abs_()
    model.save_pretrained(folder)
    if tokenizer is not None:
        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return folder


def grow_tokenizer(folder: Path, tokenizer: Path, count: int) -> None:
    """Save a tokenizer with so many tokens more."""
    made = AutoTokenizer.from_pretrained(tokenizer)
    made.add_tokens([f"new{n}" for n in range(count)])
    made.save_pretrained(folder)
