"""Types of GGUF files that llama.cpp's own quantizer makes, and what they need."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import UsageError
from .messages import tr

FREE_OUTTYPES = (
    *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_0", "q4_1", "q4_k_s", "q4_k_m"),
    *("q5_0", "q5_1", "q5_k_s", "q5_k_m", "q6_k", "iq3_s", "iq3_m", "iq4_nl", "iq4_xs"),
)
"""llama.cpp's names of files that it makes of the weights alone."""
GUIDED_OUTTYPES = (
    *("q2_k_s", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs"),
)
"""Those for which it asks for an importance matrix."""
QUANTIZED_OUTTYPES = FREE_OUTTYPES + GUIDED_OUTTYPES
LLAMA_CPP_REMEDY = tr("pip install 'chinese-llama-merge[gguf,llama_cpp]'")


def require_quantizer(outtype: str, has_imatrix: bool) -> None:
    """Require llama.cpp's library where it quantizes, and an importance matrix only there.

    Raises ``UsageError``.
    """
    if outtype not in QUANTIZED_OUTTYPES:
        if has_imatrix:
            raise UsageError(
                tr("--imatrix means nothing for this type of file"),
                expected="--outtype " + ", ".join(QUANTIZED_OUTTYPES),
                found=f"--outtype {outtype}",
                remedy=tr("leave --imatrix out, or change the type"),
            )
        return
    if not has_imatrix and outtype in GUIDED_OUTTYPES:
        raise UsageError(
            tr(
                "--outtype {outtype} needs an importance matrix: without one the model is garbage",
                outtype=outtype,
            ),
            expected=tr("--imatrix FILE, as llama.cpp's llama-imatrix makes it of a text"),
            remedy=tr("give one, or take a type that needs none, such as q3_k_m or q4_k_m"),
        )
    found = find_spec("llama_cpp")
    if found is None or found.origin is None:  # a mere folder of that name
        raise UsageError(
            tr(
                "--outtype {outtype} needs llama.cpp's own quantizer, which is not installed",
                outtype=outtype,
            ),
            remedy=LLAMA_CPP_REMEDY,
        )
