"""Builds the package and installs it into an empty environment with and without each extra.

``make package`` runs it: minutes for each extra, because each environment is filled anew. In each
one pip finds no conflict, every command starts, a tiny model is merged, and GGUF output is either
written or refused with the extra that is missing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

from tests.kit.inputs import Inputs, make_inputs
from tests.kit.run import ROOT
from tests.packaging.built import PROJECT, Environment, build, copy_sources, make_environment

_EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
_LOADED = """
import sys
from importlib import import_module
from importlib.metadata import distribution, packages_distributions
modules = {}
for module, owners in packages_distributions().items():
    for owner in owners:
        modules.setdefault(owner.lower().replace("_", "-"), []).append(module)
for name in sys.argv[1:]:
    distribution(name)
    found = [m for m in modules.get(name.lower().replace("_", "-"), []) if m.isidentifier()]
    if found and not name.startswith("types-"):
        import_module(found[0])
"""


def list_requirements(extra: str) -> list[str]:
    """The distributions that an extra names for this interpreter, with those of extras in it."""
    names: list[str] = []
    for text in _EXTRAS[extra]:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        if wanted.name == PROJECT["name"]:
            names += [name for inner in sorted(wanted.extras) for name in list_requirements(inner)]
        else:
            names.append(wanted.name)
    return names


def require(done: subprocess.CompletedProcess[str], code: int = 0, said: str = "") -> None:
    """Raise ``AssertionError`` if a command ended with another exit code or without these words."""
    output = done.stdout + done.stderr
    assert done.returncode == code, f"{done.args}: {done.returncode}\n{output}"
    assert said in output, f"{done.args} did not say {said!r}\n{output}"


def check_environment(made: Environment, inputs: Inputs, names: Sequence[str]) -> None:
    """Check an environment into which the wheel was installed with the distributions ``names``."""
    made.install("pip")
    require(made.run("python", "-m", "pip", "check"))
    require(made.run("python", "-c", _LOADED, *names))
    for command in PROJECT["scripts"]:
        require(made.run(command, "--help"))
    words = ("--base_model", inputs.base, "--lora_model", f"{inputs.llama},{inputs.alpaca}")
    outputs = made.folder / "outputs"
    require(made.run("chinese-llama-merge-to-hf", *words, "--output_dir", outputs / "hf"))
    gguf = (*words, "--output_type", "gguf", "--output_dir", outputs / "gguf")
    merged = made.run("chinese-llama-merge", *gguf)
    if "gguf" in names:
        require(merged)
    else:
        require(merged, 2, "pip install 'chinese-llama-merge[gguf]'")


def check_files(files: Sequence[Path], folder: Path) -> None:
    """Have the package index's own checker read the files, and the format's CITATION.cff."""
    tools = make_environment(folder / "tools")
    tools.install("twine", "cffconvert")
    require(tools.run("twine", "check", "--strict", *files))
    require(tools.run("cffconvert", "--validate", "-i", ROOT / "CITATION.cff"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help="these only; none: '-'")
    chosen = parser.parse_args().extras or ["-", *_EXTRAS]
    constraints = ("--constraint", str(ROOT / "constraints.txt"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = build(copy_sources(folder / "sources"), folder / "dist")
        check_files(files, folder)
        print("built and checked:", *(path.name for path in files), flush=True)
        inputs = make_inputs(folder)
        for extra in chosen:
            start = time.monotonic()
            made = make_environment(folder / "environment")
            wanted = f"{files[1]}[{extra}]" if extra != "-" else str(files[1])
            made.install(*constraints, wanted)
            check_environment(made, inputs, list_requirements(extra) if extra != "-" else [])
            print(f"{extra}: {time.monotonic() - start:.0f} s", flush=True)
            shutil.rmtree(made.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
