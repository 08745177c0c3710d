"""The options that every job has, as fields of a dataclass; ``job_settings.py`` has the others.

Values are checked when settings are made; ``keywords.py`` repeats their types, for type checkers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar, get_args

from .errors import UsageError
from .messages import tr
from .option_checks import (
    COUNT,
    SIZE,
    require_address,
    require_gguf,
    require_memory,
    require_model_name,
    require_one_of,
    require_path,
    require_ray,
    size_in_bytes,
)
from .options import (
    OUTPUT,
    RESOURCES,
    check_values,
    option,
    options_of,
    require_known,
)
from .outtypes import GUIDED_OUTTYPES, QUANTIZED_OUTTYPES, require_quantizer
from .processors import count_processors
from .sizes import parse_size
from .user_paths import expand_user

IoMode = Literal["auto", "direct", "buffered"]
OutputType = Literal["pth", "huggingface", "gguf"]
EngineName = Literal["local", "ray"]

IO_MODES: tuple[IoMode, ...] = get_args(IoMode)
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
OnProgress = Callable[[int, int], object]
"""Called with the bytes done so far and the bytes in all."""
OUTPUT_TYPES: tuple[OutputType, ...] = get_args(OutputType)
SHORT_NAMES: dict[str, OutputType] = {"hf": "huggingface"}
DTYPES = ("auto", "float16", "bfloat16", "float32")
OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0", *QUANTIZED_OUTTYPES)
MODELFILES = ("alpaca", "alpaca2", "llama3")
CHAT_TEMPLATES = ("alpaca", "llama3")
# What a sum is rounded to when only the type in a GGUF file is said.
_DTYPE_FOR = {"f32": "float32", "bf16": "bfloat16", "q8_0": "float32"}
LARGEST_MEMORY = "256MB"
LEAST_DEFAULT_MEMORY, MEMORY_OF_PROCESSOR = 64_000_000, 32_000_000
# What a worker needs: a block in float32 and the like, and the buffers of a span.
WORKER_BYTES = 12 << 20


@dataclass(frozen=True)
class OutputSettings:
    """How a model is written, and what that may cost; each field says what it is for.

    ``dtype`` left empty is float16, or what ``outtype`` needs. ``model_name`` is what GGUF calls
    the model; left empty, jobs take the name of the output folder. Sizes are bytes, or text
    ("64MB"). Raises ``UsageError`` for values that mean nothing, and for an option of another type
    of output.
    """

    output_type: OutputType = option(
        "pth",
        OUTPUT,
        tr(
            "layout; pth: Meta's consolidated.*.pth; huggingface (hf): .bin or "
            "safetensors shards, for transformers; gguf: for llama.cpp"
        ),
        choices=(*OUTPUT_TYPES, *SHORT_NAMES),
    )
    num_shards: int | None = option(
        None,
        OUTPUT,
        tr("number of .pth files"),
        default_text=tr("as many as Meta uses for this size"),
        only_for="pth",
        **COUNT,
    )
    outtype: str = option(
        "auto",
        OUTPUT,
        tr(
            "type of the matrices in a GGUF file; auto: bf16 for a model in "
            "bfloat16, else f16; one of "
        )
        + ", ".join(OUTTYPES[1:])
        + tr("; those after q8_0 need the extra llama_cpp"),
        only_for="gguf",
        check=lambda name, value: require_one_of(name, value, OUTTYPES),
        metavar="TYPE",
    )
    imatrix: str | Path | None = option(
        None,
        OUTPUT,
        tr("importance matrix of llama.cpp (llama-imatrix), for quantized types of --outtype; ")
        + ", ".join(GUIDED_OUTTYPES)
        + tr(" need one"),
        default_text=tr("none"),
        only_for="gguf",
        of_run=True,  # its content counts: see Plan.imatrix
        metavar="FILE",
        check=require_path,
    )
    modelfile: str | None = option(
        None,
        OUTPUT,
        tr(
            "write an Ollama Modelfile beside the GGUF file, with template, stop "
            "words and system prompt of Chinese-Alpaca, Chinese-Alpaca-2 or "
            "Llama-3-Chinese-Instruct"
        ),
        default_text=tr("none"),
        only_for="gguf",
        choices=MODELFILES,
    )
    split_max_size: int | str | None = option(
        None,
        OUTPUT,
        tr("largest GGUF file, such as 4GB"),
        default_text=tr("one file however large"),
        only_for="gguf",
        **SIZE,
    )
    chat_template: str | None = option(
        None,
        OUTPUT,
        tr("chat format of a GGUF or Hugging Face model"),
        default_text=tr("the tokenizer's"),
        choices=CHAT_TEMPLATES,
    )
    dtype: str = option(
        "",
        OUTPUT,
        tr("dtype of the result; auto keeps the base's"),
        default_text=tr("float16; for GGUF what --outtype needs"),
        choices=DTYPES,
    )
    max_shard_size: int | str = option(
        "10GB", OUTPUT, tr("largest Hugging Face shard"), only_for="huggingface", **SIZE
    )
    safe_serialization: bool = option(
        False, OUTPUT, tr("safetensors instead of .bin"), only_for="huggingface"
    )
    overwrite: bool = option(
        False, OUTPUT, tr("replace an earlier result in the output folder"), of_run=True
    )
    resume: bool = option(
        False,
        OUTPUT,
        tr("resume an interrupted run; if the result is complete already, say so and exit with 0"),
        of_run=True,
    )
    allow_nonfinite: bool = option(
        False, OUTPUT, tr("write weights that are NaN or Inf unchanged, and name them")
    )
    dry_run: bool = option(
        False, OUTPUT, tr("check everything, print the plan, write nothing"), of_run=True
    )
    max_memory: int | str | None = option(
        None,
        RESOURCES,
        tr(
            "budget for buffers, at least 1MB; no more than {largest_memory} is used",
            largest_memory=LARGEST_MEMORY,
        ),
        default_text=tr("32MB for each processor, but at least 64MB"),
        of_run=True,
        metavar="SIZE",
        check=require_memory,
    )
    num_workers: int | None = option(
        None,
        RESOURCES,
        tr("threads that compute, at most as many as --max_memory has room for"),
        default_text=tr("the number of processors"),
        of_run=True,
        **COUNT,
    )
    io: IoMode = option(
        "auto",
        RESOURCES,
        tr(
            "when to bypass the page cache (O_DIRECT); auto: for files that are "
            "not in it; direct: always; buffered: never"
        ),
        of_run=True,
        choices=IO_MODES,
    )
    offload_dir: str | Path | None = option(
        None,
        RESOURCES,
        tr("folder for downloads and for inputs that cannot be read in place; emptied at the end"),
        default_text=tr("beside the output; downloads: the Hub's cache"),
        of_run=True,
        check=require_path,
        metavar="DIR",
    )
    model_name: str = ""

    def __post_init__(self) -> None:
        if self.output_type in SHORT_NAMES:
            object.__setattr__(self, "output_type", SHORT_NAMES[self.output_type])
        if isinstance(self.outtype, str):  # llama.cpp writes them in capitals: Q4_K_M
            object.__setattr__(self, "outtype", self.outtype.lower())
        require_one_of("output_type", self.output_type, OUTPUT_TYPES)
        if not self.dtype:
            object.__setattr__(self, "dtype", _DTYPE_FOR.get(str(self.outtype), "float16"))
        if not self.model_name:
            object.__setattr__(self, "model_name", "model")
        check_values(self)
        if self.chat_template is not None and self.output_type == "pth":
            raise UsageError(
                tr("--chat_template has no place in Meta's layout"),
                remedy=tr("use --output_type gguf or huggingface"),
            )
        for name, one in options_of(type(self)).items():
            if one.only_for not in (None, self.output_type) and getattr(self, name) != one.default:
                raise UsageError(
                    tr("--{name} means nothing for this type of output", name=name),
                    expected=f"--output_type {one.only_for}",
                    found=f"--output_type {self.output_type}",
                    remedy=tr("leave --{name} out, or change the type", name=name),
                )
        if self.output_type == "gguf":
            require_model_name(self.model_name)
            require_gguf()
            require_quantizer(self.outtype, self.imatrix is not None)

    def result_values(self) -> dict[str, Any]:
        """Return the values that shape the result: all but those of the run."""
        of_run = {name for name, one in options_of(type(self)).items() if one.of_run}
        return {name: value for name, value in asdict(self).items() if name not in of_run}

    @property
    def shard_bytes(self) -> int:
        """Largest Hugging Face shard, in bytes."""
        return size_in_bytes("max_shard_size", self.max_shard_size)

    @property
    def split_bytes(self) -> int:
        """Largest GGUF file, in bytes; 0 for one file however large."""
        return size_in_bytes("split_max_size", self.split_max_size) if self.split_max_size else 0

    @property
    def memory(self) -> int:
        """Budget for buffers, in bytes."""
        given = self.max_memory
        if given is None:
            wanted = max(LEAST_DEFAULT_MEMORY, count_processors() * MEMORY_OF_PROCESSOR)
        else:
            wanted = size_in_bytes("max_memory", given)
        return min(wanted, parse_size(LARGEST_MEMORY))

    @property
    def workers(self) -> int:
        """Threads that compute, as many as the budget of memory has room for.

        Without ``num_workers`` as many as there are processors that this process may use.
        """
        wanted = self.num_workers or count_processors()
        return min(wanted, max(1, self.memory // WORKER_BYTES))

    @property
    def suffix(self) -> str:
        """Ending of the weight files."""
        if self.output_type != "huggingface":
            return f".{self.output_type}"
        return ".safetensors" if self.safe_serialization else ".bin"

    @property
    def offload_parent(self) -> Path | None:
        """``offload_dir`` as a path."""
        return expand_user(self.offload_dir) if self.offload_dir else None


@dataclass(frozen=True)
class EngineSettings(OutputSettings):
    """The settings of a job that may run on many machines: which engine runs it, and where."""

    engine: EngineName = option(
        "local",
        RESOURCES,
        tr(
            "what runs the job; ray: a Ray cluster, whose machines all see "
            "inputs and output under the same paths (docs/distributed.md)"
        ),
        of_run=True,
        choices=ENGINES,
    )
    ray_address: str | None = option(
        None,
        RESOURCES,
        tr("address of the cluster for --engine ray, such as 10.0.0.1:6379"),
        default_text=tr("RAY_ADDRESS, else the cluster of this machine, else one is started"),
        of_run=True,
        metavar="HOST:PORT",
        check=require_address,
    )
    task_size: int | str = option(
        "10GB",
        RESOURCES,
        tr(
            "with --engine ray, files beyond this size are made in parts by "
            "several tasks and joined"
        ),
        of_run=True,
        **SIZE,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "ray":
            require_ray()
            return
        for name in ("ray_address", "task_size"):
            if getattr(self, name) != options_of(type(self))[name].default:
                raise UsageError(
                    tr("--{name} means nothing for the local engine", name=name),
                    remedy=tr("leave --{name} out, or say --engine ray", name=name),
                )

    @property
    def task_bytes(self) -> int:
        """Bytes from which on a file is made in parts, and of one part."""
        return size_in_bytes("task_size", self.task_size)


def is_on_cluster(settings: OutputSettings) -> TypeGuard[EngineSettings]:
    """Whether a job with these settings runs on a cluster."""
    return isinstance(settings, EngineSettings) and settings.engine == "ray"


Settings = TypeVar("Settings", bound=OutputSettings)


def make_settings(
    kind: type[Settings],
    given: Mapping[str, Any],
    output_dir: str | Path,
    job: Callable[..., object],
) -> Settings:
    """Make the settings of a job from its keywords.

    Raises ``UsageError`` for a keyword that the job does not have, with the nearest one.
    """
    require_known(given, signature(job).parameters)
    named = given.get("model_name") or _folder_name(output_dir)
    return kind(**{**given, "model_name": named})


def _folder_name(folder: str | Path) -> str:
    name = expand_user(folder).resolve().name or "model"
    return name.encode("utf-8", "replace").decode()  # the name of a folder may not be UTF-8
