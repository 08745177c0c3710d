"""Records as tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks import figures
from benchmarks.figures import MIB, Record, Spread

Row = Sequence[str]
COLUMNS: dict[str, Callable[[Record, str], Spread | None]] = {
    "total s": lambda record, step: figures.column(record, step, "total"),
    "CPU s": lambda record, step: figures.column(record, step, "cpu"),
    "peak MiB": lambda record, step: figures.column(record, step, "peak_rss", MIB),
    "read MiB": lambda record, step: figures.column(record, step, "read", MIB),
    "written MiB": lambda record, step: figures.column(record, step, "written", MIB),
    "written / output": figures.amplification,
}


def rows(record: Record) -> list[list[str]]:
    """A heading and one row for each step: costs, ratios to every floor, correctness."""
    floors: list[str] = record["floors"]
    table = [["", *COLUMNS, *(f"× {floor}" for floor in floors), "float64"]]
    for step in figures.steps(record):
        cells: list[Spread | None] = [get(record, step) for get in COLUMNS.values()]
        cells += [figures.ratios(record, step, floor) for floor in floors]
        table.append([_named(record, step), *map(cell, cells), correctness(record, step)])
    for step, reason in record["absent"].items():
        table.append([step, reason, *[""] * (len(table[0]) - 2)])
    return table


def _named(record: Record, step: str) -> str:
    """A copy that had to go through the page cache says so."""
    fell_back = any(s["step"] == step and s["said"] == "buffered" for s in record["samples"])
    return f"{step} (no O_DIRECT here: buffered)" if fell_back else step


def cell(value: Spread | None) -> str:
    """A dash for what the system does not tell."""
    return "-" if value is None else str(value)


def correctness(record: Record, step: str) -> str:
    """What the comparison with float64 found."""
    good = record["verified"].get(step)
    if good is not False:
        return "same" if good else ""
    faults = [line for line in record["comparison"].get(step, "").splitlines() if line[:1] == " "]
    return f"DIFFERENT: {faults[0].strip()}" if faults else "DIFFERENT"


def text(table: Sequence[Row]) -> str:
    """Columns side by side; a row with one long remark is not let widen them."""
    remarks = [row for row in table if len(row) > 2 and row[1] and not any(row[2:])]
    whole = [row for row in table if row not in remarks]
    widths = [max(len(row[column]) for row in whole) for column in range(len(table[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in whole]
    lines += [f"{row[0]}: {row[1]}" for row in remarks]
    return "\n".join(line.rstrip() for line in lines)


def markdown(table: Sequence[Row]) -> str:
    """A table with its heading in the first row."""
    heading, *body = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([heading, "|" + " --- |" * len(table[0]), *body])


def described(record: Record) -> list[str]:
    """What was measured, for the lines above a table."""
    jobs = record["jobs"]
    lines = [f"{name}: {job['described']}" for name, job in jobs.items()]
    sink = "; outputs in memory, discarded at once" if record["sink"] else ""
    lines.append(f"{figures.cache_state(record)}; {record['runs']} runs, min / median / max{sink}")
    return lines


def shown(record: Record) -> str:
    """Everything about one record, for the terminal."""
    lines = [*described(record), "", text(rows(record))]
    for step, table in record["comparison"].items():
        lines += ["", f"{step}, against float64:", table.rstrip()]
    return "\n".join(lines)
