"""Deltas against FastChat's own scripts, run with transformers 4.46."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from merge.jobs.apply_delta import apply_delta, make_delta
from tests.kit.dense_deltas import make_vicuna
from tests.kit.files import Tensors, load_weights
from tests.kit.transformers_446 import VARIABLE, run_in_transformers_446

# The package imports much more than these two scripts need, so they are run as the files they are.
RUN = """
import importlib.util, json, runpy, sys
package = importlib.util.find_spec("fastchat").submodule_search_locations[0]
script = f"{package}/model/{sys.argv[1]}.py"
sys.argv = [script, *sys.argv[2:]]
runpy.run_path(script, run_name="__main__")
print(json.dumps("done"))
"""


def fastchat(script: str, base: Path, target: Path, delta: Path, *more: str) -> None:
    folder = os.environ.get(VARIABLE, "")
    if folder and not (Path(folder) / "fastchat").is_dir():
        pytest.skip(f"FastChat is not set up: it is not in {folder}, named by {VARIABLE}")
    words = ("--base-model-path", base, "--target-model-path", target, "--delta-path", delta)
    run_in_transformers_446(RUN, script, *words, *more)


def require_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype == torch.float16, name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("more", [(), ("--low-cpu-mem",)], ids=["in memory", "low memory"])
def test_v1_1_delta_is_added_as_fastchat_does(tmp_path: Path, more: tuple[str, ...]) -> None:
    base, _, delta = make_vicuna(tmp_path)
    fastchat("apply_delta", base, tmp_path / "theirs", delta, *more)
    apply_delta(base, delta, tmp_path / "ours")
    require_equal(load_weights(tmp_path / "ours"), load_weights(tmp_path / "theirs"))


def test_delta_is_made_as_fastchat_does(tmp_path: Path) -> None:
    base, target, _ = make_vicuna(tmp_path, num_key_value_heads=4)
    fastchat("make_delta", base, target, tmp_path / "theirs")
    make_delta(base, target, tmp_path / "ours")
    require_equal(load_weights(tmp_path / "ours"), load_weights(tmp_path / "theirs"))
