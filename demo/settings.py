"""The sizes, the seed and the tolerance of the demo, and where it puts things: all in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_OUTPUT = ROOT / "demo-output"

SEED = 20230328
THREADS = 1  # a second one gains nothing here and waits badly on a busy machine

ENGLISH_PIECES = 512  # <unk> <s> </s>, 256 bytes, letters, and English word pieces
CHINESE_PIECES = 500  # before those that the base already has are left out

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 96, 256, 2, 4, 2
ROPE_THETA, NORM_EPS = 10000.0, 1e-5
BASE_SHARD_SIZE = "150KB"  # several shards, as a real base has

BASE_STEPS, BASE_LEARNING_RATE = 90, 4e-3
LORA_STEPS, LORA_LEARNING_RATE = 100, 3e-3
LORA_RANK, LORA_ALPHA = 8, 32
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# Of logits that spread over some 20 units: the merged weights are rounded to fp16, the reference
# is fp32. The rounding alone makes about 0.008; a q or k in the wrong order makes whole units.
LOGITS_TOLERANCE = 0.03

PROMPT = "如果你今天去那个村庄，"
CONTINUATION = "还能看见那棵柳树。"


@dataclass(frozen=True)
class Folders:
    """The folders of one run, all below ``root``."""

    root: Path

    @property
    def base(self) -> Path:
        """The English base, Hugging Face layout, fp16."""
        return self.root / "base"

    @property
    def chinese(self) -> Path:
        """The Chinese SentencePiece model whose pieces the base lacks."""
        return self.root / "chinese_sp.model"

    @property
    def lora(self) -> Path:
        """The Chinese adapter as PEFT writes it, with the extended ``tokenizer.model``."""
        return self.root / "lora"

    @property
    def pth(self) -> Path:
        """The merged model, Meta's layout."""
        return self.root / "pth"

    @property
    def hf(self) -> Path:
        """The merged model, Hugging Face layout."""
        return self.root / "hf"

    @property
    def gguf(self) -> Path:
        """The merged model for llama.cpp."""
        return self.root / "gguf"
