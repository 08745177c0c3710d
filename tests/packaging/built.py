"""Builds the package from what git tracks, and installs it into environments of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kit.run import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:  # the reader of TOML that mypy brings on 3.10
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_NAMES = ("merge", "tokenizer_tools", "scripts", "tests/packaging")
_FILES = (
    *("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "SHA256.md", "CITATION.cff"),
    *("CHANGELOG.md", "constraints.txt"),
)

_PLAIN = {"PYTHONUTF8": "1", "LANGUAGE": "", "LC_ALL": "C.UTF-8"}


def copy_sources(folder: Path) -> Path:
    """Copy what a build could take, without caches and earlier builds, and return the copy."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in _NAMES:
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in _FILES:
        shutil.copy(ROOT / name, folder)
    return folder


def build(sources: Path, output: Path) -> tuple[Path, Path]:
    """Build a source distribution, and from it the wheel; returns both.

    The setuptools of this environment is used, so nothing is downloaded.
    """
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1800000000"}
    done = subprocess.run(
        [*words, str(sources)], capture_output=True, encoding="utf-8", env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(output.glob("*.tar.gz")), next(output.glob("*.whl"))


def _without_checkout() -> dict[str, str]:
    """The variables of this process without those that bring other packages into another one."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    folder: Path

    @property
    def scripts(self) -> Path:
        """The folder of its commands."""
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.scripts / ("python.exe" if os.name == "nt" else "python")

    def run(self, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run one of its commands in an empty folder, so that no checkout is beside it."""
        command = shutil.which(str(words[0]), path=str(self.scripts))
        assert command is not None, words[0]
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        return subprocess.run(
            [command, *map(str, words[1:])],
            capture_output=True,
            encoding="utf-8",
            cwd=empty,
            env={
                **_without_checkout(),
                "PYTHONUTF8": "1",
                "LANGUAGE": "",
                "LC_ALL": "C.UTF-8",
                **variables,
            },
        )

    def install(self, *words: object) -> None:
        """Install packages with the pip of the interpreter that runs this."""
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
        done = subprocess.run(
            [*pip, str(self.python), "install", "-q", "--no-compile", *map(str, words)],
            capture_output=True,
            encoding="utf-8",
            env=_without_checkout(),
        )
        assert done.returncode == 0, done.stdout + done.stderr


def make_environment(folder: Path, also: Sequence[Path] = ()) -> Environment:
    """Make an empty virtual environment; packages in the folders ``also`` can be imported in it."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    made = Environment(folder)
    if also:
        done = made.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        lines = "\n".join(map(str, also))
        (Path(done.stdout.strip()) / "also.pth").write_text(f"{lines}\n", encoding="utf-8")
    return made
