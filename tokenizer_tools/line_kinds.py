"""Which part of a mixed text a line belongs to, by its characters alone."""

from __future__ import annotations

import re

_CHINESE, _ENGLISH, _CODE, _OTHER = "chinese", "english", "code", "other"
LINE_KINDS = (_CHINESE, _ENGLISH, _CODE, _OTHER)

_HAN = re.compile(r"[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_CODE_MARKS = re.compile(r"[{}()\[\];=<>_/\\|&*#$@+^~`\"]")
_LETTER = re.compile(r"[A-Za-z]")

_CODE_SHARE = 0.1
_INDENTS = ("\t", "    ")
_CHINESE_SHARE = 0.3
_ENGLISH_SHARE = 0.5


def find_han(text: str) -> list[str]:
    """Return the Han characters of ``text``."""
    return _HAN.findall(text)


def classify_line(line: str) -> str:
    """Return ``chinese``, ``english``, ``code`` or ``other``.

    Of the characters that are no space: 30 % Han make a line Chinese, 10 % brackets, operators
    and quotes make one code, as does an indent, 50 % ASCII letters English, in this order. A line
    of code that is mostly a Chinese comment counts as Chinese.

    >>> [classify_line(line) for line in ("今天下雨。", "It rained.", "x = [1, 2]", "№ 1234")]
    ['chinese', 'english', 'code', 'other']
    """
    size = sum(not character.isspace() for character in line)
    if not size:
        return _OTHER
    if len(_HAN.findall(line)) >= _CHINESE_SHARE * size:
        return _CHINESE
    if line.startswith(_INDENTS) or len(_CODE_MARKS.findall(line)) >= _CODE_SHARE * size:
        return _CODE
    return _ENGLISH if len(_LETTER.findall(line)) >= _ENGLISH_SHARE * size else _OTHER
