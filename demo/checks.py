"""Compare what the merge wrote with base + adapter under PEFT, and let the models speak."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from demo import meta_llama, settings
from demo.text import encode, open_tokenizer
from demo.training import grown_base
from merge.errors import MergeError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from torch import Tensor

Logits = list["Tensor"]  # one (tokens, vocabulary) fp32 tensor per line


class Check(NamedTuple):
    """One comparison: what was measured, the most it may be, in the unit of the logits."""

    name: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance (a NaN is not)."""
        return self.difference <= self.tolerance


def encode_all(folder: Path, lines: Sequence[str]) -> list[list[int]]:
    """Return the ids of every line under the tokenizer in ``folder``."""
    tokenizer = open_tokenizer(folder)
    return [encode(tokenizer, line) for line in lines]


def peft_logits(folders: settings.Folders, lines: Sequence[str]) -> Logits:
    """Return the reference: fp32 logits of the base with the adapter beside it, nothing merged."""
    from peft import PeftModel

    grown = grown_base(folders.base, open_tokenizer(folders.lora).get_piece_size())
    model = PeftModel.from_pretrained(grown, folders.lora)
    return _transformers_logits(model, encode_all(folders.lora, lines))


def hf_logits(folder: Path, lines: Sequence[str]) -> Logits:
    """Return the fp32 logits of the merged Hugging Face model under transformers."""
    return _transformers_logits(load_model(folder), encode_all(folder, lines))


def pth_logits(folder: Path, lines: Sequence[str]) -> Logits:
    """Return the logits of the merged ``consolidated.00.pth`` under Meta's forward pass."""
    import torch

    weights = torch.load(folder / "consolidated.00.pth", weights_only=True)
    params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
    with torch.no_grad():
        return [
            meta_llama.forward(weights, params, ids, settings.ROPE_THETA)
            for ids in encode_all(folder, lines)
        ]


def load_model(folder: Path) -> Any:
    """Load a Hugging Face folder in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _transformers_logits(model: Any, sequences: Sequence[Sequence[int]]) -> Logits:
    import torch

    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits[0] for ids in sequences]


def compare(name: str, found: Logits, reference: Logits) -> Check:
    """Return the largest absolute difference: infinite when the shapes differ, NaN for a NaN."""
    import torch

    if [a.shape for a in found] != [b.shape for b in reference]:
        return Check(name, float("inf"), settings.LOGITS_TOLERANCE)
    largest = [(a - b).abs().max() for a, b in zip(found, reference, strict=True)]
    return Check(name, float(torch.stack(largest).max()), settings.LOGITS_TOLERANCE)


def continue_line(folder: Path, prompt: str, max_tokens: int = 24) -> str:
    """Return the greedy continuation of ``prompt`` by the model and the tokenizer in ``folder``."""
    import torch

    tokenizer = open_tokenizer(folder)
    ids = torch.tensor([encode(tokenizer, prompt)])
    answer = load_model(folder).generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_tokens,
        pad_token_id=tokenizer.eos_id(),
    )
    return _decode(tokenizer, answer[0, ids.shape[1] :].tolist())


def continue_in_llama_cpp(folder: Path, prompt: str) -> str | None:
    """Return llama.cpp's greedy continuation by the GGUF file in ``folder``; None without it.

    Raises ``MergeError`` with its last words when it cannot run the file.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    (model,) = folder.glob("*.gguf")
    script = Path(__file__).with_name("llama_cpp_line.py")
    done = subprocess.run(
        [sys.executable, str(script), str(model), prompt],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 0:
        raise MergeError(
            "llama.cpp could not run the merged model", file=model, found=done.stderr[-500:]
        )
    return done.stdout.rstrip("\r\n")


def _decode(tokenizer: SentencePieceProcessor, ids: list[int]) -> str:
    ends = {tokenizer.bos_id(), tokenizer.eos_id()}
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return str(tokenizer.decode(ids[:stop]))
