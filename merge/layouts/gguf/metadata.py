"""The metadata of a GGUF file, as llama.cpp's ``convert_hf_to_gguf.py`` writes them.

What the ``gguf`` package can read itself (names, sampling, special tokens, the chat template) it
reads from the documents that a Hugging Face folder of the same model would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ...errors import LayoutError
from ...messages import tr
from ...untrusted.value_kinds import NO_NEGATIVE, OBJECT, ValueKinds, require_kinds
from ...user_paths import expand_user
from ..config import LlamaShape, get_rope_scaling, get_rope_theta
from ..mixtral import MixtralShape
from .base import KeptMetadata
from .vocabulary import GgufTokenizer, add_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter, Metadata

# What transformers takes a LLaMA's context to be that does not say it.
_CONTEXT_LENGTH = 2048
# What the package reads of config.json beside what is written here.
_READ_BY_THE_PACKAGE: ValueKinds = {
    **{f"{kind}_token_id": NO_NEGATIVE for kind in ("unk", "sep", "cls", "mask")},
    "text_config": OBJECT,
}


@dataclass(frozen=True)
class Description:
    """What is said of a model beside its tensors.

    ``config`` is from the file ``source``, and its values are of their kinds
    (``config.require_values``). ``documents`` are those of a Hugging Face folder. ``name`` is what
    the model is called, and ``sources`` are the names of the models that it was made from.
    ``kept`` is what a base in GGUF says, where there is one.
    """

    config: Mapping[str, Any]
    source: Path
    shape: LlamaShape
    rows: int
    tokenizer: GgufTokenizer
    documents: Mapping[str, bytes]
    name: str
    sources: Sequence[str]
    kept: KeptMetadata | None = None

    def add_to(
        self, writer: GGUFWriter, file_type: str, more: Mapping[str, int | str], by_quantizer: bool
    ) -> None:
        """Add every key, in the order in which llama.cpp's converter does.

        With ``by_quantizer`` the two that llama.cpp's quantizer sets anew come last, as there, and
        after them ``more``.

        Raises ``LayoutError`` for what ``config.json`` must say for that and does not.
        """
        from gguf import GGML_QUANT_VERSION, GGUFType, Keys, LlamaFileType

        require_kinds(self.config, _READ_BY_THE_PACKAGE, self.source)
        with TemporaryDirectory() as parent:
            folder = Path(parent) / (Path(self.name).name or "model")
            folder.mkdir()
            for name, data in self.documents.items():
                (folder / name).write_bytes(data)
            writer.add_type(GGUFType.MODEL)
            self._build_general(writer, folder).set_gguf_meta_model(writer)
            if self.kept is not None and self.kept.is_described:
                self.kept.add_hyperparameters(writer)
            else:
                self._add_hyperparameters(writer)
            writer.add_file_type(LlamaFileType[file_type])
            writer.add_vocab_size(self.rows)
            writer.add_rope_dimension_count(self.shape.head_dim)
            writer.add_quantization_version(GGML_QUANT_VERSION)
            add_vocabulary(writer, folder, self.tokenizer, self.rows)
            if self.kept is not None:
                self.kept.add_others(writer)
        if by_quantizer:
            values = writer.kv_data[0]
            for key in (Keys.General.QUANTIZATION_VERSION, Keys.General.FILE_TYPE):
                values[key] = values.pop(key)
        for key, value in more.items():
            if isinstance(value, int):
                writer.add_uint32(key, value)
            else:
                writer.add_string(key, value)

    def _build_general(self, writer: GGUFWriter, folder: Path) -> Metadata:
        from gguf import Metadata, size_label

        counts = writer.get_total_parameter_count()
        metadata = Metadata.load(None, folder, None, counts[0])
        metadata.name = metadata.name or folder.name
        metadata.size_label = metadata.size_label or size_label(*counts)
        metadata.base_models = metadata.base_models or self._describe_sources()
        # Current llama.cpp reads these two also under transformers' names.
        generation = Metadata.load_generation_config(folder)
        if metadata.sampling_temp is None:
            metadata.sampling_temp = generation.get("temperature")
        if metadata.sampling_penalty_repeat is None:
            metadata.sampling_penalty_repeat = generation.get("repetition_penalty")
        return metadata

    def _describe_sources(self) -> list[dict[str, str]]:
        described = [_describe_source(name) for name in self.sources]
        own = self.kept.describe_base() if self.kept is not None else {}
        return [own, *described[1:]] if own else described

    @property
    def context_length(self) -> int:
        """How many tokens the model was made for."""
        return int(self.config.get("max_position_embeddings") or _CONTEXT_LENGTH)

    def _add_hyperparameters(self, writer: GGUFWriter) -> None:
        config, shape = self.config, self.shape
        writer.add_block_count(shape.num_hidden_layers)
        writer.add_context_length(self.context_length)
        writer.add_embedding_length(shape.hidden_size)
        writer.add_feed_forward_length(shape.intermediate_size)
        writer.add_head_count(shape.num_attention_heads)
        writer.add_head_count_kv(shape.num_key_value_heads)
        self._add_scaling(writer, get_rope_scaling(config) or {})
        writer.add_rope_freq_base(get_rope_theta(config))
        writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
        if isinstance(shape, MixtralShape):
            writer.add_expert_count(shape.num_local_experts)
            writer.add_expert_used_count(shape.num_experts_per_tok)
        # transformers fills it in for a LLaMA, but not for a Mixtral.
        if config.get("head_dim") or not isinstance(shape, MixtralShape):
            writer.add_key_length(shape.head_dim)
            writer.add_value_length(shape.head_dim)

    def _add_scaling(self, writer: GGUFWriter, scaling: Mapping[str, Any]) -> None:
        from gguf import RopeScalingType

        kind = scaling.get("type")
        if kind not in ("linear", "yarn"):
            return
        if scaling.get("factor") is None:
            raise LayoutError(
                tr("the configuration scales rotary positions without saying by how much"),
                file=self.source,
                expected=tr('"rope_scaling": {"factor": a number}'),
                found=repr(dict(scaling)),
                remedy=tr("take config.json from the place where the weights are from"),
            )
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(scaling["factor"])
        if kind == "linear":
            return
        length = scaling.get("original_max_position_embeddings")
        writer.add_rope_scaling_orig_ctx_len(length or self.context_length)
        for names, add in (
            (("extrapolation_factor",), writer.add_rope_scaling_yarn_ext_factor),
            (("attention_factor", "attn_factor"), writer.add_rope_scaling_yarn_attn_factor),
            (("beta_fast",), writer.add_rope_scaling_yarn_beta_fast),
            (("beta_slow",), writer.add_rope_scaling_yarn_beta_slow),
        ):
            values = [scaling[name] for name in names if scaling.get(name) is not None]
            if values:
                add(values[0])


def _describe_source(name: str) -> dict[str, str]:
    """A model that went in, as ``general.base_model.*`` has it: local folders by their name."""
    from gguf import Metadata

    title: Callable[[str], str] = Metadata.id_to_title
    path = expand_user(name)
    if path.exists():
        called = path.resolve().name.removesuffix(".gguf")
        return {"name": title(called.encode("utf-8", "replace").decode())}
    organization, _, model = name.rpartition("/")
    entry = {"name": title(model)}
    if organization:
        entry["organization"] = title(organization)
        entry["repo_url"] = f"https://huggingface.co/{name}"
    return entry
