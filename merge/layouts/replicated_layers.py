"""Layer replication: a model whose layers are copies of a base's, some of them more than once.

PEFT's ``layer_replication`` of ``[[0, 4], [2, 5]]`` makes of layers 0 to 4 the new layers 0, 1, 2,
3, 2, 3, 4 (``replicate_layers`` in PEFT's ``tuners_utils.py``). Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from ..messages import join, tr

FIELD = "layer_replication"
# A range of layers, from the first to before the last.
LayerRange = tuple[int, int]
# Beyond every model; each layer of the result is written in full.
_MOST_LAYERS = 1000
# Models in which a layer's place changes nothing but what ``layer_types`` says of it.
_UNIFORM = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "phi3", "baichuan"),
    "internlm2",
)
_OF_THIS_RUN = tr("take adapter_config.json from the run that trained the adapter")


def read_layer_ranges(fields: Mapping[str, Any], path: Path) -> tuple[LayerRange, ...]:
    """The ranges of ``layer_replication`` in an ``adapter_config.json``, empty where it is not set.

    Raises ``AdapterError`` for what is no list of ranges, and for more layers than any model has.
    """
    value = fields.get(FIELD) or ()
    is_list = isinstance(value, (list, tuple))
    if not is_list or not all(map(_is_range, value)):
        raise AdapterError(
            tr("the adapter configuration repeats layers in a way that is no list of ranges"),
            file=path,
            expected=tr(
                '"{field}": pairs [first, end) of layers from 0 on, such as [[0, 4], [2, 5]]',
                field=FIELD,
            ),
            found=f'"{FIELD}": {value!r}'[:200],
            remedy=_OF_THIS_RUN,
        )
    ranges = tuple((first, end) for first, end in value)
    if (count := sum(end - first for first, end in ranges)) > _MOST_LAYERS:
        raise AdapterError(
            tr("the adapter configuration repeats layers until there are more than any model has"),
            file=path,
            expected=tr("at most {most_layers} layers", most_layers=_MOST_LAYERS),
            found=tr('"{field}" of {count} layers', field=FIELD, count=count),
            remedy=_OF_THIS_RUN,
        )
    return ranges


def _is_range(value: object) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    numbers = all(isinstance(end, int) and not isinstance(end, bool) for end in value)
    return numbers and 0 <= value[0] < value[1]


def list_sources(
    ranges: tuple[LayerRange, ...], config: Mapping[str, Any], path: Path
) -> tuple[int, ...]:
    """For each layer of the new model, the number of the base's layer that it is a copy of.

    ``config`` is the base's, ``path`` the adapter's configuration. Raises ``AdapterError`` for
    layers that the base does not have.
    """
    count = config.get("num_hidden_layers")
    known = count if isinstance(count, int) else 0
    if beyond := [f"[{first}, {end}]" for first, end in ranges if end > known]:
        raise AdapterError(
            tr("the adapter repeats layers that the base model does not have"),
            file=path,
            expected=tr("layers of a base of {count}", count=count),
            found=tr('"{field}" with {beyond}', field=FIELD, beyond=", ".join(beyond)),
            remedy=tr("give the base that the adapter was trained on"),
        )
    return tuple(layer for first, end in ranges for layer in range(first, end))


def replicate_config(
    config: Mapping[str, Any], sources: tuple[int, ...], path: Path
) -> dict[str, Any]:
    """``config.json`` of the new model: the number of its layers, and what it lists for each.

    Raises ``AdapterError`` for a model in which a layer's place may say what it computes.
    """
    if odd := list(_iter_obstacles(config)):
        raise AdapterError(
            tr(
                "the adapter repeats layers of the base, and in this base a layer "
                "may compute something else in another place"
            ),
            file=path,
            expected=tr(
                "a base of model_type {uniform}, with the same attention in each "
                "layer or layer_types of each",
                uniform=", ".join(_UNIFORM),
            ),
            found=join("; ", odd),
            remedy=tr("use it unmerged, with PEFT"),
        )
    changed = {**config, "num_hidden_layers": len(sources)}
    if types := config.get("layer_types"):
        changed["layer_types"] = [types[source] for source in sources]
    return changed


def _iter_obstacles(config: Mapping[str, Any]) -> Iterator[str]:
    """What in a configuration lets a layer compute something else in another place."""
    if (kind := config.get("model_type")) not in _UNIFORM:
        yield f'"model_type": {kind!r:.100}'
    if config.get("use_sliding_window"):
        yield tr('"use_sliding_window" from the layer "max_window_layers" on')
    types, layers = config.get("layer_types") or [], config.get("num_hidden_layers")
    if not isinstance(types, list) or len(types) not in (0, layers):
        yield tr('"layer_types" for other layers than the {layers} of the model', layers=layers)
