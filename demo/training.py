"""Train the two things that a merge needs: a tiny LLaMA, and a LoRA adapter for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo import settings
from demo.text import encode, open_tokenizer

if TYPE_CHECKING:
    import torch

IGNORED = -100  # the label that torch's cross entropy leaves out


def train_base(lines: Sequence[str], folder: Path) -> float:
    """Train the base on ``lines``, save it in ``folder`` (fp16, sharded), return its last loss.

    ``folder`` already holds ``tokenizer.model``.
    """
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = open_tokenizer(folder)
    torch.manual_seed(settings.SEED)
    model = LlamaForCausalLM(_base_config(tokenizer.get_piece_size()))
    batch = make_batch([[*encode(tokenizer, line), tokenizer.eos_id()] for line in lines])
    loss = fit(model, batch, settings.BASE_STEPS, settings.BASE_LEARNING_RATE)
    model.half().save_pretrained(folder, max_shard_size=settings.BASE_SHARD_SIZE)
    return loss


def _base_config(vocab_size: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=settings.HIDDEN,
        intermediate_size=settings.INTERMEDIATE,
        num_hidden_layers=settings.LAYERS,
        num_attention_heads=settings.HEADS,
        num_key_value_heads=settings.KV_HEADS,
        max_position_embeddings=512,
        rms_norm_eps=settings.NORM_EPS,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def train_lora(lines: Sequence[str], base: Path, folder: Path) -> float:
    """Train an adapter of the model in ``base`` on ``lines``, save it in ``folder``.

    ``folder`` already holds the extended ``tokenizer.model``; the embeddings and the LM head grow
    to its size and are trained whole (``modules_to_save``). Returns the last loss.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    tokenizer = open_tokenizer(folder)
    torch.manual_seed(settings.SEED)
    config = LoraConfig(
        r=settings.LORA_RANK,
        lora_alpha=settings.LORA_ALPHA,
        target_modules=list(settings.LORA_MODULES),
        modules_to_save=["embed_tokens", "lm_head"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(grown_base(base, tokenizer.get_piece_size()), config)
    batch = make_batch([[*encode(tokenizer, line), tokenizer.eos_id()] for line in lines])
    loss = fit(model, batch, settings.LORA_STEPS, settings.LORA_LEARNING_RATE)
    model.save_pretrained(folder, save_embedding_layers=True)  # what "auto" means after growth
    return loss


def grown_base(base: Path, vocab_size: int) -> Any:
    """Load the base in fp32 and give its embeddings and LM head ``vocab_size`` rows."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    return model


def make_batch(sequences: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Pad ``sequences`` to one int64 batch: input_ids, attention_mask and labels."""
    import torch

    longest = max(map(len, sequences))
    rows = [(list(ids), longest - len(ids)) for ids in sequences]
    return {
        "input_ids": torch.tensor([ids + [0] * pad for ids, pad in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * pad for ids, pad in rows]),
        "labels": torch.tensor([ids + [IGNORED] * pad for ids, pad in rows]),
    }


def fit(model: Any, batch: dict[str, torch.Tensor], steps: int, learning_rate: float) -> float:
    """Learn ``batch`` by heart: AdamW, the rate falling to zero in a line; return the last loss."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    model.train()
    loss = torch.zeros(())
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return float(loss.detach())
