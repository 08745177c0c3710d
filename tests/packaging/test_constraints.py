"""Every Python that is supported gets pinned versions: a gap lets pip search for very long."""

from __future__ import annotations

from collections import defaultdict

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.kit.run import ROOT


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_each_package_has_one_version(python: str) -> None:
    pins: dict[str, list[str]] = defaultdict(list)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            one = Requirement(line)
            fits = one.marker is None or one.marker.evaluate({"python_version": python})
            pins[canonicalize_name(one.name)] += [str(one.specifier)] if fits else []
    only_old = {"async-timeout", "exceptiongroup", "tomli"}  # in the standard library later
    assert len(pins) > 150
    for name, versions in pins.items():
        assert len(versions) == (0 if name in only_old and python != "3.10" else 1), name
