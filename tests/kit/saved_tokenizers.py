"""Tokenizers as transformers 5 and 4.46 save them, with the same tokens added by both."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.kit.transformers_446 import run_in_transformers_446


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
