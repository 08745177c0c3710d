"""Every kind in the registry, made by PEFT, against PEFT's own ``merge_and_unload``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import merge_lora
from merge.deltas.kinds import HANDLED
from tests.deltas.test_biases import BIASES
from tests.kit.adapters import LINEAR, logits_of, logits_with_peft, make_lora, merge_with_peft
from tests.kit.files import load_weights
from tests.kit.llamas import make_base

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

VOCABULARY = ["embed_tokens", "lm_head"]
# By kind of the registry, then by what is special: changes of the base, settings of the adapter.
CASES: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "LoRA": {
        "all linear": ({}, {"target_modules": LINEAR}),
        "on lm_head": ({}, {"target_modules": ["q_proj", "lm_head"]}),
        "bfloat16 on float16": ({}, {"dtype": torch.bfloat16}),
        "float16 on bfloat16": ({"dtype": torch.bfloat16}, {"dtype": torch.float16}),
    },
    "rsLoRA": {"rank 9": ({}, {"use_rslora": True, "r": 9})},
    "rank and alpha patterns": {
        "first match wins": (
            {},
            {
                "target_modules": LINEAR,
                "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
                "alpha_pattern": {"layers.0.self_attn.k_proj": 40, "k_proj": 5, ".*_proj": 3},
            },
        ),
        "with rsLoRA": ({}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}}),
    },
    "chosen layers": {
        "one layer": ({}, {"layers_to_transform": [1]}),
        "excluded": ({}, {"exclude_modules": ["layers.0.self_attn.q_proj"]}),
        "a name that is nowhere": ({}, {"target_modules": ["q_proj", "xxx"]}),
    },
    "layer replication": {
        "overlapping": ({"num_hidden_layers": 3}, {"layer_replication": [[0, 2], [1, 3]]}),
        "backwards, and one left out": (
            {"num_hidden_layers": 3},
            {"layer_replication": [[2, 3], [0, 1], [0, 1]], "target_modules": LINEAR},
        ),
        "DoRA": ({}, {"layer_replication": [[0, 2], [0, 2]], "use_dora": True}),
        "whole norms, tied": (
            {"tie_word_embeddings": True},
            {"layer_replication": [[0, 2], [0, 2]], "modules_to_save": ["input_layernorm"]},
        ),
        "chosen copies": (
            {},
            {"layer_replication": [[0, 2], [0, 2]], "layers_to_transform": [0, 3]},
        ),
    },
    "fan_in_fan_out": {"nothing to a linear layer": ({}, {"fan_in_fan_out": True})},
    "embedding LoRA": {
        "alone": ({}, {"target_modules": ["embed_tokens"]}),
        "both sides": ({}, {"target_modules": ["q_proj", *VOCABULARY]}),
        "float16": ({}, {"target_modules": ["embed_tokens"], "dtype": torch.float16}),
        "rank 1": ({}, {"target_modules": ["embed_tokens"], "r": 1}),
        "tied": ({"tie_word_embeddings": True}, {"target_modules": ["embed_tokens"]}),
        "tied, on the head": ({"tie_word_embeddings": True}, {"target_modules": ["lm_head"]}),
    },
    "DoRA": {
        "linear": ({}, {"use_dora": True, "target_modules": LINEAR}),
        "lm_head": ({}, {"use_dora": True, "target_modules": ["lm_head", "v_proj"]}),
        "embeddings": ({}, {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]}),
        "bfloat16": ({}, {"use_dora": True, "dtype": torch.bfloat16}),
        "rsLoRA and patterns": (
            {},
            {"use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 2}},
        ),
    },
    "whole modules": {
        "norm": ({}, {"modules_to_save": ["norm"]}),
        "mlp": ({}, {"modules_to_save": ["mlp"], "target_modules": ["q_proj"]}),
        "vocabulary": ({}, {"modules_to_save": VOCABULARY}),
        "tied, one side": ({"tie_word_embeddings": True}, {"modules_to_save": ["embed_tokens"]}),
        "tied, kept so": (
            {"tie_word_embeddings": True},
            {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        ),
    },
    "the base's own copy": {
        "embeddings": (
            {},
            {"target_modules": ["embed_tokens", "q_proj"], "save_embedding_layers": True},
        ),
        "both sides": ({}, {"target_modules": VOCABULARY, "save_embedding_layers": True}),
    },
    "trainable tokens": {
        "embeddings": ({}, {"trainable_token_indices": [7, 3, 100]}),
        "both sides": (
            {},
            {"trainable_token_indices": {"lm_head": [2], "embed_tokens": [1, 5]}},
        ),
        "float16": ({}, {"trainable_token_indices": [7, 3], "dtype": torch.float16}),
        "tied": ({"tie_word_embeddings": True}, {"trainable_token_indices": [7, 3]}),
        "tied, under a LoRA on the head": (
            {"tie_word_embeddings": True},
            {"trainable_token_indices": [7, 3], "target_modules": ["q_proj", "lm_head"]},
        ),
        "tied, other rows on the head": (
            {"tie_word_embeddings": True},
            {"trainable_token_indices": {"lm_head": [7, 3], "embed_tokens": [1]}},
        ),
    },
    "tied embeddings": {
        "nothing touches them": ({"tie_word_embeddings": True}, {}),
        "both sides a LoRA": (
            {"tie_word_embeddings": True},
            {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        ),
    },
}
EACH = [
    pytest.param(*case, id=f"{kind}: {name}")
    for kind, cases in CASES.items()
    for name, case in cases.items()
]


def test_every_kind_of_the_registry_has_a_case() -> None:
    biases = {name.partition(":")[0].partition(",")[0] for name in BIASES}
    assert CASES.keys() | biases == {kind.name for kind in HANDLED}


Bases = Callable[..., Path]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Make a base, or give the one that was made with the same changes."""
    made: dict[str, Path] = {}

    def base(**changes: Any) -> Path:
        key = repr(changes)
        if key not in made:
            made[key] = make_base(tmp_path_factory.mktemp("base"), **changes)
        return made[key]

    return base


@pytest.mark.parametrize(("base_changes", "settings"), EACH)
def test_kind_merges_as_peft_does(
    tmp_path: Path, bases: Bases, base_changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    base = bases(**base_changes)
    adapter = make_lora(tmp_path / "lora", base, **settings)
    merge_lora(base, adapter, tmp_path / "exact", output_type="huggingface", dtype="float32")
    if base_changes.get("tie_word_embeddings"):  # PEFT merges into both sides where one is trained
        expected = logits_with_peft(base, adapter)
        torch.testing.assert_close(logits_of(tmp_path / "exact"), expected, rtol=1e-4, atol=1e-4)
        return
    reference = merge_with_peft(base, [adapter])
    exact = load_weights(tmp_path / "exact")
    planned = merge_lora(base, adapter, tmp_path / "half", dry_run=True).job.model.tensors
    half = {name: tensor.read() for name, tensor in planned.items()}
    assert exact.keys() == half.keys() == reference.keys()
    for name, tensor in reference.items():
        torch.testing.assert_close(exact[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
        assert torch.equal(half[name], exact[name].half()), name  # one rounding, at the end


TIED = {
    "trainable tokens": ({"trainable_token_indices": [7, 3]}, True),
    "saved and kept tied": (
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        True,
    ),
    "nothing": ({}, True),
    "embedding LoRA": ({"target_modules": ["embed_tokens"]}, False),
    "LoRA on the head": ({"target_modules": ["lm_head"]}, False),
    "one side saved": ({"modules_to_save": ["lm_head"]}, False),
}


@pytest.mark.parametrize(("settings", "stays"), TIED.values(), ids=TIED)
def test_embeddings_stay_tied_only_while_they_are_equal(
    tmp_path: Path, bases: Bases, settings: dict[str, Any], stays: bool
) -> None:
    base = bases(tie_word_embeddings=True)
    adapter = make_lora(tmp_path / "lora", base, **settings)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    assert ("lm_head.weight" not in load_weights(tmp_path / "out")) == stays
    assert load_config(tmp_path / "out")["tie_word_embeddings"] == stays


def load_config(folder: Path) -> dict[str, Any]:
    import json

    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


GROWN = {
    "whole vocabulary": {"modules_to_save": VOCABULARY, "save_embedding_layers": "auto"},
    "LoRA on both sides": {"target_modules": VOCABULARY, "save_embedding_layers": True},
    "DoRA on both sides": {
        "target_modules": VOCABULARY,
        "save_embedding_layers": True,
        "use_dora": True,
    },
    "trainable tokens": {
        "trainable_token_indices": [101, 119, 4],
        "save_embedding_layers": True,
    },
}


@pytest.mark.parametrize("settings", GROWN.values(), ids=GROWN)
def test_vocabulary_grown_before_training(
    tmp_path: Path, bases: Bases, settings: dict[str, Any]
) -> None:
    base = bases()
    adapter = make_lora(tmp_path / "lora", base, rows=120, **settings)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    expected = merge_with_peft(base, [adapter], rows=120)
    for name, tensor in load_weights(tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, msg=name)


RAW = {
    "LoRA": {},
    "DoRA": {"use_dora": True},
    "embedding LoRA": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding DoRA": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "whole modules": {"modules_to_save": ["mlp", "embed_tokens"], "target_modules": ["q_proj"]},
    "trainable tokens": {"trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [2]}},
}


@pytest.mark.parametrize("settings", RAW.values(), ids=RAW)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_a_trainers_checkpoint_merges_as_the_saved_adapter(
    tmp_path: Path, bases: Bases, settings: dict[str, Any], name: str
) -> None:
    base = bases()
    adapter = make_lora(tmp_path / "lora", base, **settings)
    raw = make_lora(tmp_path / "raw", base, raw=True, **settings)
    (raw / "pytorch_model.bin").rename(raw / name)
    for folder in (adapter, raw):
        out = tmp_path / f"{folder.name} merged"
        merge_lora(base, folder, out, output_type="huggingface", dtype="float32")
    saved = load_weights(tmp_path / "lora merged")
    from_raw = load_weights(tmp_path / "raw merged")
    assert saved.keys() == from_raw.keys()
    assert all(torch.equal(saved[name], from_raw[name]) for name in saved)


ORDERED = {
    "DoRA after LoRA": ({}, {"use_dora": True}),
    "DoRA after DoRA": ({"use_dora": True}, {"use_dora": True}),
    "LoRA after embedding DoRA": (
        {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ),
    "embedding DoRA after LoRA": (
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
    ),
    "LoRA after trained rows": (
        {"trainable_token_indices": [1, 2]},
        {"target_modules": ["embed_tokens"]},
    ),
}


@pytest.mark.parametrize(("first", "second"), ORDERED.values(), ids=ORDERED)
def test_what_an_adapter_does_depends_on_the_one_before(
    tmp_path: Path, bases: Bases, first: dict[str, Any], second: dict[str, Any]
) -> None:
    base = bases()
    adapters = [
        make_lora(tmp_path / "first", base, **first),
        make_lora(tmp_path / "second", base, seed=2, **second),
    ]
    merge_lora(base, adapters, tmp_path / "out", output_type="huggingface", dtype="float32")
    merge_lora(
        base, adapters[::-1], tmp_path / "swapped", output_type="huggingface", dtype="float32"
    )
    expected = merge_with_peft(base, adapters)
    merged, swapped = load_weights(tmp_path / "out"), load_weights(tmp_path / "swapped")
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, msg=name)
    assert any(not torch.allclose(swapped[name], merged[name], atol=1e-3) for name in merged)
