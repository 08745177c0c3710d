"""Flags for ``os.open``."""

from __future__ import annotations

import os

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""A link in place of a file is an error; Windows has no such flag."""
