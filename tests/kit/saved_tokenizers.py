"""Tokenizers as transformers 5 and 4.46 save them, with the same tokens added by both."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.kit.files import write_json
from tests.kit.models import adapter_tensors, base_tensors, save_adapter, save_base
from tests.kit.tokenizer_models import train_llama
from tests.kit.transformers_446 import run_in_transformers_446

# Of the base's tokenizer.
PIECES = 400


@dataclass(frozen=True)
class Tokens:
    """What a training adds to a vocabulary: special and plain tokens, the end of the text and
    padding by name, and a chat template.
    """

    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    eos: str | None = None
    pad: str | None = None
    template: str | None = None

    @property
    def added(self) -> tuple[str, ...]:
        """The tokens in the order of their ids."""
        return (*self.special, *self.plain)


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
KINDS = {
    "nothing": Tokens(),
    "template": Tokens(template="{% for m in messages %}{{ m.content }} {% endfor %}"),
    "padding": Tokens(special=("<pad>",), pad="<pad>"),
    "padding by name": Tokens(pad="</s>"),
    "chatml": Tokens(("<|im_start|>", "<|im_end|>"), (), "<|im_end|>", "</s>", CHATML),
    "chatml without template": Tokens(("<|im_start|>", "<|im_end|>"), (), "<|im_end|>"),
    "plain": Tokens(plain=("你好世界", "hello_world")),
    "all": Tokens(
        ("<|im_start|>", "<|im_end|>", "<pad>"),
        ("【工具】", "x_tool"),
        "<|im_end|>",
        "<pad>",
        CHATML,
    ),
}


_WRITE = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer, LlamaTokenizer

def write(source, kinds, out):
    for name, said in kinds.items():
        made = READ(source)
        if said["special"]:
            key = "additional_special_tokens"
            made.add_special_tokens({key: said["special"]})
        if said["plain"]:
            made.add_tokens(said["plain"])
        for role in ("eos", "pad"):
            if said[role]:
                setattr(made, role + "_token", said[role])
        if said["template"]:
            made.chat_template = said["template"]
        made.save_pretrained(Path(out) / name)
"""


def write_with_446(source: Path, out: Path) -> None:
    """Let the slow tokenizer of transformers 4.46 save every kind into a folder of its name."""
    kinds = json.dumps({name: asdict(tokens) for name, tokens in KINDS.items()})
    code = f"READ = lambda s: LlamaTokenizer.from_pretrained(s)\n{_WRITE}"
    code += "write(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])\nprint(json.dumps(0))\n"
    code = code.replace("READ =", "from transformers import LlamaTokenizer\nREAD =", 1)
    run_in_transformers_446(code, source, kinds, out)


def write_with_5(source: Path, out: Path) -> None:
    """Let transformers 5 save every kind, which writes ``tokenizer.json`` and no other list."""
    from transformers import AutoTokenizer

    for name, tokens in KINDS.items():
        made = AutoTokenizer.from_pretrained(source)
        if tokens.special:
            made.add_special_tokens({"extra_special_tokens": list(tokens.special)})
        if tokens.plain:
            made.add_tokens(list(tokens.plain))
        for role in ("eos", "pad"):
            if value := getattr(tokens, role):
                setattr(made, f"{role}_token", value)
        if tokens.template:
            made.chat_template = tokens.template
        made.save_pretrained(out / name)
        assert not (out / name / "tokenizer.model").exists()
        assert not (out / name / "added_tokens.json").exists()


@dataclass(frozen=True)
class SavedTokenizers:
    """Folders of tokenizers: the base's, and each kind as each release saves it."""

    base: Path
    by_446: Path
    by_5: Path

    def written(self, release: str, kind: str) -> Path:
        return (self.by_446 if release == "4.46" else self.by_5) / kind


def make_saved_tokenizers(folder: Path) -> SavedTokenizers:
    """Train the base's tokenizer, and have each release save every kind."""
    base = folder / "base"
    base.mkdir()
    (base / "tokenizer.model").write_bytes(train_llama(PIECES).SerializeToString())
    said = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": True}
    said |= {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "LlamaTokenizer"}
    write_json(base / "tokenizer_config.json", said)
    write_json(base / "config.json", {"model_type": "llama"})
    write_with_446(base, folder / "4.46")
    write_with_5(base, folder / "5")
    (base / "config.json").unlink()
    return SavedTokenizers(base, folder / "4.46", folder / "5")


def save_base_with(
    folder: Path, made: SavedTokenizers, *, fast: bool = False, template: str = ""
) -> Path:
    """A base of random values with the base's tokenizer, also as ``tokenizer.json`` if ``fast``."""
    tensors = base_tensors(PIECES)
    save_base(folder, tensors, pieces=None, vocab_size=PIECES, pad_token_id=None)
    for path in made.base.glob("tokenizer*"):
        shutil.copy(path, folder)
    if fast:  # as many a base on the Hub has both
        shutil.copy(made.by_5 / "nothing/tokenizer.json", folder)
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def save_adapter_with(folder: Path, tokenizer: Path, rows: int | None) -> Path:
    """An adapter with a saved tokenizer beside it."""
    save_adapter(folder, adapter_tensors(rows))
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return folder


def rows_of(tokens: Tokens) -> int | None:
    """Rows of a vocabulary grown by these tokens; None if none was added."""
    return PIECES + len(tokens.added) if tokens.added else None
