"""Numbers as a page shows them, the same in every language."""

from __future__ import annotations

from ..messages import tr


def format_percent(share: float | None) -> str:
    """A share in percent, three digits.

    >>> format_percent(0.01234), format_percent(0.5), format_percent(0.0), format_percent(None)
    ('1.23 %', '50 %', '0 %', '–')
    """
    return "–" if share is None else f"{format_value(100 * share)} %"


def format_value(value: float | None) -> str:
    """A number with three digits.

    >>> format_value(65504.0), format_value(0.000123), format_value(2.0), format_value(None)
    ('65,504', '0.000123', '2', '–')
    """
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def format_seconds(seconds: float) -> str:
    """A time.

    >>> format_seconds(4.21), format_seconds(192.0)
    ('4.2 s', '3:12 min')
    """
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return tr("{minutes}:{rest:02} min", minutes=minutes, rest=rest)
