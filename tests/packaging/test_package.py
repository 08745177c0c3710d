"""The package that is built holds what it needs, and works where nothing else of the tree is."""

from __future__ import annotations

import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.kit.inputs import make_inputs
from tests.kit.run import ROOT
from tests.packaging.built import PROJECT, Environment, build, copy_sources, make_environment

pytestmark = pytest.mark.slow
PACKAGES = ("merge", "tokenizer_tools")
# The sources of translations, which are compiled, and what Python leaves.
_LEFT_OUT = {".po", ".pyc"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution and the wheel."""
    folder = tmp_path_factory.mktemp("package")
    return build(copy_sources(folder / "sources"), folder / "dist")


@pytest.fixture(scope="module")
def sdist(built: tuple[Path, Path]) -> set[str]:
    """The files of the source distribution, below its one folder."""
    with tarfile.open(built[0]) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> zipfile.ZipFile:
    """The wheel, open."""
    return zipfile.ZipFile(built[1])


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel in an environment beside the packages that it needs."""
    libraries = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    made = make_environment(tmp_path_factory.mktemp("environment"), sorted(libraries))
    # An editable installation lies among those packages and would be taken for it.
    made.install("--ignore-installed", "--no-deps", "--no-index", built[1])
    return made


def expected_files() -> set[str]:
    """Every module of the packages, and their data: translations, templates, markers of types."""
    return {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in _LEFT_OUT
    }


def test_wheel_holds_every_file_of_the_packages_and_no_other(wheel: zipfile.ZipFile) -> None:
    """A package that the build does not find would be missing only where it is installed."""
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    shared = {name for name in names if ".data/" in name}
    assert names - shared == expected_files()
    assert [name.partition(".data/")[2] for name in shared] == [
        "data/share/chinese-llama-merge/SHA256.md"
    ]


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {(ROOT / name).parent for name in expected_files() if name.endswith(".py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_wheel_holds_the_compiled_translations(wheel: zipfile.ZipFile) -> None:
    assert "merge/locale/zh_CN/LC_MESSAGES/chinese_llama_merge.mo" in wheel.namelist()


def test_source_distribution_holds_what_the_wheel_is_built_from(sdist: set[str]) -> None:
    needed = {"pyproject.toml", "README.md", "LICENSE", "SHA256.md", "CITATION.cff"}
    assert expected_files() | needed <= sdist
    assert not {name for name in sdist if name.startswith("tests/")}


def test_metadata_are_those_of_the_project(wheel: zipfile.ZipFile) -> None:
    info = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(wheel.read(info))
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        name.replace("_", "-") for name in PROJECT["optional-dependencies"]
    }
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_every_command_starts_where_it_is_installed(installed: Environment) -> None:
    """In one process: each entry point is loaded from the wheel and prints its help."""
    program = """
import contextlib, importlib, io, sys
from importlib.metadata import entry_points
import merge
assert sys.prefix in merge.__file__, merge.__file__
for point in entry_points(group="console_scripts"):
    if point.dist.name != "chinese-llama-merge":
        continue
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            code = point.load()(["--help"])
        except SystemExit as stop:
            code = stop.code
    print(point.name, code, "--help" in out.getvalue())
"""
    done = installed.run("python", "-c", program)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(
        f"{name} 0 True" for name in PROJECT["scripts"]
    )


def test_a_merge_works_where_it_is_installed(installed: Environment, tmp_path: Path) -> None:
    made = make_inputs(tmp_path)
    words = ("--base_model", made.base, "--lora_model", f"{made.llama},{made.alpaca}")
    done = installed.run("chinese-llama-merge-to-hf", *words, "--output_dir", made.out, "--verify")
    assert done.returncode == 0, done.stderr
    assert (made.out / "merge_manifest.json").is_file()


def test_published_checksums_are_found_where_it_is_installed(installed: Environment) -> None:
    done = installed.run(
        "python", "-c", "from merge.checksums.known_files import *; print(len(load_known_files()))"
    )
    assert int(done.stdout) > 50, done.stderr


def test_published_checksums_are_found_in_a_folder_of_packages(
    built: tuple[Path, Path], installed: Environment, tmp_path: Path
) -> None:
    """``pip install --target``, where ``sys.prefix`` is another environment's."""
    target = tmp_path / "packages"
    installed.install("--ignore-installed", "--no-deps", "--no-index", "--target", target, built[1])
    program = (
        "import merge; from merge.checksums.known_files import *;"
        "print(len(load_known_files()), merge.__file__)"
    )
    done = installed.run("python", "-c", program, PYTHONPATH=str(target))
    count, _, place = done.stdout.partition(" ")
    assert int(count) > 50, done.stderr
    assert place.startswith(str(target))


def test_translations_are_found_where_it_is_installed(installed: Environment) -> None:
    done = installed.run(
        "python", "-c", "from merge.messages import *; print(load_catalogue('zh').info())"
    )
    assert "charset=utf-8" in done.stdout.lower(), done.stderr


def test_commands_of_the_metadata_are_those_of_pyproject(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    parser = ConfigParser()
    parser.read_string(wheel.read(name).decode())
    assert dict(parser["console_scripts"]) == PROJECT["scripts"]
