"""Runs llama.cpp's ``convert_hf_to_gguf.py`` several times in one process.

    python llama_cpp_converter.py FOLDER_OF_LLAMA_CPP '[["MODEL", "--outfile", "FILE"], ...]'

Its imports take much longer than a tiny model does.
"""

from __future__ import annotations

import json
import sys


def main(folder: str, jobs: str) -> None:
    """Call the converter's own ``main`` with each list of arguments."""
    sys.path.insert(0, folder)
    from convert_hf_to_gguf import main as convert  # type: ignore[import-not-found]

    for arguments in json.loads(jobs):
        sys.argv = ["convert_hf_to_gguf.py", *arguments]
        convert()


if __name__ == "__main__":
    main(*sys.argv[1:])
