"""What the form asks for, and the keywords of ``merge_lora`` that it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..messages import tr
from ..output.preflight import OutputFolder
from .root import Root

KINDS: Mapping[str, Mapping[str, Any]] = {
    "huggingface-safetensors": {"output_type": "huggingface", "safe_serialization": True},
    "huggingface-bin": {"output_type": "huggingface"},
    "gguf": {"output_type": "gguf"},
    "pth": {"output_type": "pth"},
}
"""What can be written, by the names in the form."""
# Options that the form offers as they are: a choice or a yes, none of them a path.
FURTHER_OPTIONS = (
    *("chat_template", "modelfile", "dtype", "rounding", "vocab_mismatch", "new_token_init"),
    *("allow_unknown_combination", "allow_quantized_input", "allow_nonfinite", "overwrite"),
)


@dataclass(frozen=True)
class Form:
    """The fields of the form as they stand, which may be wrong in any way."""

    base: str
    adapters: tuple[str, ...]
    output: str
    kind: str
    outtype: str
    further: tuple[Any, ...]

    @classmethod
    def read(cls, values: tuple[Any, ...]) -> Form:
        """Take what the browser has sent, field by field, by the types that it must have."""
        base, adapters, output, kind, outtype, *further = values
        listed = adapters if isinstance(adapters, list) else []
        names = tuple(str(name) for name in listed)
        named = {"output": output, "kind": kind, "outtype": outtype}
        texts = {name: str(value or "") for name, value in named.items()}
        return cls(str(base or ""), names, further=tuple(further), **texts)

    def to_keywords(self, root: Root) -> dict[str, Any]:
        """The keywords of ``merge_lora``; an interrupted merge into the same folder is resumed
        unless it is to be replaced.

        Raises ``UsageError`` for a path that ``root`` refuses, and for values that no option has.
        """
        if not self.adapters:
            raise UsageError(tr("no adapter is named"), remedy=tr("name at least one"))
        if self.kind not in KINDS or len(self.further) != len(FURTHER_OPTIONS):
            raise UsageError(tr("the form is not that of this page"), remedy=tr("load it again"))
        keywords = {
            "base_model": root.find_input(self.base),
            "lora_model": [root.find_input(name) for name in self.adapters],
            "output_dir": str(root.find_output(self.output)),
            "report": True,
            **KINDS[self.kind],
            **self._further_keywords(),
        }
        if not keywords.get("overwrite") and is_interrupted(Path(keywords["output_dir"])):
            keywords["resume"] = True
        if self.kind == "gguf":
            keywords["outtype"] = self.outtype
        return keywords

    def _further_keywords(self) -> dict[str, Any]:
        given = zip(FURTHER_OPTIONS, self.further, strict=True)
        return {name: value for name, value in given if value not in (None, "", False)}


def is_interrupted(output: Path) -> bool:
    """Whether a run that did not come to its end has left something there."""
    return output.is_dir() and bool(OutputFolder(output).leftovers)


def to_model_name(output: str, root: Root) -> str:
    """The result of a merge as the name of a model below the root."""
    return root.find_output(output).relative_to(root.folder.resolve()).as_posix()
