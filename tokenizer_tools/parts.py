"""Which part of a mixed text a line belongs to, by its characters alone."""

from __future__ import annotations

import re

CHINESE, ENGLISH, CODE, OTHER = "chinese", "english", "code", "other"
PARTS = (CHINESE, ENGLISH, CODE, OTHER)

_HAN = re.compile(r"[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_CODE_MARKS = re.compile(r"[{}()\[\];=<>_/\\|&*#$@+^~`\"]")
_LETTER = re.compile(r"[A-Za-z]")

CODE_SHARE = 0.1
INDENTS = ("\t", "    ")
CHINESE_SHARE = 0.3
ENGLISH_SHARE = 0.5


def han(text: str) -> list[str]:
    """Return the Han characters of ``text``."""
    return _HAN.findall(text)


def part(line: str) -> str:
    """Return ``chinese``, ``english``, ``code`` or ``other``.

    Of the characters that are no space: 30 % Han make a line Chinese, 10 % brackets, operators
    and quotes make one code, as does an indent, 50 % ASCII letters English, in this order. A line
    of code that is mostly a Chinese comment counts as Chinese.

    >>> [part(line) for line in ("今天下雨。", "It rained.", "x = [1, 2]", "№ 1234")]
    ['chinese', 'english', 'code', 'other']
    """
    size = sum(not character.isspace() for character in line)
    if not size:
        return OTHER
    if len(_HAN.findall(line)) >= CHINESE_SHARE * size:
        return CHINESE
    if line.startswith(INDENTS) or len(_CODE_MARKS.findall(line)) >= CODE_SHARE * size:
        return CODE
    return ENGLISH if len(_LETTER.findall(line)) >= ENGLISH_SHARE * size else OTHER
