"""Chinese text of any size: words drawn by their frequency, the same lines on every run.

The words are those of a list with lines such as ``中国 39000 ns``, as jieba's ``dict.txt`` is.

    python -m benchmarks.chinese_text dict.txt corpus.txt --size 100MB
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from merge.sizes import parse_size

_LINES_AT_ONCE = 1000


def draw_lines(words: list[str], frequencies: list[int], seed: int) -> Iterator[str]:
    """Yield lines without end, each of 5 to 60 words without spaces between them."""
    generator = random.Random(seed)
    while True:
        lengths = [generator.randint(5, 60) for _ in range(_LINES_AT_ONCE)]
        drawn = iter(generator.choices(words, frequencies, k=sum(lengths)))
        for length in lengths:
            yield "".join(next(drawn) for _ in range(length)) + "\n"


def write_text(word_list: Path, file: Path, size: int, seed: int) -> None:
    """Write lines until ``file`` has ``size`` bytes in UTF-8 or more."""
    entries = [line.split(" ") for line in word_list.read_text(encoding="utf-8").splitlines()]
    frequencies = [int(entry[1]) for entry in entries]
    written = 0
    with file.open("wb") as stream:
        for line in draw_lines([entry[0] for entry in entries], frequencies, seed):
            written += stream.write(line.encode())
            if written >= size:
                return


def main() -> int:
    """Write one file of text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("word_list", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--size", type=parse_size, default="100MB")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_text(args.word_list, args.file, args.size, args.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
