"""A tiny base with a Chinese-LLaMA and a Chinese-Alpaca adapter, to be broken in one way each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from merge import MergeError, merge_lora
from tests.kit.files import tree
from tests.kit.models import ALPACA_ROWS, LLAMA_ROWS, adapter_tensors, save_adapter, save_base


@dataclass(frozen=True)
class Inputs:
    """Folders that belong together, and the call that merges them."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "llama-7b-hf"

    @property
    def llama(self) -> Path:
        """Chinese-LLaMA: whole embeddings of ``LLAMA_ROWS`` rows."""
        return self.folder / "chinese-llama"

    @property
    def alpaca(self) -> Path:
        """Chinese-Alpaca: one row more, for [PAD]."""
        return self.folder / "chinese-alpaca"

    @property
    def out(self) -> Path:
        return self.folder / "merged"

    def merge(self, *lora: Path, **options: object) -> None:
        """Merge into ``out``; both adapters in their order unless others are named."""
        arguments = {"base_model": self.base, "output_dir": self.out} | options
        merge_lora(lora_model=lora or (self.llama, self.alpaca), **arguments)  # type: ignore[arg-type]

    def refused(self, kind: type[MergeError], *lora: Path, **options: object) -> MergeError:
        """Merge, and require that it was refused with a remedy, and nothing written or changed."""
        before = tree(self.folder)
        with pytest.raises(kind) as caught:
            self.merge(*lora, **options)
        assert tree(self.folder) == before
        assert caught.type is kind
        assert caught.value.facts.get("remedy"), str(caught.value)
        return caught.value


def make_inputs(folder: Path) -> Inputs:
    """Write the three into ``folder``."""
    made = Inputs(folder)
    save_base(made.base)
    save_adapter(made.llama, adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    save_adapter(made.alpaca, adapter_tensors(ALPACA_ROWS, seed=700), pieces=ALPACA_ROWS)
    return made
