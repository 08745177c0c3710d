"""Install llama.cpp for tests and the demo, and unpack its converters, which tests compare with.

llama-cpp-python comes as source: it is compiled once, and pip keeps the wheel. The same package
carries llama.cpp's converters. Run by the Makefile; needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import BinaryIO

PACKAGE = "llama-cpp-python"
ROOT = Path(__file__).resolve().parents[2]
# Tuned to this machine, llama.cpp dies on some virtual processors when a model is quantised. What
# is left out (images, what the command line tools share) is more than half of all compiling.
ONLY = Path(__file__).with_name("llama_cpp_only.cmake")
BUILD = (
    "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON "
    f"-DLLAVA_BUILD=OFF {shlex.quote(f'-DCMAKE_PROJECT_llama.cpp_INCLUDE={ONLY.as_posix()}')}"
)
CONVERTERS = (
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "conversion",
    "examples/convert_legacy_llama.py",
    "gguf-py/gguf",
)


def main() -> int:
    """Return 0 when all is there, 1 when something could not be had; a log then says why."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the converters go")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    log = args.folder / "install.log"
    started = time.monotonic()
    print("llama.cpp: the first time it is compiled, which takes some minutes", flush=True)
    try:
        with log.open("wb") as sink:
            _unpack(args.folder, sink)
            _pip(sink, "install", "--no-compile")
    except subprocess.CalledProcessError as error:
        doing = "fetch" if "download" in error.cmd else "compile"
        print(f"llama.cpp: pip could not {doing} it; {log} says why", file=sys.stderr)
        return 1
    print(f"llama.cpp: installed in {time.monotonic() - started:.0f} s", flush=True)
    return 0


def _unpack(folder: Path, log: BinaryIO) -> None:
    with tempfile.TemporaryDirectory() as place:
        _pip(log, "download", "--no-deps", "--no-binary", PACKAGE, "--dest", place)
        with tarfile.open(next(Path(place).iterdir())) as archive:
            for member in archive:
                target = _target(member.name)
                if member.isfile() and target is not None:
                    _write(archive, member, folder / target)


def _target(name: str) -> PurePosixPath | None:
    """Where a file of the package goes, None if it is not wanted."""
    inside = PurePosixPath(*PurePosixPath(name).parts[3:])  # without NAME/vendor/llama.cpp
    wanted = any(inside.is_relative_to(path) for path in CONVERTERS)
    return inside if wanted and inside.suffix == ".py" else None


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = archive.extractfile(member)
    assert content is not None  # it is a file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.read())


def _pip(log: BinaryIO, *words: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    constraint = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run(
        [*pip, *words, *constraint, PACKAGE],
        env={"CMAKE_ARGS": BUILD, **os.environ},
        stdout=log,
        stderr=subprocess.STDOUT,
        check=True,
    )


if __name__ == "__main__":
    sys.exit(main())
