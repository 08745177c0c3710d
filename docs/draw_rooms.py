"""Draw the packages of the program from their imports, into docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "architecture.md"
_BEGIN, _END = "<!-- {} -->", "<!-- end -->"

# From the top to the bottom: a package imports only from those below it.
ROOMS = {
    "commands": "the terminal: options, exit codes, signals, progress",
    "jobs": "one file a job: from what the user named to what is written",
    "tokenizer_tools": "the workshop for vocabularies: extend, train, compare; on top of `merge`, "
    "which only its commands import",
    "reports": "words for what a merge did",
    "verification": "a result against manifest, inputs and float64; its arithmetic shares nothing "
    "with `deltas`",
    "engines": "run a plan: threads, spans of rows, one stream a file",
    "output": "the output folder: preflight, journal, resume, fingerprint, manifest, commit",
    "plan": "inputs found, vocabulary and documents checked, every tensor placed",
    "deltas": "what is added: adapters, dense deltas, new rows",
    "layouts": "what a folder of files means: Hugging Face's, Meta's, GGUF; one table of names",
    "tokenizers": "tokenizer folders read, checked, and written for a merged model",
    "formats": "bytes of containers: torch, safetensors, GGUF; reader and writer side by side",
    "checksums": "SHA-256 of files, and the published ones with their order",
    "tensors": "`LazyTensor` and what is put around one: patches, digests, a look for NaN and Inf",
    "storage": "bytes at rest: files, O_DIRECT, locks, zip folders, room for unpacked inputs",
    "untrusted": "strangers' bytes in bounded time: JSON, patterns, zip, kinds of values",
    "merge": "what every package may use: errors, settings, sizes, the flag of a signal, version",
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name; packages by their own."""
    found = {}
    for top in ("merge", "tokenizer_tools"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """The package that a module belongs to.

    >>> room_of("merge.layouts.gguf.output"), room_of("merge.errors"), room_of("tokenizer_tools")
    ('layouts', 'merge', 'tokenizer_tools')
    """
    top, _, rest = module.partition(".")
    if top != "merge":
        return top
    first = rest.partition(".")[0]
    return first if first and (ROOT / "merge" / first).is_dir() else "merge"


def imports() -> Iterator[tuple[str, str, int]]:
    """Importing module, imported module, and the line."""
    for name, path in modules().items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                target = f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base
                if target in modules():
                    yield name, target, node.lineno


def arrows() -> set[tuple[str, str]]:
    """Which package imports from which."""
    # The package itself names its public functions, wherever they are.
    pairs = {(room_of(one), room_of(other)) for one, other, _ in imports() if one != "merge"}
    return {(one, other) for one, other in pairs if one != other}


def direct(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that no way over other packages replaces."""

    @cache
    def reach(room: str) -> frozenset[str]:
        below = {other for one, other in pairs if one == room}
        return frozenset(below).union(*(reach(other) for other in below))

    return {
        (one, other)
        for one, other in pairs
        if not any(other in reach(step) for first, step in pairs if first == one and step != other)
    }


def tables() -> dict[str, str]:
    """The generated parts of the document, by the name of their place."""
    counts = {room: sum(room_of(name) == room for name in modules()) for room in ROOMS}
    lines = ["```mermaid", "flowchart TD"]
    lines += [f"    {one} --> {other}" for one, other in sorted(direct(arrows()))]
    rows = ["| package | what it is | modules |", "| :-- | :-- | --: |"]
    rows += [f"| `{room}` | {what} | {counts[room]} |" for room, what in ROOMS.items()]
    return {"drawing": "\n".join([*lines, "```"]), "rooms": "\n".join(rows)}


def written(document: str) -> str:
    """The document with the generated parts in their places."""
    for name, content in tables().items():
        begin = _BEGIN.format(name)
        before, rest = document.split(begin)
        document = f"{before}{begin}\n\n{content}\n\n{_END}{rest.split(_END, 1)[1]}"
    return document


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
