"""Chat templates of a tokenizer's folder, from every file that may hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..untrusted.strict_json import parse_json, read_small

CHAT_TEMPLATE_NAME = "chat_template.jinja"
_JSON_NAME = "chat_template.json"
_FURTHER = "additional_chat_templates"
TEMPLATE_NAMES = (CHAT_TEMPLATE_NAME, _JSON_NAME)
"""Files beside ``tokenizer_config.json`` that make a folder one with a template."""
_MOST_BYTES = 16 << 20


def read_templates(folder: Path, config: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    """The template, or several by name as ``tokenizer_config.json`` lists them; None for none.

    ``chat_template.jinja`` comes before ``tokenizer_config.json``, as in transformers, and both
    before ``chat_template.json``, as in llama.cpp's converter. ``additional_chat_templates`` holds
    further ones beside the first. Raises ``FormatError`` for text that is not UTF-8.
    """
    said = config.get("chat_template")
    jinja = _text(folder / CHAT_TEMPLATE_NAME)
    further = {path.stem: _text(path) for path in sorted((folder / _FURTHER).glob("*.jinja"))}
    if jinja is None and said is None and (folder / _JSON_NAME).is_file():
        path = folder / _JSON_NAME
        said = parse_json(read_small(path, _MOST_BYTES), path).get("chat_template")
    default = jinja if jinja is not None else said
    if not further:
        return default
    named = {"default": default} if isinstance(default, str) else {}
    if isinstance(default, list):
        named = {str(entry.get("name")): entry.get("template") for entry in default}
    named |= {name: text or "" for name, text in further.items()}
    return [{"name": name, "template": text or ""} for name, text in named.items()]


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return read_small(path, _MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError("The file is not UTF-8.", file=path, found=str(error)) from error
