"""Ten lines of text, and how the tokenizers before and after a merge cut them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..tokenizers.file_names import TOKENIZER_JSON_NAME
from ..tokenizers.opaque_tokenizer import OpaqueTokenizer, Tokenizer
from ..tokenizers.sentencepiece_model import load_processor
from ..tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

LINES = (
    "今天的天气很好，我们下午去公园散步吧。",
    "人工智能正在改变许多行业的工作方式。",
    "请用三句话说明什么是机器学习，并举一个例子。",
    "这份合同自双方签字之日起生效，有效期为两年。",
    "患者主诉头痛三天，伴有轻微发热，无咳嗽。",
    "春天来了，河边的柳树发出了新芽，燕子也飞回来了。",
    "我在Python里写了一个函数，用来计算两个向量的夹角。",
    "第3季度营收为1,250万元，同比增长18.6%。",
    "The quick way to check a tokenizer is to look at what it does.",
    "for i in range(10): print(i * i)",
)
"""Written for this purpose: everyday, technical, legal and medical Chinese, mixed text, English and
code."""

Cut = Callable[[str], list[str]]


def describe_samples(before: Tokenizer | None, after: Tokenizer) -> dict[str, Any]:
    """Each line with the pieces it is cut into, and characters per token over all lines.

    What cannot be told is null: without a base's tokenizer, and for kinds that nothing here cuts.
    """
    cut_before, cut_after = find_cutter(before), find_cutter(after)
    samples = [
        {
            "text": line,
            "before": cut_before(line) if cut_before else None,
            "after": cut_after(line) if cut_after else None,
        }
        for line in LINES
    ]
    return {
        "lines": samples,
        "characters_per_token": {
            "before": _measure([sample["before"] for sample in samples]),
            "after": _measure([sample["after"] for sample in samples]),
        },
    }


def _measure(cuts: Sequence[Any]) -> float | None:
    if None in cuts:
        return None
    return sum(map(len, LINES)) / max(1, sum(map(len, cuts)))


def find_cutter(tokenizer: Tokenizer | None) -> Cut | None:
    """A function that cuts text into pieces as they are spelled, None where there is none."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        processor = load_processor(tokenizer.vocabulary)
        return lambda text: [str(piece) for piece in processor.encode(text, out_type=str)]
    if isinstance(tokenizer, OpaqueTokenizer) and TOKENIZER_JSON_NAME in tokenizer.contents:
        return _make_fast_cutter(tokenizer.contents[TOKENIZER_JSON_NAME])
    return None


def _make_fast_cutter(content: bytes) -> Cut | None:
    """The same with Hugging Face's tokenizers, where it is installed and takes the file."""
    try:
        from tokenizers import Tokenizer as FastTokenizer
    except ImportError:
        return None
    try:
        fast = FastTokenizer.from_str(content.decode("utf-8"))
    except Exception:  # noqa: BLE001 (it raises nothing more special)
        return None

    def cut(text: str) -> list[str]:
        found = fast.encode(text, add_special_tokens=False)
        return [text[start:stop] for start, stop in found.offsets]

    return cut
