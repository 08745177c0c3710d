"""Ollama's ``Modelfile``: from which file a model is made, and how it is talked to.

Templates are Go's, filled by Ollama with ``.System`` and ``.Messages``; it adds the first token of
a text itself. Sources: ``docs/modelfile.md`` and ``docs/template.md`` of Ollama; the prompts of
``inference_hf.py`` in Chinese-LLaMA-Alpaca, -2 and -3, and ``chat.sh`` of -2 for further turns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ...errors import UsageError

MODELFILE_NAME = "Modelfile"
_HELPFUL = "You are a helpful assistant. 你是一个乐于助人的助手。"
_END_OF_TURN = "<|eot_id|>"


@dataclass(frozen=True)
class ChatFormat:
    """How a family of models is talked to; ``tokens`` must be in its vocabulary."""

    system: str
    template: str
    stops: Sequence[str]
    tokens: Sequence[str] = ()


FORMATS: Mapping[str, ChatFormat] = {
    "alpaca": ChatFormat(
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.",
        "{{ if .System }}{{ .System }}\n\n{{ end }}"
        '{{ range .Messages }}{{ if eq .Role "user" }}### Instruction:\n\n{{ .Content }}\n\n'
        '{{ else if eq .Role "assistant" }}### Response:\n\n{{ .Content }}</s>\n\n'
        "{{ end }}{{ end }}### Response:\n\n",
        ("</s>", "### Instruction:"),
    ),
    "alpaca2": ChatFormat(
        _HELPFUL,
        '{{ $system := .System }}{{ range .Messages }}{{ if eq .Role "user" }}[INST] '
        '{{ if $system }}<<SYS>>\n{{ $system }}\n<</SYS>>\n\n{{ $system = "" }}{{ end }}'
        '{{ .Content }} [/INST]{{ else if eq .Role "assistant" }} {{ .Content }}</s><s>'
        "{{ end }}{{ end }}",
        ("</s>", "[INST]", "<<SYS>>"),
    ),
    "llama3": ChatFormat(
        _HELPFUL,
        "{{ if .System }}<|start_header_id|>system<|end_header_id|>\n\n{{ .System }}<|eot_id|>"
        '{{ end }}{{ range .Messages }}{{ if ne .Role "system" }}'
        "<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
        "{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n",
        (_END_OF_TURN, "<|end_of_text|>", "<|start_header_id|>"),
        (_END_OF_TURN, "<|start_header_id|>"),
    ),
}


def build_modelfile(
    name: str, weights: Sequence[str], tokens: Collection[str | None]
) -> dict[str, bytes]:
    """The file by its name, for ``FORMATS[name]``.

    ``weights`` are the GGUF files, ``tokens`` the vocabulary. Raises ``UsageError`` for several
    GGUF files, and for a vocabulary without the format's tokens.
    """
    chat = FORMATS[name]
    if len(weights) > 1:
        raise UsageError(
            "a Modelfile names one GGUF file",
            found=f"{len(weights)} files by --split_max_size",
            remedy="leave --split_max_size or --modelfile out",
        )
    missing = [token for token in chat.tokens if token not in tokens]
    if missing:
        raise UsageError(
            f"--modelfile {name} is for models of another tokenizer",
            expected=f"a tokenizer with {', '.join(chat.tokens)}",
            found=f"no {missing[0]}",
            remedy="give the format that the model was trained with, one of " + ", ".join(FORMATS),
        )
    lines = [
        f"FROM ./{weights[0]}",
        f'TEMPLATE """{chat.template}"""',
        f'SYSTEM """{chat.system}"""',
        *(f'PARAMETER stop "{word}"' for word in chat.stops),
    ]
    return {MODELFILE_NAME: ("\n".join(lines) + "\n").encode()}
