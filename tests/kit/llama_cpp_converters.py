"""Runs llama.cpp's converters on many folders in one process; started by tests with jobs on stdin.

Arguments: the folder of the converters. Standard input: a JSON list of
``[converter, folder, "--outfile", path, *options]``. Standard output, last line: a JSON list of
``{"error": text or null, "warnings": [text]}``.
"""

from __future__ import annotations

import importlib
import json
import logging
import runpy
import sys
from pathlib import Path

# Those that have no function to call.
_SCRIPTS = ("convert_lora_to_gguf",)


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> None:
    converters = Path(sys.argv[1])
    sys.path[1:1] = [str(converters), str(converters / "examples")]
    kept = _Kept()
    logging.getLogger().addHandler(kept)
    results = []
    for name, *arguments in json.load(sys.stdin):
        kept.lines = []
        sys.argv = [name, *arguments]
        error = None
        try:
            if name in _SCRIPTS:
                runpy.run_path(str(converters / f"{name}.py"), run_name="__main__")
            else:
                importlib.import_module(name).main()
        except (Exception, SystemExit) as raised:  # noqa: BLE001 - whatever it stops with
            error = f"{type(raised).__name__}: {raised}"
        results.append({"error": error, "warnings": kept.lines})
    print()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
