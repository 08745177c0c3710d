"""Ollama's ``Modelfile``: from which file a model is made, and how it is talked to.

Templates are Go's, filled by Ollama with ``.System`` and ``.Messages``; it adds the first token of
a text itself. Sources: ``docs/modelfile.md`` and ``docs/template.md`` of Ollama;
``tokenizers/chat_formats.py`` has the rest of each format.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ...errors import UsageError
from ...messages import tr
from ...tokenizers.chat_formats import FORMATS

MODELFILE_NAME = "Modelfile"
# The templates of ``FORMATS`` in Go's language.
GO_TEMPLATES: Mapping[str, str] = {
    "alpaca": "{{ if .System }}{{ .System }}\n\n{{ end }}"
    '{{ range .Messages }}{{ if eq .Role "user" }}### Instruction:\n\n{{ .Content }}\n\n'
    '{{ else if eq .Role "assistant" }}### Response:\n\n{{ .Content }}</s>\n\n'
    "{{ end }}{{ end }}### Response:\n\n",
    "alpaca2": '{{ $system := .System }}{{ range .Messages }}{{ if eq .Role "user" }}[INST] '
    '{{ if $system }}<<SYS>>\n{{ $system }}\n<</SYS>>\n\n{{ $system = "" }}{{ end }}'
    '{{ .Content }} [/INST]{{ else if eq .Role "assistant" }} {{ .Content }}</s><s>'
    "{{ end }}{{ end }}",
    "llama3": "{{ if .System }}<|start_header_id|>system<|end_header_id|>\n\n"
    "{{ .System }}<|eot_id|>{{ end }}"
    '{{ range .Messages }}{{ if ne .Role "system" }}'
    "<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
    "{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n",
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
            tr("a Modelfile names one GGUF file"),
            found=tr("{n_weights} files by --split_max_size", n_weights=len(weights)),
            remedy=tr("leave --split_max_size or --modelfile out"),
        )
    missing = [token for token in chat.tokens if token not in tokens]
    if missing:
        raise UsageError(
            tr("--modelfile {name} is for models of another tokenizer", name=name),
            expected=tr("a tokenizer with {tokens}", tokens=", ".join(chat.tokens)),
            found=tr("no {missing}", missing=missing[0]),
            remedy=tr("give the format that the model was trained with, one of ")
            + ", ".join(FORMATS),
        )
    lines = [
        f"FROM ./{weights[0]}",
        f'TEMPLATE """{GO_TEMPLATES[name]}"""',
        f'SYSTEM """{chat.system}"""',
        *(f'PARAMETER stop "{word}"' for word in chat.stops),
    ]
    return {MODELFILE_NAME: ("\n".join(lines) + "\n").encode()}
