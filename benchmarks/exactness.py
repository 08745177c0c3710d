"""How near a merged model is to float64, by the project's own ``verify_merge``.

A program of its own, because the measuring process must not import torch. It prints what was
checked, the largest distance in ulp and the share of identical elements among it, and one indented
line for each fault. Exit codes: 0 right, 1 wrong, 2 inputs that cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Check one merged model against its inputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base_model", type=Path, required=True)
    parser.add_argument("--lora_model", type=Path, nargs="+", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    from merge import verify_merge
    from merge.errors import MergeError

    try:
        found = verify_merge(
            args.output_dir, base_model=args.base_model, lora_model=args.lora_model
        )
    except MergeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in found.checked:
        print(line)
    for fault in found.faults:
        print(f"  {' '.join(str(fault).split())}")
    return 1 if found.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
