"""How the page looks: fonts of the system, light and dark as the browser asks."""

from __future__ import annotations

import gradio as gr

_FONTS = ("system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "sans-serif")
_CODE_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = """
.gradio-container { max-width: 60rem !important; margin: 0 auto; }
#suggestions { display: none; }
.clm-head { flex-wrap: wrap; }
.clm-head > :first-child { flex: 1 1 16rem; min-width: 16rem !important; }
.html-container { padding: 0 !important; }
.clm-box { border: 1px solid var(--border-color-primary); border-left-width: 4px;
  border-radius: 6px; padding: .6rem .9rem; margin: .4rem 0; overflow-wrap: anywhere;
  color: var(--body-text-color); background: var(--background-fill-secondary); }
.clm-box pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: .85rem;
  font-family: var(--font-mono); background: none; color: inherit; }
.clm-box ul { margin: .2rem 0 0 1.1rem; padding: 0; list-style: disc; }
.clm-box h3 { margin: 0 0 .3rem; font-size: 1rem; font-weight: 600; color: inherit; }
.clm-warning { border-left-color: #c77700; }
.clm-error { border-left-color: #c62828; }
.clm-good { border-left-color: #2e7d32; }
.clm-progress progress { width: 100%; height: .8rem; accent-color: var(--color-accent); }
.clm-answer { white-space: pre-wrap; overflow-wrap: anywhere; min-height: 6rem; }
.clm-report { width: 100%; height: 80vh; border: 1px solid var(--border-color-primary);
  border-radius: 6px; background: var(--background-fill-primary); }
.clm-quiet { color: var(--body-text-color-subdued); font-size: .9rem; min-height: 1.4rem; }
"""


def make_theme() -> gr.themes.Base:
    """A theme without a font from elsewhere."""
    return gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=_CODE_FONTS
    )
