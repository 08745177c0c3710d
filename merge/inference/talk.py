"""A talk with a model: which template, which earlier turns, and the answer in pieces."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field

from ..errors import UsageError
from ..messages import tr
from ..tokenizers.chat_formats import FORMATS, ChatFormat
from .chat_model import ChatModel, Message
from .settings import AUTO, OWN, PLAIN, ChatSettings
from .text_pieces import stop_at

# Vocabularies that only models of one kind have: Chinese-Alpaca's, with a token for padding beyond
# Chinese-LLaMA's, and that of Chinese-LLaMA-2 and Chinese-Alpaca-2.
_KNOWN_SIZES = {49954: "alpaca", 55296: "alpaca2"}


@dataclass(frozen=True)
class Prompting:
    """How questions are put: a name for people, and what is known of that format.

    Without a ``template`` the text is continued as it is.
    """

    name: str
    template: str | None
    format: ChatFormat | None

    @property
    def stops(self) -> tuple[str, ...]:
        """Words at which an answer ends."""
        return tuple(self.format.stops) if self.format else ()


def choose_prompting(model: ChatModel, settings: ChatSettings) -> Prompting:
    """Find the template for a model.

    Raises ``UsageError`` where the model says nothing of it and none is named, and for a template
    whose tokens the vocabulary lacks.
    """
    name = settings.template
    if name == AUTO:
        name = OWN if model.template else _guess(model)
    if name == PLAIN:
        return Prompting(PLAIN, None, None)
    if name == OWN:
        if not model.template:
            raise UsageError(
                tr("the model has no chat template of its own"),
                file=model.path,
                remedy=tr("name one: --template ") + ", ".join(FORMATS) + tr(", or none"),
            )
        return Prompting(tr("the model's own"), model.template, None)
    known = FORMATS[name]
    missing = [token for token in known.tokens if not model.has_token(token)]
    if missing:
        raise UsageError(
            tr("--template {name} is for models of another tokenizer", name=name),
            file=model.path,
            expected=tr("a tokenizer with {tokens}", tokens=", ".join(known.tokens)),
            found=tr("no {missing}", missing=missing[0]),
            remedy=tr("give the format that the model was trained with"),
        )
    return Prompting(name, known.template, known)


def _guess(model: ChatModel) -> str:
    for name, known in FORMATS.items():
        if known.tokens and all(model.has_token(token) for token in known.tokens):
            return name
    if model.n_tokens in _KNOWN_SIZES:
        return _KNOWN_SIZES[model.n_tokens]
    raise UsageError(
        tr("the model does not say how it is talked to"),
        file=model.path,
        expected=tr("a chat template, or the vocabulary of Chinese-Alpaca or Llama 3"),
        found=tr("{n_tokens} tokens, and no template", n_tokens=model.n_tokens),
        remedy=tr("name it: --template ") + ", ".join(FORMATS) + tr(", or none to continue a text"),
    )


@dataclass
class Talk:
    """Turns so far; the next question is asked with all of them that the context has room for."""

    prompting: Prompting
    settings: ChatSettings
    turns: list[Message] = field(default_factory=list)

    def ask(self, model: ChatModel, question: str) -> Generator[str, None, None]:
        """Yield the answer in pieces; closing the iterator ends it, and what was said then counts.

        Raises ``UsageError`` for a question that is longer than the context.
        """
        ids = self._encode(model, question)
        said = ""
        try:
            with closing(model.generate(ids, self.settings, self.prompting.stops)) as pieces:
                for piece in stop_at(pieces, self.prompting.stops):
                    said += piece
                    yield piece
        finally:
            self.turns += [_message("user", question), _message("assistant", said.strip())]

    def forget(self) -> None:
        """Begin anew."""
        self.turns.clear()

    def _encode(self, model: ChatModel, question: str) -> list[int]:
        """Ids of the prompt; the oldest turns are left out until it fits."""
        most = min(self.settings.context, model.context_length)
        room = most - min(self.settings.max_tokens, most // 2)
        while True:
            ids = model.encode(self._render(model, question))
            if len(ids) <= room:
                return ids
            if not self.turns:
                raise UsageError(
                    tr("the question is longer than the model's context"),
                    expected=tr(
                        "at most {room} tokens, which leaves room for an answer", room=room
                    ),
                    found=tr("{n_ids} tokens", n_ids=len(ids)),
                    remedy=tr("ask in fewer words, or lower --max_tokens"),
                )
            del self.turns[:2]

    def _render(self, model: ChatModel, question: str) -> str:
        if self.prompting.template is None:
            self.turns.clear()
            return question
        system = self.settings.system
        if system is None and self.prompting.format:
            system = self.prompting.format.system
        head = [_message("system", system)] if system else []
        return model.render(
            self.prompting.template, [*head, *self.turns, _message("user", question)]
        )


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
