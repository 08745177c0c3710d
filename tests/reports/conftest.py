"""What tests of reports share."""

from __future__ import annotations

from tests.kit.browser import browser

__all__ = ["browser"]
