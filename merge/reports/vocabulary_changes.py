"""What became of the vocabulary: where its pieces come from, and how long their rows are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from ..errors import MergeError
from ..tensors.statistics import RowRecorder
from ..tokenizers.opaque_tokenizer import Tokenizer
from .sample_lines import describe_samples

_BINS = 40


def describe_vocabulary(
    before: Tokenizer | None,
    after: Tokenizer,
    base_rows: int,
    rows: Mapping[str, RowRecorder],
) -> dict[str, Any]:
    """Counts of rows and pieces, histograms of the rows' norms, and sample lines.

    Rows up to ``base_rows`` are old, the others new. ``rows`` are the recorders of the embeddings
    and the LM head.
    """
    total = max((recorder.rows for recorder in rows.values()), default=base_rows)
    return {
        "base_rows": base_rows,
        "rows": total,
        "new_rows": max(0, total - base_rows),
        **_count_pieces(before, after, total),
        "norms": {
            name: describe_norms(recorder.list_norms(), base_rows)
            for name, recorder in rows.items()
        },
        **describe_samples(before, after),
    }


def _count_pieces(before: Tokenizer | None, after: Tokenizer, rows: int) -> dict[str, Any]:
    """How many pieces are the base's, with their ids, how many are new, how many rows have none."""
    tokens = after.n_tokens
    counts = {
        "base_pieces": None if before is None else before.n_tokens,
        "pieces": tokens,
        "kept_pieces": None,
        "new_pieces": None,
        "padding_rows": None if tokens is None else max(0, rows - tokens),
    }
    if before is None or tokens is None:
        return counts
    try:
        olds, news = before.tokens, after.tokens
    except MergeError:  # a tokenizer whose files list no tokens
        return counts
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(olds, news, strict=False)))
    return counts | {"kept_pieces": same, "new_pieces": len(news) - same}


def describe_norms(norms: Sequence[float], base_rows: int) -> dict[str, Any]:
    """Histograms of the norms of old and new rows over the same bins, with medians and spreads.

    ``spread`` is the distance of the quartiles by the median.
    """
    values = np.asarray(norms, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {"edges": [], "old": None, "new": None}
    edges = np.histogram_bin_edges(finite, bins=_BINS)
    parts = {"old": values[:base_rows], "new": values[base_rows:]}
    return {
        "edges": [float(edge) for edge in edges],
        **{name: _describe_part(part, edges) for name, part in parts.items()},
    }


def _describe_part(values: np.ndarray[Any, Any], edges: np.ndarray[Any, Any]) -> Any:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, middle, high = np.percentile(finite, (25, 50, 75))
    return {
        "rows": len(values),
        "counts": [int(count) for count in np.histogram(finite, edges)[0]],
        "median": float(middle),
        "spread": float((high - low) / middle) if middle else None,
        "smallest": float(finite.min()),
        "largest": float(finite.max()),
        "zeros": int((finite == 0).sum()),
    }
