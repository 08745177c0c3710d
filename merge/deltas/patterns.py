"""``rank_pattern`` and ``alpha_pattern``: what they mean to the release of PEFT that wrote them.

The rule changed twice, so the same two fields can give two scalings. From the published sources:

=================  ======================  ========================================================
PEFT               expression              searched in
=================  ======================  ========================================================
0.6 to 0.13        ``.*\\.KEY$``            both fields at once, ranks first: a pattern of one field
                                           that matches keeps those of the other from being searched
0.14               ``.*\\.KEY$``            each field for itself
0.15 and later     ``(.*\\.)?(KEY)$``       each field for itself
=================  ======================  ========================================================

(``tuners/lora/model.py`` until 0.13.2, ``utils/other.py: get_pattern_key`` since.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..messages import tr
from ..untrusted.safe_regex import compile_matcher


@dataclass(frozen=True)
class Rule:
    """How the releases ``since`` one of them find the number of a module."""

    since: tuple[int, int]
    releases: str
    wrapped: str
    is_joint: bool = False

    def numbers(
        self, ranks: Mapping[str, int], alphas: Mapping[str, float], module: str
    ) -> tuple[int | None, float | None]:
        """Rank and alpha of ``module``; None where no pattern gives one."""
        if self.is_joint:
            key = self._first((*ranks, *alphas), module)
            return ranks.get(key), alphas.get(key)
        return ranks.get(self._first(ranks, module)), alphas.get(self._first(alphas, module))

    def _first(self, patterns: Iterable[str], module: str) -> str:
        """The first pattern that matches, else the name itself, as PEFT has it."""
        return next((p for p in patterns if compile_matcher(p, self.wrapped)(module)), module)

    def require_valid(self, pattern: str) -> None:
        """Raise ``re.error`` for a pattern that is no regular expression for names."""
        compile_matcher(pattern, self.wrapped)


# The newest first: it is what PEFT itself would do with an adapter today.
RULES = (
    Rule((0, 15), tr("PEFT 0.15 and later"), r"(.*\.)?(KEY)$"),
    Rule((0, 14), "PEFT 0.14", r".*\.KEY$"),
    Rule((0, 6), tr("PEFT 0.6 to 0.13"), r".*\.KEY$", is_joint=True),
)
# Fields that no older release wrote. That one is missing says nothing: people remove them, so that
# an older PEFT reads a newer adapter.
_FIRST_WRITTEN = {
    (0, 15): ("corda_config", "trainable_token_indices", "use_qalora", "target_parameters"),
    (0, 14): ("eva_config", "exclude_modules", "lora_bias"),
}
_RELEASE = re.compile(r"(\d+)\.(\d+)(?!\d)")


def find_possible_rules(fields: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules by which the adapter may have been trained, as far as its configuration tells.

    PEFT records its release since 0.18; before, only fields that were new tell it.
    """
    if release := _RELEASE.match(str(fields.get("peft_version") or "")):
        written = int(release[1]), int(release[2])
        return next(((rule,) for rule in RULES if rule.since <= written), RULES[-1:])
    for since, names in _FIRST_WRITTEN.items():
        if any(name in fields for name in names):
            return tuple(rule for rule in RULES if rule.since >= since)
    return RULES
