"""What a PEFT adapter does to each tensor, read a second time and by other code than the merge's.

From PEFT's documented checkpoint format alone: names of keys, ``adapter_config.json``, and which
factor is which. Nothing here comes from ``merge.deltas``, so a mistake there is not repeated here.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AdapterError
from ..formats import open_container
from ..messages import tr
from ..storage.offload import Offload
from ..storage.zipped_adapter import ADAPTER_CONFIG_NAME
from ..tensors.lazy import LazyTensor
from ..untrusted.safe_regex import compile_matcher
from ..untrusted.strict_json import read_json

if TYPE_CHECKING:
    from .by_peft import PeftModules

_WEIGHTS = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model_fsdp.bin",
    "adapters.safetensors",
)
# LongLoRA's embeddings and norms: they take the place of the base's, then the LoRA is added.
_LONG_LORA = "trainable_params.bin"
# Rows behind the base's: vLLM's, by the names of both sides, and Open-Assistant's embeddings.
_NEW_ROWS = ("new_embeddings.safetensors", "extra_embeddings.pt")
_WEIGHT_SUFFIXES = (".bin", ".pt", ".pth", ".safetensors", ".ckpt", ".gguf", ".npz")
_TRAINER_STATE = re.compile(
    r"(optimizer|scheduler|rng_state|random_states|scaler|training_args|sampler)"
    r"|\d+_adapters\.safetensors|ggml-adapter-model\."
)
_WRAPPED = re.compile(
    r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module|pretrained_model)\."
)
_NUMBERED = re.compile(r"adapter_model-\d{5}-of-\d{5}\.(safetensors|bin)")
_MLX = "adapters.safetensors"
_KEY = re.compile(
    r"(?P<module>.+?)\.(?:token_adapter\.)?(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector|modules_to_save|original_module|base_layer|trainable_tokens_delta"
    r"|trainable_tokens_original)(?:\.(?P<rest>.+))?"
)
# What an adapter of LoRA sets that other code than this merges: PEFT's, as for all other methods.
_PEFT_FIELDS = (
    *("target_parameters", "use_qalora", "use_bdlora", "kasa_config", "velora_config"),
    "monteclora_config",
)
_PEFT_STARTS = ("pissa", "olora")
_PARTS_BY_NAME = ("products", "whole", "magnitudes", "rows", "vectors")
_NOT_BY_PEFT = ("whole", "modules_to_save", "trainable_tokens_delta")
_UNUSED = ("original_module", "trainable_tokens_original")


@dataclass(frozen=True)
class Product:
    """``scaling * B A``, or with ``is_transposed`` its transpose: for embeddings, whose A is
    (r, rows) and B (dim, r), and for layers that keep their matrices transposed.
    """

    a: LazyTensor
    b: LazyTensor
    scaling: float
    is_transposed: bool = False

    @property
    def rows(self) -> int:
        """Rows of the tensor that this is added to."""
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that this is added to."""
        shape = (self.b.shape[0], *self.a.shape[1:])
        return shape[::-1] if self.is_transposed else shape


@dataclass
class AdapterContents:
    """An adapter's parts by the name of the tensor that they change."""

    folder: Path
    weights: Path
    config: Mapping[str, Any]
    products: dict[str, Product] = field(default_factory=dict)
    magnitudes: dict[str, LazyTensor] = field(default_factory=dict)
    whole: dict[str, LazyTensor] = field(default_factory=dict)
    rows: dict[str, tuple[tuple[int, ...], LazyTensor]] = field(default_factory=dict)
    vectors: dict[str, tuple[LazyTensor, float]] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)
    unread: tuple[str, ...] = ()
    new_rows: dict[str, LazyTensor] = field(default_factory=dict)
    by_key: Mapping[str, LazyTensor] = field(default_factory=dict)
    peft: PeftModules | None = None

    @property
    def method(self) -> str | None:
        """The method by whose own code PEFT merges the adapter; None for what is computed here."""
        kind = self.config.get("peft_type", "LORA")
        if kind not in ("LORA", "TRAINABLE_TOKENS"):
            return str(kind)
        is_set = (self.config.get(name) not in (None, False, [], "") for name in _PEFT_FIELDS)
        start = str(self.config.get("init_lora_weights")).lower()
        return tr("a variant of LoRA") if any(is_set) or start in _PEFT_STARTS else None

    def may_change_by_peft(self, name: str) -> bool:
        """Whether PEFT's merge may change a tensor: the file has parts of its module, or the
        configuration names it, or does not say in names what it is for.
        """
        if self.method is None:
            return False
        module, told = name.rpartition(".")[0], self.config.get("target_modules")
        keys = [_strip_name(key) for key in self.by_key]
        if any(key.startswith(f"{module}.") and key != name for key in keys):
            return True
        if self.config.get("target_parameters") and ".experts." in name:
            return True  # the file has them stacked
        if isinstance(told, list) and told != ["all-linear"]:
            return f".{module}".endswith(tuple(f".{target}" for target in told))
        return not any(key.startswith("model.layers.") for key in keys)

    def trains(self, name: str) -> bool:
        """Whether a whole tensor was trained; otherwise it is a copy of the base's."""
        saved, bias = self.config.get("modules_to_save"), self.config.get("bias")
        path = name.split(".")
        parents = [".".join(path[:count]) for count in range(1, len(path))]
        named = any(parent.endswith(tuple(saved or ())) for parent in parents)
        return name in self.trained or named or (bias in ("all", "lora_only") and "bias" in name)

    @property
    def ties(self) -> bool:
        """Whether the adapter asks that tied embeddings stay tied."""
        return bool(self.config.get("ensure_weight_tying"))

    def count_vocabulary_rows(self, names: Sequence[str]) -> int | None:
        """Rows of the vocabulary that the adapter was trained with; None where it has no part in
        the tensors of these names.
        """
        rows = [self.whole[name].rows for name in names if name in self.whole]
        rows += [self.products[name].rows for name in names if name in self.products]
        return rows[0] if rows else None

    def list_shapes(self, name: str) -> Iterator[tuple[int, ...]]:
        """The shapes of what the adapter puts in a tensor's place, or adds to it."""
        if name in self.whole:
            yield self.whole[name].shape
        if name in self.products:
            yield self.products[name].shape
        if name in self.vectors:
            yield self.vectors[name][0].shape

    def touches(self, name: str) -> bool:
        """Whether the adapter changes the tensor."""
        return any(name in part for part in (self.products, self.whole, self.rows, self.vectors))


def adopt_names(contents: AdapterContents, names: Container[str]) -> AdapterContents:
    """The adapter under the base's names, where they differ by ``model.`` in front alone."""
    parts = {part: getattr(contents, part) for part in _PARTS_BY_NAME}
    given = {name for part in parts.values() for name in part}
    if all(name in names for name in given):
        return contents
    without = {name: re.sub("^model[.]", "", name) for name in given}
    behind = {name: name if name in names else f"model.{name}" for name in given}
    for new in (behind, without):
        if all(name in names for name in new.values()):
            renamed: dict[str, Any] = {
                part: {new[name]: value for name, value in values.items()}
                for part, values in parts.items()
            }
            trained = {new.get(name, name) for name in contents.trained}
            return replace(contents, **renamed, trained=trained)
    return contents


def read_adapter(folder: Path, weight: float, offload: Offload | None = None) -> AdapterContents:
    """Sort an adapter's tensors by what they do. ``weight`` is the user's factor on what is added.

    Raises ``AdapterError`` for a folder that holds no adapter.
    """
    numbered = sorted(path for path in folder.glob("adapter_model-*") if _NUMBERED.match(path.name))
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if numbered and (path is None or path.name not in _WEIGHTS[:2]):
        path = numbered[0]
    if path is None or not (folder / ADAPTER_CONFIG_NAME).is_file():
        raise AdapterError(
            tr("the folder holds no adapter to check against"),
            file=folder,
            expected=tr(
                "{adapter_config_name} and {weights} or {weights_2}",
                adapter_config_name=ADAPTER_CONFIG_NAME,
                weights=_WEIGHTS[0],
                weights_2=_WEIGHTS[1],
            ),
            remedy=tr("give the adapter that was merged"),
        )
    files = numbered if path in numbered else [path]
    tensors = {k: t for file in files for k, t in open_container(file, offload).items()}
    contents = AdapterContents(
        folder, path, _to_lora_fields(read_json(folder / ADAPTER_CONFIG_NAME))
    )
    parts = _sort_by_part(_rename_mlx_factors(tensors) if path.name == _MLX else tensors)
    contents.by_key = tensors
    if contents.method is not None:
        parts = {kind: parts.get(kind, {}) for kind in _NOT_BY_PEFT}
    for kind in ("base_layer", "whole", "modules_to_save"):  # the trained copy wins
        contents.whole |= parts.get(kind, {})
    contents.trained |= parts.get("modules_to_save", {}).keys()
    replaced = folder / _LONG_LORA
    if replaced.is_file():
        for key, tensor in open_container(replaced, offload).items():
            name = _strip_name(key)
            contents.whole.setdefault(name, tensor)
            contents.trained.add(name)
    for name in _NEW_ROWS:
        if (folder / name).is_file():
            for key, tensor in open_container(folder / name, offload, "input").items():
                side = "lm_head.weight" if key.startswith("output") else "model.embed_tokens.weight"
                contents.new_rows[side] = tensor
    contents.unread = tuple(_find_unread(folder, files))
    _add_products(contents, parts, weight)
    for module, tensor in parts.get("lora_magnitude_vector", {}).items():
        contents.magnitudes[f"{module}.weight"] = tensor
    for module, tensor in parts.get("trainable_tokens_delta", {}).items():
        indices = _find_token_indices(contents.config.get("trainable_token_indices"), module)
        contents.rows[f"{module}.weight"] = (indices, tensor)
    return contents


def _to_lora_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration in LoRA's words: of trainable tokens alone, and of mlx-lm."""
    if config.get("peft_type") == "TRAINABLE_TOKENS":
        return config | {"trainable_token_indices": config.get("token_indices")}
    numbers = config.get("lora_parameters")
    if isinstance(numbers, dict) and "peft_type" not in config:
        rank = int(numbers["rank"])
        return {"r": rank, "lora_alpha": float(numbers["scale"]) * rank}
    return config


def _rename_mlx_factors(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """mlx-lm multiplies from the right: its factors are PEFT's, transposed, under other names."""
    named = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
    renamed = {}
    for key, tensor in tensors.items():
        head, _, tail = key.rpartition(".")
        renamed[f"{head}.{named[tail]}" if tail in named else key] = (
            tensor.transposed() if tail in named else tensor
        )
    return renamed


def _find_unread(folder: Path, weights: Sequence[Path]) -> Iterator[str]:
    """Names of weight files beside an adapter's own that are no state of a trainer."""
    for path in sorted(folder.iterdir()):
        is_weights = path.suffix.lower() in _WEIGHT_SUFFIXES and path.is_file()
        same = path.name in _WEIGHTS[:2] and weights[0].name in _WEIGHTS[:2]
        others = (_LONG_LORA, *_NEW_ROWS, "value_head.bin", "value_head.safetensors")
        is_read = same or path in weights or path.name in others
        if is_weights and not is_read and not _TRAINER_STATE.match(path.name):
            yield path.name


def _strip_name(key: str) -> str:
    return _WRAPPED.sub("", key).removeprefix("base_model.model.")


def _sort_by_part(tensors: Mapping[str, LazyTensor]) -> dict[str, dict[str, LazyTensor]]:
    """Tensors by part and by module, whole tensors by their own name."""
    names = {_strip_name(key): key for key in tensors}
    matches = {name: _KEY.fullmatch(name) for name in names}
    adapters = {"default"}
    for match in matches.values():
        if match and match["part"] == "lora_A" and (match["rest"] or "").count(".") == 1:
            adapters.add(match["rest"].partition(".")[0])
    parts: dict[str, dict[str, LazyTensor]] = {}
    for name, key in names.items():
        match, tensor = matches[name], tensors[key]
        if match is None:
            parts.setdefault("whole", {})[name] = tensor
            continue
        part, rest = match["part"], match["rest"] or ""
        first, _, tail = rest.partition(".")
        rest = tail if first in adapters else rest
        if part in _UNUSED:
            continue
        if part in ("modules_to_save", "base_layer"):
            parts.setdefault(part, {})[f"{match['module']}.{rest}"] = tensor
        elif part == "lora_B" and rest == "bias":
            parts.setdefault("lora_bias", {})[match["module"]] = tensor
        else:
            parts.setdefault(part, {})[match["module"]] = tensor
    return parts


def _add_products(
    contents: AdapterContents, parts: Mapping[str, Mapping[str, LazyTensor]], weight: float
) -> None:
    config = contents.config
    letters = (("lora_A", "lora_B", False), ("lora_embedding_A", "lora_embedding_B", True))
    for letter_a, letter_b, _ in letters:
        for module, a in parts.get(letter_a, {}).items():
            _require_product(contents, module, a, parts.get(letter_b, {}).get(module))
    ranks = {m: a.shape[0] for letter, *_ in letters for m, a in parts.get(letter, {}).items()}
    alphas = _compute_alphas(config, ranks)
    for letter_a, letter_b, embedding in letters:
        for module, a in parts.get(letter_a, {}).items():
            root = a.shape[0] ** 0.5 if config.get("use_rslora") else a.shape[0]
            _require_trained(contents, module, alphas[module] / root)
            scaling = weight * alphas[module] / root
            b = parts[letter_b][module]
            contents.products[f"{module}.weight"] = Product(a, b, scaling, embedding)
            if not embedding and module in parts.get("lora_bias", {}):
                contents.vectors[f"{module}.bias"] = (parts["lora_bias"][module], scaling)


def _require_trained(contents: AdapterContents, module: str, scaling: float) -> None:
    """Raise ``AdapterError`` for a scaling of nothing, or one in the millions."""
    if not 0 < abs(scaling) <= 1_000_000:
        raise AdapterError(
            tr("the adapter's configuration gives a scaling with which nobody trains"),
            file=contents.folder / ADAPTER_CONFIG_NAME,
            tensor=module,
            found=f"{scaling:g}",
            remedy=tr("write the lora_alpha of the training into that file, and merge again"),
        )


def _require_product(
    contents: AdapterContents, module: str, a: LazyTensor, b: LazyTensor | None
) -> None:
    """Raise ``AdapterError`` unless the two factors of a module can be multiplied."""
    shapes = a.shape, b.shape if b is not None else None
    fits = b is not None and len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1]
    if not fits:
        raise AdapterError(
            tr("the adapter has no two factors that can be multiplied"),
            file=contents.weights,
            tensor=module,
            expected=tr("A of shape (r, columns) and B of shape (rows, r)"),
            found=tr(
                "A {shapes} and B {shapes_2}", shapes=shapes[0], shapes_2=shapes[1] or "missing"
            ),
            remedy=tr("give the adapter that was merged"),
        )


def _compute_alphas(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
    """``lora_alpha`` of each module, by the newest of PEFT's rules that gives the modules' ranks.

    A recorded release has one rule. Those until 0.13 search both patterns at once.
    """
    match = re.match(r"(\d+)\.(\d+)", str(config.get("peft_version") or ""))
    release = (int(match[1]), int(match[2])) if match else None
    rules: tuple[tuple[str, bool], ...]
    rules = ((r"(.*\.)?(KEY)$", False), (r".*\.KEY$", False), (r".*\.KEY$", True))
    if release is not None:
        rules = (rules[0 if release > (0, 14) else 1 if release == (0, 14) else 2],)
    found: dict[str, float] = {}
    for wrapped, joint in rules:
        alphas, fits = {}, True
        for module, rank in ranks.items():
            rank_there, alpha = _match_patterns(config, module, wrapped, joint)
            fits = fits and rank_there in (None, rank)
            alphas[module] = alpha
        found = found or alphas
        if fits:
            return alphas
    return found


def _match_patterns(
    config: Mapping[str, Any], module: str, wrapped: str, joint: bool
) -> tuple[int | None, float]:
    """Rank and alpha of a module; the rank is None where the configuration has none."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}

    def first(*patterns: str) -> str:
        fitting = (p for p in patterns if compile_matcher(p, wrapped)(module))
        return next(fitting, module)

    rank_key = first(*ranks, *alphas) if joint else first(*ranks)
    alpha_key = rank_key if joint else first(*alphas)
    default = config.get("lora_alpha")
    default = 8 if default is None else default  # PEFT's default
    return ranks.get(rank_key, config.get("r")), float(alphas.get(alpha_key, default))


def _find_token_indices(given: Any, module: str) -> tuple[int, ...]:
    if isinstance(given, dict):
        named = (v for name, v in given.items() if module == name or module.endswith(f".{name}"))
        given = next(named, next(iter(given.values()), ()))
    return tuple(given or ())
