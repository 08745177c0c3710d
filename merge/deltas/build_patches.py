"""Patches of an adapter's tensors: pairs of matrices, magnitudes, rows and biases, all checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import AdapterError
from ..messages import tr
from ..tensors.lazy import LazyTensor
from ..tensors.patched import Patch
from .adapter_config import AdapterConfig
from .keys import AdapterKeys
from .patches import AddedVector, DoraRowScale, LowRank, ReplacedRows

# Halves that must come together.
_PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))


def collect_ranks(keys: AdapterKeys) -> dict[str, int]:
    """Return the rank of each module, from its lora_A."""
    both = keys.parts["lora_A"] | keys.parts["lora_embedding_A"]
    return {module: a.shape[0] for module, a in both.items() if a.shape}


def build_patches(
    path: Path, config: AdapterConfig, keys: AdapterKeys
) -> dict[str, tuple[Patch, ...]]:
    """Build what is added to each tensor: the product and then the magnitude, or rows.

    Raises ``AdapterError`` for tensors that contradict each other or the configuration.
    """
    _require_pairs(path, keys)
    _require_agreement(path, config, keys)
    parts = keys.parts
    stages: dict[str, tuple[Patch, ...]] = {}
    for module, a in parts["lora_A"].items():
        low_rank = _build_low_rank(path, config, module, a, parts["lora_B"][module])
        stages[f"{module}.weight"] = (low_rank, *_build_row_scale(path, keys, module, low_rank))
    for module, a in parts["lora_embedding_A"].items():
        low_rank = _build_low_rank(path, config, module, a, parts["lora_embedding_B"][module])
        stage: Iterable[Patch] = (low_rank, *_build_row_scale(path, keys, module, low_rank))
        stages[f"{module}.weight"] = tuple(patch.transposed() for patch in stage)
    for module, bias in parts["lora_bias"].items():
        stages[f"{module}.bias"] = (AddedVector(bias, config.scaling(module)),)
    for module, rows in parts["trainable_tokens_delta"].items():
        stages[f"{module}.weight"] = (_build_token_rows(path, config, module, rows),)
    return stages


def _require_pairs(path: Path, keys: AdapterKeys) -> None:
    for one, other in _PAIRS:
        lonely = sorted(keys.parts[one].keys() ^ keys.parts[other].keys())
        if not lonely:
            continue
        has, lacks = (one, other) if lonely[0] in keys.parts[one] else (other, one)
        end = "" if "embedding" in lacks else ".weight"
        total = len(keys.parts[one].keys() | keys.parts[other].keys())
        raise AdapterError(
            tr("the adapter has {has} of a module without its {lacks}", has=has, lacks=lacks),
            file=path,
            tensor=f"{lonely[0]}.{lacks}{end}",
            expected=tr("both halves of {total} modules", total=total),
            found=tr("{n_lonely} with one half only", n_lonely=len(lonely)),
            remedy=tr("the file is incomplete: save or fetch the adapter again"),
        )


def _require_agreement(path: Path, config: AdapterConfig, keys: AdapterKeys) -> None:
    """Weights and configuration must agree on which kinds there are."""
    lora = keys.parts["lora_A"].keys() | keys.parts["lora_embedding_A"].keys()
    expected = {
        "lora_magnitude_vector": ("use_dora", config.use_dora, lora),
        "lora_bias": ("lora_bias", config.lora_bias, keys.parts["lora_A"].keys()),
        "trainable_tokens_delta": (
            "trainable_token_indices",
            bool(config.trainable_token_indices),
            keys.parts["trainable_tokens_delta"].keys() or {""},
        ),
    }
    for part, (detected_by, is_set, modules) in expected.items():
        present = keys.parts[part].keys()
        wrong = sorted(present ^ modules if is_set else present)
        if wrong:
            raise AdapterError(
                tr(
                    "the adapter's weights and its configuration do not agree about {part}",
                    part=part,
                ),
                file=path,
                tensor=f"{wrong[0]}.{part}" if wrong[0] else part,
                expected=tr(
                    'as "{detected_by}" in {name} says',
                    detected_by=detected_by,
                    name=config.path.name,
                ),
                found=tr(
                    "{part} of {n_present} modules, {detected_by} ",
                    part=part,
                    n_present=len(present),
                    detected_by=detected_by,
                )
                + (tr("set") if is_set else tr("not set")),
                remedy=tr(
                    "weights and adapter_config.json are from different runs, or the "
                    "file is incomplete: take both from one place"
                ),
            )


def _build_low_rank(
    path: Path, config: AdapterConfig, module: str, a: LazyTensor, b: LazyTensor
) -> LowRank:
    rank = config.rank(module)
    are_matrices = len(a.shape) == len(b.shape) == 2
    if are_matrices:
        _require_not_sliced(path, module, a, b, rank)
    if not are_matrices or (a.shape[0], b.shape[1]) != (rank, rank):
        raise AdapterError(
            tr("the adapter's matrices and its configuration give different ranks"),
            file=path,
            tensor=f"{module}.lora_A.weight",
            expected=tr(
                "lora_A ({rank}, in) and lora_B (out, {rank}), by {name}",
                rank=rank,
                name=config.path.name,
            ),
            found=tr(
                "lora_A {tuple} and lora_B {tuple_2}", tuple=tuple(a.shape), tuple_2=tuple(b.shape)
            ),
            remedy=tr(
                "the adapter_config.json is from another run: take the one saved "
                "with these weights, since the scaling comes from it"
            ),
        )
    return LowRank(a, b, config.scaling(module))


def _require_not_sliced(path: Path, module: str, a: LazyTensor, b: LazyTensor, rank: int) -> None:
    """FSDP gives each process equal slices of rows; one process's are no adapter."""
    if 0 < a.shape[0] < rank and rank % a.shape[0] == 0 and b.shape[1] == rank:
        raise AdapterError(
            tr("the file holds one process's part of an adapter, as FSDP slices it"),
            file=path,
            tensor=f"{module}.lora_A.weight",
            expected=tr("{rank} rows, as lora_B has columns", rank=rank),
            found=tr("{shape} rows: 1 of {rank} parts", shape=a.shape[0], rank=rank // a.shape[0]),
            remedy=tr(
                "save the adapter again with the full state dict (accelerate: "
                "fsdp_state_dict_type: FULL_STATE_DICT)"
            ),
        )


def _build_row_scale(
    path: Path, keys: AdapterKeys, module: str, low_rank: LowRank
) -> tuple[DoraRowScale, ...]:
    magnitude = keys.parts["lora_magnitude_vector"].get(module)
    if magnitude is None:
        return ()
    _require_shape(path, f"{module}.lora_magnitude_vector", (low_rank.b.rows,), magnitude.shape)
    return (DoraRowScale(magnitude),)


def _build_token_rows(
    path: Path, config: AdapterConfig, module: str, rows: LazyTensor
) -> ReplacedRows:
    indices = config.token_indices(module)
    expected = (len(indices), *rows.shape[1:])
    _require_shape(path, f"{module}.trainable_tokens_delta", expected, rows.shape)
    return ReplacedRows(indices, rows)


def _require_shape(
    path: Path, tensor: str, expected: tuple[int, ...], found: tuple[int, ...]
) -> None:
    if expected != found:
        raise AdapterError(
            tr("a tensor of the adapter has another shape than the rest of the adapter says"),
            file=path,
            tensor=tensor,
            expected=expected,
            found=found,
            remedy=tr(
                "weights and adapter_config.json are from different runs: take both from one place"
            ),
        )
