"""A Hugging Face folder through transformers."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from queue import SimpleQueue
from threading import Event
from typing import Any

from safetensors import SafetensorError

from ..errors import FormatError, MergeError, UsageError
from ..layouts.config import is_llama
from ..layouts.model_folder import ModelFolder
from ..messages import tr
from ..tokenizers.file_names import MODEL_NAME
from ..tokenizers.tiktoken_model import is_tiktoken_file
from .chat_model import Message, template_error
from .settings import ChatSettings
from .text_pieces import decode_pieces

# What transformers raises for a folder that it cannot load.
_LOADING = (
    *(AttributeError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, UnpicklingError),
)
_CONTEXT_LENGTH = 2048


class TransformersModel:
    """``AutoModelForCausalLM`` in the dtype of its files, and its tokenizer.

    No code of the folder is run. ``tokenizer.model`` of a LLaMA is read by this program's own
    class, which gives the ids that the model was trained with.
    """

    def __init__(self, folder: ModelFolder, device: str) -> None:
        try:
            import transformers
        except ImportError:
            raise UsageError(
                tr("a Hugging Face folder needs transformers, which is not installed"),
                remedy=tr("pip install 'chinese-llama-merge[chat]'"),
            ) from None
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._folder = folder.path
        try:
            self._tokenizer: Any = _load_tokenizer(folder)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder.path, dtype="auto", local_files_only=True, trust_remote_code=False
            )
        except MergeError:
            raise
        except _LOADING as error:
            raise FormatError(
                tr("transformers cannot load this model"),
                file=folder.path,
                found=f"{type(error).__name__}: {error}",
                remedy=tr("check the folder with verify_merge.py, or merge again"),
            ) from error
        self._model: Any = model.to(_choose_device(device)).eval()

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder

    @property
    def template(self) -> str | None:
        """The chat template; of several, that called default."""
        found = self._tokenizer.chat_template
        return found.get("default") if isinstance(found, Mapping) else found

    @property
    def n_tokens(self) -> int:
        """Pieces and added tokens."""
        return len(self._tokenizer)

    @property
    def context_length(self) -> int:
        """As ``config.json`` says."""
        return int(getattr(self._model.config, "max_position_embeddings", None) or _CONTEXT_LENGTH)

    def has_token(self, token: str) -> bool:
        """Whether the vocabulary has it."""
        return token in self._tokenizer.get_vocab()

    def render(self, template: str, messages: Sequence[Message]) -> str:
        """As transformers renders chat templates."""
        import jinja2

        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise template_error(self.path, error) from error
        return text

    def encode(self, text: str) -> list[int]:
        """Ids; bos is put before a text that does not begin with it, if the tokenizer does so."""
        bos = self._tokenizer.bos_token
        has_bos = bool(bos) and text.startswith(bos)
        return list(self._tokenizer(text, add_special_tokens=not has_bos)["input_ids"])

    def generate(
        self, ids: Sequence[int], settings: ChatSettings, stops: Sequence[str]
    ) -> Generator[str, None, None]:
        """transformers' ``generate`` in a thread, its tokens decoded as they come."""
        yield from decode_pieces(
            self._generate_ids(ids, settings, stops),
            lambda some: self._tokenizer.decode(some, skip_special_tokens=True),
        )

    def _generate_ids(
        self, ids: Sequence[int], settings: ChatSettings, stops: Sequence[str]
    ) -> Iterator[int]:
        import torch
        from transformers import StoppingCriteriaList

        queue: SimpleQueue[int | None] = SimpleQueue()
        ended = Event()
        prompt = torch.tensor([list(ids)], device=self._model.device)

        def is_over(*_: Any, **__: Any) -> Any:
            return torch.tensor([ended.is_set()], device=prompt.device)

        def work() -> None:
            if settings.seed is not None:
                torch.manual_seed(settings.seed)
            try:
                self._model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    streamer=_Streamer(queue),
                    stopping_criteria=StoppingCriteriaList([is_over]),
                    **self._generation_options(settings, stops),
                )
            finally:
                queue.put(None)

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work)
            try:
                yield from iter(queue.get, None)
            finally:
                ended.set()
            future.result()

    def _generation_options(self, settings: ChatSettings, stops: Sequence[str]) -> dict[str, Any]:
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        vocabulary = self._tokenizer.get_vocab()
        ends += [self._tokenizer.eos_token_id, *(vocabulary.get(stop) for stop in stops)]
        ends = sorted({end for end in ends if end is not None})
        draws = settings.temperature > 0
        drawing = {
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
        }
        return {
            "do_sample": draws,
            **(drawing if draws else dict.fromkeys(drawing)),
            "repetition_penalty": settings.repetition_penalty,
            "max_new_tokens": settings.max_tokens,
            "eos_token_id": ends or None,
            "pad_token_id": ends[0] if ends else 0,
        }

    def close(self) -> None:
        """Free the model's memory."""
        import torch

        self._model = self._tokenizer = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Streamer:
    """Passes each new token on; what is put first is the prompt."""

    def __init__(self, queue: SimpleQueue[int | None]) -> None:
        self._queue = queue
        self._is_prompt = True

    def put(self, value: Any) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        for id_ in value.reshape(-1).tolist():
            self._queue.put(id_)

    def end(self) -> None:
        """The thread says itself when it has ended."""


def _load_tokenizer(folder: ModelFolder) -> Any:
    from transformers import AutoTokenizer

    model_file = folder.files.get(MODEL_NAME)
    if model_file is not None and is_llama(folder.config) and not is_tiktoken_file(model_file):
        from ..tokenizers.sentencepiece_llama import LlamaTokenizer

        return LlamaTokenizer.from_pretrained(folder.path, local_files_only=True)
    return AutoTokenizer.from_pretrained(
        folder.path, local_files_only=True, trust_remote_code=False
    )


def _choose_device(wanted: str) -> str:
    import torch

    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[wanted]:
        raise UsageError(
            tr("--device {wanted} is not there", wanted=wanted),
            expected=", ".join(name for name, is_there in there.items() if is_there),
            found=wanted,
            remedy=tr("leave --device out"),
        )
    return wanted
