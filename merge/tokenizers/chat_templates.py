"""Chat templates of a tokenizer's folder, from every file that may hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..messages import tr
from ..untrusted.strict_json import parse_json, read_small
from .file_names import CHAT_TEMPLATE_JSON_NAME, CHAT_TEMPLATE_NAME

_FURTHER = "additional_chat_templates"
_MOST_BYTES = 16 << 20


def read_templates(folder: Path, config: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    """The template, or several by name as ``tokenizer_config.json`` lists them; None for none.

    ``chat_template.jinja`` comes before ``tokenizer_config.json``, as in transformers, and both
    before ``chat_template.json``, as in llama.cpp's converter. ``additional_chat_templates`` holds
    further ones beside the first. Raises ``FormatError`` for text that is not UTF-8.
    """
    configured = config.get("chat_template")
    jinja = _read_text(folder / CHAT_TEMPLATE_NAME)
    further = {path.stem: _read_text(path) for path in sorted((folder / _FURTHER).glob("*.jinja"))}
    if jinja is None and configured is None and (folder / CHAT_TEMPLATE_JSON_NAME).is_file():
        path = folder / CHAT_TEMPLATE_JSON_NAME
        configured = parse_json(read_small(path, _MOST_BYTES), path).get("chat_template")
    default = jinja if jinja is not None else configured
    if not further:
        return default
    named = {"default": default} if isinstance(default, str) else {}
    if isinstance(default, list):
        named = {str(entry.get("name")): entry.get("template") for entry in default}
    named |= {name: text or "" for name, text in further.items()}
    return [{"name": name, "template": text or ""} for name, text in named.items()]


def _read_text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return read_small(path, _MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(
            tr("the file is not UTF-8"),
            file=path,
            expected=tr("a template as text"),
            found=error,
            remedy=tr("save it as UTF-8, or fetch it again"),
        ) from None
