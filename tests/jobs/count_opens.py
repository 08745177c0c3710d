"""Merge with arguments given as JSON; print how often each file was opened, each folder listed.

A path of a folder that was listed ends in a separator; without one the folder was opened to make it
durable.

Python's audit events see every way in: ``open``, ``os.open``, ``pathlib``, ``glob``.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter

from merge import merge_lora

counts: Counter[str] = Counter()


def count(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir"):
        path = arguments[0]
        if isinstance(path, (str, bytes, os.PathLike)):
            listed = os.sep if event != "open" else ""
            counts[os.path.realpath(os.fsdecode(path)) + listed] += 1


if __name__ == "__main__":
    keywords = json.loads(sys.argv[1])
    merge_lora.__doc__  # noqa: B018  # resolved, and so imported, before counting begins
    sys.addaudithook(count)
    merge_lora(**keywords)
    print(json.dumps(counts))
