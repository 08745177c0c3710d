"""Draw the packages of the program from their imports, into docs/architecture.md."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "architecture.md"
_BEGIN, _END = "<!-- {} -->", "<!-- end -->"

# From the top to the bottom: a package imports only from those below it.
PACKAGES = {
    "commands": "the command line: options, exit codes, signals, progress bars",
    "webui": "the page in a browser: form, merges in child processes, what is reachable over HTTP",
    "jobs": "one module per job: from the names that the user gives to the files written",
    "tokenizer_tools": "vocabularies: extend, train, compare; built on `merge`, in which only "
    "`commands` imports it",
    "inference": "answers of a model on disk: templates, transformers, llama.cpp",
    "reports": "the text of a merge's summary, and the report: numbers, findings, drawings, page",
    "verification": "checks a result against manifest, inputs and a float64 reference; shares no "
    "arithmetic with `deltas`",
    "engines": "run a plan: threads, spans of rows, one output stream per file; tasks of a Ray "
    "cluster",
    "output": "the output folder: preflight, journal, resume, fingerprint, manifest, commit",
    "plan": "finds inputs, checks vocabulary and configuration files, assigns tensors to output "
    "files",
    "deltas": "what is added to a base: adapters, dense deltas, new vocabulary rows",
    "peft_layers": "PEFT's layers on a model without weights: what PEFT makes of one module",
    "layouts": "models in files: Hugging Face's layout, Meta's, GGUF; one table of tensor names",
    "tokenizers": "reads and checks tokenizer folders, and writes the merged model's",
    "formats": "containers of tensors: torch, safetensors, GGUF; reader and writer of each",
    "checksums": "SHA-256 of files; published checksums, and the order of published adapters",
    "tensors": "`LazyTensor` and its wrappers: patches, digests, the check for NaN and Inf",
    "storage": "files, O_DIRECT, locks, zip archives, temporary space for unpacked inputs",
    "untrusted": "parses untrusted input in bounded time and memory: JSON, YAML, regular "
    "expressions, zip, value types",
    "merge": "modules that every package may use: errors, options, settings, sizes, interruption, "
    "version",
}


@cache
def find_modules() -> dict[str, Path]:
    """Every module of the product by its dotted name; packages by their own."""
    found = {}
    for top in ("merge", "tokenizer_tools"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def get_package(module: str) -> str:
    """The package that a module belongs to.

    >>> modules = ("merge.layouts.gguf.output", "merge.errors", "tokenizer_tools")
    >>> [get_package(module) for module in modules]
    ['layouts', 'merge', 'tokenizer_tools']
    """
    top, _, rest = module.partition(".")
    if top != "merge":
        return top
    first = rest.partition(".")[0]
    return first if first and (ROOT / "merge" / first).is_dir() else "merge"


def find_imports() -> Iterator[tuple[str, str, int]]:
    """Importing module, imported module, and the line."""
    for name, path in find_modules().items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                nested = f"{base}.{alias.name}"
                target = nested if nested in find_modules() else base
                if target in find_modules():
                    yield name, target, node.lineno


def find_dependencies() -> set[tuple[str, str]]:
    """Which package imports from which."""
    # The package itself names its public functions, wherever they are.
    imports = [(one, other) for one, other, _ in find_imports() if one != "merge"]
    pairs = {(get_package(one), get_package(other)) for one, other in imports}
    return {(one, other) for one, other in pairs if one != other}


def remove_transitive(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that no way over other packages replaces."""

    @cache
    def reach(package: str) -> frozenset[str]:
        below = {other for one, other in pairs if one == package}
        return frozenset(below).union(*(reach(other) for other in below))

    return {
        (one, other)
        for one, other in pairs
        if not any(other in reach(step) for first, step in pairs if first == one and step != other)
    }


def build_tables() -> dict[str, str]:
    """The generated parts of the document, by the name of their place."""
    counts = Counter(get_package(module) for module in find_modules())
    shown = sorted(remove_transitive(find_dependencies()))
    lines = ["```mermaid", "flowchart TD", *(f"    {one} --> {other}" for one, other in shown)]
    rows = ["| package | what it is | modules |", "| :-- | :-- | --: |"]
    rows += [f"| `{package}` | {what} | {counts[package]} |" for package, what in PACKAGES.items()]
    return {"drawing": "\n".join([*lines, "```"]), "packages": "\n".join(rows)}


def insert_tables(document: str) -> str:
    """The document with the generated parts in their places."""
    for name, content in build_tables().items():
        begin = _BEGIN.format(name)
        before, rest = document.split(begin)
        document = f"{before}{begin}\n\n{content}\n\n{_END}{rest.split(_END, 1)[1]}"
    return document


if __name__ == "__main__":
    DOCUMENT.write_text(insert_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
