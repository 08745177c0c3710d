"""How the page's events reach Gradio."""

from __future__ import annotations

from typing import Any

QUEUED: Any = {"api_visibility": "private", "show_progress": "hidden"}
"""Arguments of an event whose answers come one after the other."""

# Gradio's browser code may close the stream of queued answers just as another event is put into the
# queue, whose answer is then lost.
AT_ONCE: Any = {**QUEUED, "queue": False}
"""Arguments of an event that its own request answers."""
