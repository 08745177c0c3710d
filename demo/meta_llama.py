"""Meta's LLaMA forward pass on Meta's tensor names: an oracle that shares no code with the merge.

Written from the published architecture: Touvron et al. 2023, https://arxiv.org/abs/2302.13971;
rotary embeddings, Su et al. 2021, https://arxiv.org/abs/2104.09864. Meta rotates neighbouring
pairs (x0, x1), (x2, x3), ... of a head, Hugging Face rotates (x0, x[d/2]), (x1, x[d/2 + 1]), ...:
weights whose q and k rows were not put back into Meta's order give other logits here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def forward(
    weights: Mapping[str, Tensor], params: Mapping[str, Any], ids: list[int], rope_theta: float
) -> Tensor:
    """Return the logits, shape (len(ids), vocabulary), of one sequence, in fp32.

    ``weights`` are those of ``consolidated.00.pth``, ``params`` are ``params.json``.
    """
    w = {name: tensor.float() for name, tensor in weights.items()}
    x = w["tok_embeddings.weight"][ids]
    for n in range(params["n_layers"]):
        layer = {
            name.removeprefix(f"layers.{n}."): tensor
            for name, tensor in w.items()
            if name.startswith(f"layers.{n}.")
        }
        normed = _rms_norm(x, layer["attention_norm.weight"], params["norm_eps"])
        x = x + _attention(normed, layer, params, rope_theta)
        normed = _rms_norm(x, layer["ffn_norm.weight"], params["norm_eps"])
        x = x + _feed_forward(normed, layer)
    return _rms_norm(x, w["norm.weight"], params["norm_eps"]) @ w["output.weight"].T


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def _rotate(x: Tensor, theta: float) -> Tensor:
    """Turn pair i of position p by the angle p * theta ** (-2i / d); x is (positions, heads, d)."""
    import torch

    positions, _, d = x.shape
    frequencies = theta ** (-torch.arange(0, d, 2).double() / d)
    angles = torch.outer(torch.arange(positions).double(), frequencies)[:, None]
    cos, sin = angles.cos().float(), angles.sin().float()
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _attention(
    x: Tensor, layer: Mapping[str, Tensor], params: Mapping[str, Any], theta: float
) -> Tensor:
    import torch

    heads, kv_heads = params["n_heads"], params.get("n_kv_heads", params["n_heads"])
    q, k, v = (
        (x @ layer[f"attention.{name}.weight"].T).reshape(len(x), count, -1)
        for name, count in (("wq", heads), ("wk", kv_heads), ("wv", kv_heads))
    )
    q, k = _rotate(q, theta), _rotate(k, theta)
    k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    mixed = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
    return mixed @ layer["attention.wo.weight"].T


def _feed_forward(x: Tensor, layer: Mapping[str, Tensor]) -> Tensor:
    import torch

    gate = torch.nn.functional.silu(x @ layer["feed_forward.w1.weight"].T)
    return (gate * (x @ layer["feed_forward.w3.weight"].T)) @ layer["feed_forward.w2.weight"].T
