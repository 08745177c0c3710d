"""The demo's two judges must be able to say no; transformers is the oracle of the forward pass."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from demo.checks import compare
from demo.meta_llama import forward

HEADS, KV_HEADS, LAYERS = 4, 2, 2
NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
PARAMS = {"n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "norm_eps": 1e-5}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def meta_order(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Row j of a head's first half and row j of its second half become neighbours."""
    dim = len(weight) // heads
    rows = [
        h * dim + half * dim // 2 + j
        for h in range(heads)
        for j in range(dim // 2)
        for half in (0, 1)
    ]
    return weight[rows]


def meta_weights(model: LlamaForCausalLM, k_heads: int) -> dict[str, torch.Tensor]:
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    weights = {
        "tok_embeddings.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for n in range(LAYERS):
        for theirs, metas in NAMES.items():
            weights[f"layers.{n}.{metas}.weight"] = state[f"model.layers.{n}.{theirs}.weight"]
        for name, heads in (("wq", HEADS), ("wk", k_heads)):
            key = f"layers.{n}.attention.{name}.weight"
            weights[key] = meta_order(weights[key], heads)
    return weights


def largest_difference(model: LlamaForCausalLM, weights: dict[str, torch.Tensor]) -> float:
    ids = [1, 7, 30, 2, 49, 7, 8, 11]
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([ids])).logits[0]
        return compare("", [forward(weights, PARAMS, ids, 10000.0)], [theirs]).difference


def test_the_forward_pass_gives_the_logits_of_transformers(model: LlamaForCausalLM) -> None:
    assert largest_difference(model, meta_weights(model, KV_HEADS)) < 1e-4


def test_the_forward_pass_shows_k_put_in_order_with_the_wrong_heads(
    model: LlamaForCausalLM,
) -> None:
    assert largest_difference(model, meta_weights(model, HEADS)) > 0.1


def test_logits_of_another_shape_or_that_are_no_numbers_do_not_pass() -> None:
    zeros, nans = torch.zeros(2, 3), torch.full((2, 3), float("nan"))
    assert compare("", [zeros, zeros], [zeros, zeros]).passed
    assert not compare("", [zeros], [zeros, zeros]).passed
    assert not compare("", [zeros, torch.zeros(2, 4)], [zeros, zeros]).passed
    assert not compare("", [nans, zeros], [zeros, zeros]).passed
    assert not compare("", [zeros, nans], [zeros, zeros]).passed
