"""YAML files: read by PyYAML's safe loader, without what makes one file mean two things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import FormatError
from ..messages import join, tr
from .strict_json import read_small

# Some thousands of jobs; PyYAML reads a tenth of a megabyte in a second.
LARGEST_YAML = 256 << 10
_MOST_DEPTH = 20


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping with text as its keys.

    Raises ``FormatError`` when the file holds anything else; for keys that appear twice, of which
    YAML's readers keep the last; for anchors and aliases, which can make a short file endless; and
    for tags, by which a value says its own type.
    """
    try:
        text = read_small(path, LARGEST_YAML).decode("utf-8-sig")
        # The loader is safe: it adds refusals to SafeLoader.
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        raise _invalid_error(path, _describe(error)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also of dates that are none
        raise _invalid_error(path, str(error)) from None
    if not isinstance(value, dict):
        raise FormatError(
            tr("the file does not hold a YAML mapping"),
            file=path,
            expected=tr("lines such as base_model: llama-7b-hf"),
            found=tr("nothing") if value is None else type(value).__name__,
            remedy=tr("write the options as name: value"),
        )
    return value


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader in pure Python, whose depth is limited by more than the stack."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise _refusal(tr("anchors and aliases (& and *) are not read"), event)
        if getattr(event, "tag", None) is not None:
            raise _refusal(tr("tags (!) are not read"), event)
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise _refusal(tr("nested more than {most_depth} deep", most_depth=_MOST_DEPTH), event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _refusal(tr("a key is not text; quotes make it text"), key)
            if key.value in seen:
                raise _refusal(tr("{value!r} appears twice", value=key.value), key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refusal(sentence: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=sentence, problem_mark=at.start_mark)


def _describe(error: yaml.MarkedYAMLError) -> str:
    line = tr("line {line}: ", line=error.problem_mark.line + 1) if error.problem_mark else ""
    return line + join(" ", filter(None, [error.context, error.problem]))


def _invalid_error(path: Path, found: str) -> FormatError:
    return FormatError(
        tr("the file is not valid YAML"), file=path, found=found, remedy=tr("fix the file")
    )
