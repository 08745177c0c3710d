"""The options of an answer, as fields of a dataclass.

Defaults are those of ``inference_hf.py`` in Chinese-LLaMA-Alpaca-2 and -3. Chinese-LLaMA-Alpaca has
1.3 as the penalty of repetition, and the same otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..messages import tr
from ..option_checks import COUNT, require_finite, require_integer
from ..options import ANSWERS, check_values, option
from ..tokenizers.chat_formats import FORMATS

AUTO, OWN, PLAIN = "auto", "own", "none"
TEMPLATES = (AUTO, OWN, *FORMATS, PLAIN)
DEVICES = ("auto", "cpu", "cuda", "mps")
_MOST_SEED = (1 << 32) - 1


def _require_temperature(name: str, value: Any) -> None:
    require_finite(name, value)
    if value < 0:
        raise UsageError(
            tr("--{name} must not be negative", name=name), expected=tr("0 or more"), found=value
        )


def _require_share(name: str, value: Any) -> None:
    require_finite(name, value)
    if not 0 < value <= 1:
        raise UsageError(
            tr("--{name} is out of range", name=name),
            expected=tr("above 0, at most 1"),
            found=value,
        )


def _require_penalty(name: str, value: Any) -> None:
    require_finite(name, value)
    if value <= 0:
        raise UsageError(
            tr("--{name} must be positive", name=name), expected=tr("1 for no penalty"), found=value
        )


def _require_top_k(name: str, value: Any) -> None:
    if require_integer(name, value) < 0:
        raise UsageError(
            tr("--{name} must not be negative", name=name), expected=tr("0 for all"), found=value
        )


def _require_seed(name: str, value: Any) -> None:
    if not 0 <= require_integer(name, value) <= _MOST_SEED:
        raise UsageError(
            tr("--{name} is out of range", name=name),
            expected=tr("0 to {most_seed}", most_seed=_MOST_SEED),
            found=value,
        )


@dataclass(frozen=True)
class ChatSettings:
    """How a model is asked, and how its next tokens are drawn.

    Raises ``UsageError`` for values that mean nothing.
    """

    template: str = option(
        AUTO,
        ANSWERS,
        tr(
            "how a question is put; own: the tokenizer's chat template; none: "
            "the text is continued as it is; auto: the tokenizer's own, else "
            "what the vocabulary is known for"
        ),
        choices=TEMPLATES,
    )
    system: str | None = option(
        None, ANSWERS, tr("system prompt"), default_text=tr("that of the template"), metavar="TEXT"
    )
    temperature: float = option(
        0.2,
        ANSWERS,
        tr("0 always takes the likeliest token"),
        check=_require_temperature,
        type=float,
        metavar="T",
    )
    top_k: int = option(
        40,
        ANSWERS,
        tr("draw from the K likeliest tokens; 0: from all"),
        check=_require_top_k,
        type=int,
        metavar="K",
    )
    top_p: float = option(
        0.9,
        ANSWERS,
        tr("draw from the likeliest tokens that have this probability together"),
        check=_require_share,
        type=float,
        metavar="P",
    )
    repetition_penalty: float = option(
        1.1,
        ANSWERS,
        tr("by which the scores of tokens are divided that were there before"),
        check=_require_penalty,
        type=float,
        metavar="X",
    )
    max_tokens: int = option(400, ANSWERS, tr("most tokens of an answer"), **COUNT)
    seed: int | None = option(
        None,
        ANSWERS,
        tr("with which the same answer is drawn again"),
        default_text=tr("another one each time"),
        check=_require_seed,
        type=int,
        metavar="N",
    )
    context: int = option(
        4096, ANSWERS, tr("most tokens of question, earlier turns and answer together"), **COUNT
    )
    device: str = option(
        "auto", ANSWERS, tr("where it is computed; auto: on a GPU if there is one"), choices=DEVICES
    )

    def __post_init__(self) -> None:
        check_values(self)
