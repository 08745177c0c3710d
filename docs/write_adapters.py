"""Write the tables of docs/adapters.md from the registry that the code itself uses."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from merge.deltas.kinds import HANDLED, HARMLESS  # noqa: E402
from merge.deltas.refusals import REFUSED  # noqa: E402

DOCUMENT = ROOT / "docs" / "adapters.md"
_BEGIN, _END = "<!-- {} -->", "<!-- end -->"


def tables() -> dict[str, str]:
    """The generated parts of the document, by the name of their place."""
    handled = ["| kind | since PEFT | told by | what is done |", "| :-- | :-: | :-- | :-- |"]
    handled += [f"| {k.name} | {k.since} | {k.told_by} | {k.result} |" for k in HANDLED]
    refused = ["| kind | field | because | way out |", "| :-- | :-- | :-- | :-- |"]
    refused += [f"| {r.name} | `{r.field}` | {r.reason} | {r.remedy} |" for r in REFUSED]
    harmless = ", ".join(f"`{name}`" for name in sorted(HARMLESS))
    return {
        "merged": "\n".join(handled),
        "refused": "\n".join(refused),
        "harmless": f"{harmless}.",
    }


def written(document: str) -> str:
    """The document with its generated parts made anew."""
    for name, table in tables().items():
        begin = _BEGIN.format(name)
        before, _, rest = document.partition(begin)
        _, _, after = rest.partition(_END)
        document = f"{before}{begin}\n\n{table}\n\n{_END}{after}"
    return document


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
