"""Tiny models of the Llama 3 generation as Hugging Face folders, with the real vocabulary.

The tokenizer is made by transformers' own converter from Meta's tiktoken file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from merge.tokenizers.tiktoken_model import list_special_token_names
from tests.kit.llamas import llama_config

ROWS = 128_256
BOS, EOS, END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
)
# As Llama 3.1's config.json has it, but for the length, which is shorter here.
SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def write_llama3_tokenizer(folder: Path, real_data: Path) -> Path:
    """Convert Meta's file as transformers' ``convert_llama_weights_to_hf.py`` did."""
    model = real_data / "tokenizers" / "llama3_tiktoken.model"
    names = list(list_special_token_names("3"))
    tokenizer = TikTokenConverter(str(model), extra_special_tokens=names).converted()
    begin = [(BOS, ROWS - 256)]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A:0", pair=f"{BOS} $A:0 {BOS} $B:1", special_tokens=begin
            ),
        ]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "attention_mask"],
    )
    made.save_pretrained(folder)
    return folder


def make_llama3(folder: Path, tokenizer: Iterable[Path], **changes: Any) -> Path:
    """A random model in bfloat16 with the files of a ``tokenizer``, saved by transformers."""
    settings: dict[str, Any] = {
        "vocab_size": ROWS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "bos_token_id": ROWS - 256,
        "eos_token_id": ROWS - 255,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(**settings | changes)).bfloat16()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, std=0.5)
            parameter.data.abs_()
        else:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    for file in tokenizer:
        shutil.copyfile(file, folder / file.name)
    return folder


def with_template(folder: Path) -> Path:
    """Let text end with the turn, as in Meta's instruct models."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"eos_token": END_OF_TURN, "chat_template": TEMPLATE}
    path.write_text(json.dumps(config), encoding="utf-8")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["eos_token_id"] = [ROWS - 255, ROWS - 248, ROWS - 247]
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder
