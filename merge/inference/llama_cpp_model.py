"""A GGUF file through llama.cpp, by llama-cpp-python."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import FormatError, UsageError
from ..messages import tr
from .chat_model import Message, template_error
from .settings import ChatSettings

_TEMPLATE = "tokenizer.chat_template"
_TOKENIZER = "tokenizer.ggml.model"
_MAGIC = b"GGUF"


class LlamaCppModel:
    """``llama_cpp.Llama`` of one file, or of the first file of a split model."""

    def __init__(self, path: Path, settings: ChatSettings) -> None:
        try:
            import llama_cpp
        except ImportError:
            raise UsageError(
                tr("a GGUF file needs llama-cpp-python, which is not installed"),
                remedy=tr("pip install 'chinese-llama-merge[llama_cpp]'"),
            ) from None
        self._path = path
        self._llm: Any = None
        with path.open("rb") as file:
            found = file.read(len(_MAGIC))
        if found != _MAGIC:
            raise FormatError(tr("this is no GGUF file"), file=path, expected=_MAGIC, found=found)
        described = self._load(llama_cpp, vocab_only=True)
        self._vocabulary = {
            described._model.token_get_text(id_): id_ for id_ in range(described.n_vocab())
        }
        self._require_bytes(described.metadata.get(_TOKENIZER))
        self._context = min(settings.context, *_find_context_lengths(described.metadata))
        described.close()
        layers = 0 if settings.device == "cpu" else -1
        self._llm = self._load(llama_cpp, n_ctx=self._context, n_gpu_layers=layers)

    def _load(self, llama_cpp: Any, **options: Any) -> Any:
        try:
            return llama_cpp.Llama(str(self._path), verbose=False, **options)
        except (AssertionError, OSError, RuntimeError, ValueError) as error:
            raise FormatError(
                tr("llama.cpp cannot load this file"),
                file=self._path,
                found=error,
                remedy=tr(
                    "check it with verify_merge.py; for a model of another architecture, "
                    "update llama-cpp-python"
                ),
            ) from error

    def _require_bytes(self, tokenizer: str | None) -> None:
        """llama.cpp ends the process at a character for which there is neither token nor byte."""
        if tokenizer == "llama" and "<0x0A>" not in self._vocabulary:
            raise FormatError(
                tr("llama.cpp cannot read text with this vocabulary"),
                file=self._path,
                expected=tr("tokens for single bytes, as LLaMA's tokenizer has them"),
                found=tr("none"),
                remedy=tr("give the model its own tokenizer"),
            )

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def template(self) -> str | None:
        """The chat template in the file."""
        found: str | None = self._llm.metadata.get(_TEMPLATE)
        return found

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary."""
        return len(self._vocabulary)

    @property
    def context_length(self) -> int:
        """What was asked for, at most what the model was trained with."""
        return self._context

    def has_token(self, token: str) -> bool:
        """Whether the vocabulary has it."""
        return token in self._vocabulary

    def render(self, template: str, messages: Sequence[Message]) -> str:
        """As llama-cpp-python renders chat templates."""
        import jinja2
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        try:
            filled = Jinja2ChatFormatter(
                template, eos_token=self._spell(self._llm.token_eos()), bos_token=self._bos
            )
            text: str = filled(messages=list(messages)).prompt
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise template_error(self.path, error) from error
        return text

    def encode(self, text: str) -> list[int]:
        """Ids; bos is put before a text that does not begin with it, if the file says so."""
        has_bos = bool(self._bos) and text.startswith(self._bos)
        ids: list[int] = self._llm.tokenize(text.encode(), add_bos=not has_bos, special=True)
        return ids

    @property
    def _bos(self) -> str:
        return self._spell(self._llm.token_bos())

    def _spell(self, token: int) -> str:
        return next((text for text, id_ in self._vocabulary.items() if id_ == token), "")

    def generate(
        self, ids: Sequence[int], settings: ChatSettings, stops: Sequence[str]
    ) -> Generator[str, None, None]:
        """llama-cpp-python's completion, which gives whole characters."""
        for part in self._llm.create_completion(
            list(ids),
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=0.0,
            repeat_penalty=settings.repetition_penalty,
            seed=settings.seed,
            stream=True,
        ):
            if text := part["choices"][0]["text"]:
                yield text

    def close(self) -> None:
        """Free the model's memory."""
        self._llm.close()


def _find_context_lengths(metadata: Mapping[str, str]) -> list[int]:
    return [int(value) for name, value in metadata.items() if name.endswith(".context_length")]
