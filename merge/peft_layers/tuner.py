"""An adapter on a skeleton of its model: PEFT loads it, and merges one module at a time.

What a module's layer makes of a weight is PEFT's own code, in float32 on one thread. Methods that
look at the base's weights when their layers are made (PiSSA, OSF, DeLoRA, ...) get their layer of a
module at the moment when its weight is there, and lose it with the weight.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import AdapterError
from ..layouts.names import without_wrappers
from ..messages import tr
from ..tensors.lazy import LazyTensor
from ..tensors.threads import use_one_torch_thread
from .boft import without_extension
from .config import make_peft_config
from .skeleton import (
    LIBRARY_ERRORS,
    ReadsWeightError,
    build_skeleton,
    is_placeholder,
    make_placeholder,
    raise_on_reads,
)

# The name under which PEFT holds the adapter.
_ADAPTER = "default"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class _Creation:
    """A call of PEFT's that makes the layer of one module."""

    create: Any
    target: torch.nn.Module
    target_name: str
    parent: torch.nn.Module

    def undo(self) -> None:
        """Put the module back in its layer's place, without weights."""
        setattr(self.parent, self.target_name, self.target)
        for name, parameter in self.target.named_parameters(recurse=False):
            setattr(self.target, name, make_placeholder(parameter.shape))


class _Holder(torch.nn.Module):
    """What PEFT's functions on state dicts take for a ``PeftModel``."""

    def __init__(self, tuner: Any) -> None:
        super().__init__()
        self.base_model = tuner
        self.peft_config = tuner.peft_config
        self.config = tuner.model.config
        self.active_adapter = _ADAPTER

    def get_base_model(self) -> torch.nn.Module:
        """The model below the adapter."""
        return self.base_model.model  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)


def open_tuner(
    weights: Path,
    config: Path,
    fields: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor],
    model: Mapping[str, Any],
    rows: int,
    harmless: Collection[str],
) -> PeftTuner:
    """Let PEFT load an adapter for the model of a ``config.json`` with ``rows`` embeddings.

    ``weights`` and ``config`` are the adapter's files, ``fields`` and ``tensors`` what is in them;
    ``harmless`` are fields that change nothing.
    """
    skeleton = build_skeleton(model, rows)
    names = [name for name, _ in skeleton.named_modules() if name]
    return PeftTuner(weights, make_peft_config(config, fields, names, harmless), skeleton, tensors)


class PeftTuner:
    """PEFT's layers of one adapter on a skeleton, with the adapter's tensors in them.

    ``modules`` are the names of the parameters that PEFT changes, by module. Raises
    ``AdapterError`` for an adapter that PEFT refuses, tensors that nothing takes, and tensors that
    are missing.
    """

    def __init__(
        self,
        path: Path,
        config: Any,
        skeleton: torch.nn.Module,
        tensors: Mapping[str, LazyTensor],
    ) -> None:
        self._path, self._tensors = path, tensors
        self._postponed: dict[str, _Creation] = {}
        self._whole_start = False
        with self._in_peft():
            tuner = self._inject(config, skeleton)
            _give_memory(tuner)
            self._holder = _Holder(tuner)
            self.modules = self._find_modules(tuner)
        self._load(self._select_tensors())
        self._require_complete(tuner)
        self._require_mergeable()

    def tensors_of(self, module: str) -> tuple[LazyTensor, ...]:
        """The adapter's tensors of one module."""
        return tuple(t for key, t in self._tensors.items() if _is_below(key, module))

    def merge(self, module: str, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What PEFT makes of a module's parameters, float32 and whole, which it may overwrite."""
        with self._in_peft(module), torch.no_grad():
            if module in self._postponed:
                merged = self._merge_postponed(module, values)
            else:
                layer = _copy_layer(self._holder.get_base_model().get_submodule(module))
                merged = _merge_layer(layer, values)
        shapes = {name: value.shape for name, value in values.items()}
        wrong = [name for name, value in merged.items() if value.shape != shapes.get(name)]
        if wrong:
            raise AdapterError(
                tr("PEFT's merge gives a tensor that the base does not have in this shape"),
                file=self._path,
                tensor=f"{module}.{wrong[0]}",
                found=tuple(merged[wrong[0]].shape),
                remedy=tr("give a base whose layers have biases, if this is one"),
            )
        return merged

    def find_factors(
        self, module: str, parameter: str
    ) -> tuple[torch.Tensor, torch.Tensor, float] | None:
        """B (experts, out, r), A (experts, r, in) and the scaling of a LoRA on a stack of matrices
        ``(experts, out, in)``; None where PEFT has no plain LoRA on this parameter.
        """
        from peft.tuners.lora.layer import ParamWrapper

        layer = self._holder.get_base_model().get_submodule(module)
        while isinstance(layer, ParamWrapper) and layer.parameter_name != parameter:
            layer = layer.base_layer
        if not isinstance(layer, ParamWrapper) or _ADAPTER in layer.lora_variant:
            return None
        with self._in_peft(module), torch.no_grad():
            b, a, scaling = layer.get_delta_factors(_ADAPTER)
        return b.detach(), a.detach(), float(scaling)

    def _inject(self, config: Any, skeleton: torch.nn.Module) -> Any:
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS
        from peft.tuners.tuners_utils import BaseTuner

        kind = TUNERS.get(config.peft_type)
        if kind is None or not issubclass(kind, BaseTuner):
            raise NotImplementedError(
                tr("{peft_type} has no layers to merge", peft_type=config.peft_type.value)
            )
        tuner = self._watch(kind)(skeleton, {_ADAPTER: config}, _ADAPTER)
        tuner._cast_adapter_dtype(adapter_name=_ADAPTER, autocast_adapter_dtype=True)
        tuner._check_merge_allowed()
        return tuner

    def _watch(self, kind: Any) -> Any:
        """PEFT's class, which leaves out the layers that would read a weight of the skeleton."""
        outer = self

        class Watching(kind):  # type: ignore[misc]
            def _pre_injection_hook(self, *args: Any) -> None:
                try:
                    with raise_on_reads():
                        super()._pre_injection_hook(*args)
                except ReadsWeightError:  # all that it makes must then be in the file
                    outer._whole_start = True
                    super()._pre_injection_hook(*args)

            def _create_and_replace(
                self, config: Any, name: Any, target: Any, target_name: Any, parent: Any, **how: Any
            ) -> None:
                def create() -> None:
                    kind._create_and_replace(self, config, name, target, target_name, parent, **how)

                try:
                    with raise_on_reads():
                        create()
                except ReadsWeightError:
                    creation = _Creation(create, target, target_name, parent)
                    creation.undo()
                    outer._postponed[how["current_key"]] = creation

        return Watching

    def _find_modules(self, tuner: Any) -> dict[str, tuple[str, ...]]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        modules: dict[str, tuple[str, ...]] = {}
        for name in tuner.targeted_module_names:
            layer = tuner.model.get_submodule(name)
            base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
            modules[name] = tuple(key for key, _ in base.named_parameters(recurse=False))
            if base is not layer and type(layer).merge is BaseTunerLayer.merge:
                raise NotImplementedError("its layers cannot be merged")
        for key in getattr(tuner, "targeted_parameter_names", ()):
            name, _, parameter = key.rpartition(".")
            modules[name] = (*modules.get(name, ()), parameter)
        return modules

    def _select_tensors(self) -> dict[str, LazyTensor]:
        """The adapter's tensors, less those of layers that are made later."""
        postponed = tuple(f"{_PREFIX}{name}." for name in self._postponed)
        return {k: t for k, t in self._tensors.items() if not k.startswith(postponed)}

    def _load(self, tensors: Mapping[str, LazyTensor]) -> None:
        from peft import set_peft_model_state_dict

        state = {name: tensor.read() for name, tensor in tensors.items()}
        if not state:
            return
        with self._in_peft():
            result = set_peft_model_state_dict(self._holder, state, _ADAPTER)
        if result.unexpected_keys:
            raise AdapterError(
                tr("the adapter holds a tensor for which PEFT has no place in this base"),
                file=self._path,
                tensor=str(result.unexpected_keys[0]),
                expected=tr("the tensors that adapter_config.json describes"),
                found=tr(
                    "{n_unexpected_keys} others", n_unexpected_keys=len(result.unexpected_keys)
                ),
                remedy=tr(
                    "give the base that the adapter was trained on, and both files of one run"
                ),
            )

    def _require_complete(self, tuner: Any) -> None:
        from peft import get_peft_model_state_dict

        with self._in_peft():
            saved = get_peft_model_state_dict(
                self._holder, adapter_name=_ADAPTER, save_embedding_layers=False
            )
        missing = [key for key in saved if key not in self._tensors]
        missing += [f"{_PREFIX}{name}" for name in self._postponed if not self.tensors_of(name)]
        if self._whole_start:
            kept = [n for n, _ in tuner.named_buffers() if not n.startswith("model.")]
            names = (f"base_model.{n}".removesuffix(f".{_ADAPTER}") for n in kept)
            missing += [name for name in names if name not in self._tensors]
        if missing:
            raise AdapterError(
                tr("the adapter lacks tensors that PEFT saves for what it trained"),
                file=self._path,
                tensor=missing[0],
                expected=tr("a tensor for everything that adapter_config.json names in this base"),
                found=tr("{n_missing} are missing", n_missing=len(missing)),
                remedy=tr(
                    "the file is incomplete, or adapter_config.json is of another run: "
                    "take both from the run that trained the adapter"
                ),
            )

    def _require_mergeable(self) -> None:
        """Let PEFT begin to merge a layer of each kind, up to the point where it needs a weight."""
        kinds: dict[tuple[type, tuple[str, ...]], str] = {}
        for name, parameters in self.modules.items():
            if name not in self._postponed:
                layer = self._holder.get_base_model().get_submodule(name)
                kinds.setdefault((type(layer), parameters), name)
        for name in kinds.values():
            layer = _copy_layer(self._holder.get_base_model().get_submodule(name))
            with (
                self._in_peft(name),
                torch.no_grad(),
                suppress(ReadsWeightError),
                raise_on_reads(),
            ):
                _merge_layer(layer, {})

    def _merge_postponed(
        self, module: str, values: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Make the module's layer with its weight there, load it, merge it, and undo all that."""
        creation = self._postponed[module]
        try:
            _set_parameters(creation.target, values)
            creation.create()
            own = {
                key: tensor
                for key, tensor in self._tensors.items()
                if _is_below(key, module) or not key.startswith(_PREFIX)
            }
            self._load(own)
            return _merge_layer(self._holder.get_base_model().get_submodule(module), {})
        finally:
            creation.undo()

    @contextmanager
    def _in_peft(self, module: str | None = None) -> Iterator[None]:
        """Run PEFT's code: on one thread, with random numbers of its own, and errors told."""
        with (
            use_one_torch_thread(),
            torch.random.fork_rng(devices=[]),
            without_extension(self._tensors),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            try:
                yield
            except LIBRARY_ERRORS as error:
                raise self._explain(error, module) from None

    def _explain(self, error: Exception, module: str | None) -> AdapterError:
        from .installed import get_versions

        return AdapterError(
            tr("PEFT cannot merge this adapter into this base"),
            file=self._path,
            tensor=module,
            expected=tr("an adapter that {versions} can merge", versions=get_versions()),
            found=f"{type(error).__name__}: {error}"[:500],
            remedy=tr(
                "give the base that the adapter was trained on; if PEFT's own "
                "merge_and_unload refuses it too, use it unmerged"
            ),
        )


def split_tensors(
    peft_type: str, tensors: Mapping[str, LazyTensor]
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Tensors for PEFT, by the names under which it saves them, and those merged without it.

    PEFT's are called by the method's prefix below a module, or are the method's own, beside the
    model. Whole modules, trained biases and trained tokens are as with LoRA.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS

    prefix = getattr(TUNERS.get(peft_type), "prefix", "")
    part = re.compile(rf"(^|\.){re.escape(prefix)}")
    theirs: dict[str, LazyTensor] = {}
    others: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = without_wrappers(key)
        is_theirs = part.search(name) or not name.startswith("base_model.model.")
        (theirs if is_theirs else others)[name] = tensor
    return theirs, others


def _is_below(key: str, module: str) -> bool:
    return key.startswith(f"{_PREFIX}{module}.")


def _give_memory(tuner: Any) -> None:
    """Give memory to an adapter's own tensors that PEFT copied from placeholders."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in tuner.model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        base = {id(parameter) for parameter in layer.get_base_layer().parameters()}
        for parameter in layer.parameters():
            if id(parameter) not in base and 0 in parameter.stride():
                parameter.data = parameter.data.contiguous()


def _copy_layer(layer: Any) -> Any:
    """A copy of a layer whose tensors are the layer's own, to be merged in its place."""
    tensors = (*layer.parameters(), *layer.buffers())
    return copy.deepcopy(layer, {id(tensor): tensor for tensor in tensors})


def _set_parameters(module: torch.nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values.items():
        setattr(module, name, torch.nn.Parameter(value, requires_grad=False))


def _merge_layer(layer: Any, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Merge a layer as PEFT's ``merge_and_unload`` does, with ``values`` for its base's weights."""
    _set_parameters(layer.get_base_layer(), values)
    if hasattr(layer, "unload_and_optionally_merge_module"):
        merged = layer.unload_and_optionally_merge_module(
            merge=True, safe_merge=False, adapter_names=None
        )
    else:
        layer.merge(safe_merge=False, adapter_names=None)
        merged = layer.get_base_layer()
    parameters = merged.named_parameters(recurse=False)
    return {name: value.data for name, value in parameters if not is_placeholder(value)}
