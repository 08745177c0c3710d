"""The words of the page, by component; ``page`` shows them in the language that is chosen."""

from __future__ import annotations

from pathlib import Path

from ..messages import tr

TITLE = tr("Chinese LLaMA Merge")


def describe_page(root: Path) -> str:
    """What the page does, and below which folder."""
    return tr(
        "Merges LoRA adapters into a base model. Paths are below `{root}`. First check, then "
        "merge: the plan and all warnings come before anything is written. One merge runs at a "
        "time, further ones wait; a merge goes on when its tab is closed.",
        root=root,
    )


KIND_NAMES = {
    "huggingface-safetensors": tr("Hugging Face, safetensors"),
    "huggingface-bin": tr("Hugging Face, .bin"),
    "gguf": tr("GGUF, for llama.cpp"),
    "pth": tr("Meta's .pth"),
}
LABELS = {
    "base": (tr("Base model"), tr("a folder, or a GGUF file")),
    "adapters": (tr("Adapters"), tr("in the order in which they are merged")),
    "output": (tr("Output folder"), tr("made if it is not there")),
    "kind": (tr("What is written"), None),
    "outtype": (tr("GGUF type"), tr("of the matrices; auto is f16 or bf16")),
    "prompt": (tr("Question"), None),
    "chat_base": (tr("Base model"), tr("may be left empty")),
    "chat_merged": (tr("Merged model"), tr("a Hugging Face folder or a GGUF file")),
    "template": (
        tr("Template"),
        tr("auto: the model's own if it has one"),
    ),
    "temperature": (tr("Temperature"), tr("0 always takes the likeliest token")),
    "max_tokens": (tr("Length of an answer"), tr("in tokens, at most")),
}
BUTTONS = {
    "check": tr("Check"),
    "merge": tr("Merge"),
    "cancel": tr("Cancel"),
    "adopt": tr("Show the merge that is going on"),
    "refresh": tr("Look for models again"),
    "ask": tr("Ask"),
    "stop": tr("Stop"),
}
HEADINGS = {
    "merge_part": tr("## 1. Merge"),
    "report_part": tr("## 2. Report"),
    "chat_part": tr("## 3. Try it"),
}
FURTHER = tr("Further options")
RESUME = tr("Resume")
CHANGED = tr("The form was changed since: check it again before the merge.")
NOT_CHECKED = tr("Nothing is checked yet.")
CHECKING = tr("checking: headers are read, nothing is written")
NO_REPORT = tr("A report is shown here after a merge.")
LOADING = tr("loading the model")
WAITING = tr("waiting: a question from another tab comes first")
