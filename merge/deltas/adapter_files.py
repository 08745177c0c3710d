"""The registry of files in an adapter's folder: what is read, what is ignored, what is refused.

An unknown weight file is refused, any other unknown file is named in the summary.
``docs/adapters.md`` is generated from here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ..errors import AdapterError, Topic
from ..layouts.elsewhere import find_unsupported_format
from ..messages import join, tr
from ..storage.folder import Folder

TRAINABLE_PARAMS = "trainable_params.bin"

NEW_EMBEDDINGS = "new_embeddings.safetensors"
EXTRA_EMBEDDINGS = "extra_embeddings.pt"
_HEADS = ("value_head.bin", "value_head.safetensors")
FSDP_NAME = "pytorch_model_fsdp.bin"
MLX_NAME = "adapters.safetensors"
# Patterns of names, and what is read from them.
READ = {
    "adapter_config.json": tr("kind, ranks and scalings"),
    "adapter_model.safetensors": tr("the adapter's tensors"),
    "adapter_model.bin": tr("the adapter's tensors, as PEFT before 0.6 saved them"),
    "model.safetensors": tr("the adapter's tensors in a training checkpoint"),
    "pytorch_model.bin": tr("the adapter's tensors in a training checkpoint"),
    FSDP_NAME: tr("the adapter's tensors in an FSDP checkpoint, if it is the only weight file"),
    "adapter_model-*-of-*": tr(
        "the adapter's tensors in several files, all of which must be there"
    ),
    "adapter_model.*.index.json": tr("which of several files holds which tensor"),
    MLX_NAME: tr("the adapter's tensors, as mlx-lm saves them"),
    "*.gguf": tr(
        "the adapter as llama.cpp's convert_lora_to_gguf.py writes it, where there is no "
        "adapter_config.json; the file may be named itself"
    ),
    TRAINABLE_PARAMS: tr(
        "LongLoRA's trained embeddings and norms, which replace the base's before the LoRA is added"
    ),
    NEW_EMBEDDINGS: tr(
        "vLLM's rows of added tokens, which follow the base's on both sides "
        "before the LoRA is added"
    ),
    "value_head.*": tr("the value head of a reward model, which is copied unchanged"),
    EXTRA_EMBEDDINGS: tr(
        "Open-Assistant's embedding rows of added tokens; those of the LM head "
        "are initialized as --new_token_init says"
    ),
    "tokenizer.model": tr("the vocabulary"),
    "tokenizer.json": tr(
        "added tokens with ids and flags, and what is put around a text; for LLaMA its "
        "vocabulary must be that of tokenizer.model, which may lie in another input's folder"
    ),
    "tokenizer_config.json": tr(
        "special tokens, end of text, padding, added tokens, chat template"
    ),
    "special_tokens_map.json": tr("special tokens; takes precedence over tokenizer_config.json"),
    "added_tokens.json": tr("tokens beyond the vocabulary's pieces"),
    "vocab.*": tr("the vocabulary of other decoders"),
    "merges.txt": tr("the vocabulary of other decoders"),
    "*.tiktoken": tr("the vocabulary of other decoders"),
    "tekken.json": tr("the vocabulary of other decoders"),
    "chat_template.jinja": tr(
        "the chat template; takes precedence over tokenizer_config.json; "
        "further ones in additional_chat_templates"
    ),
    "chat_template.json": tr("the chat template, if no other file has one"),
    "config.json": tr("the configuration of the result"),
    "generation_config.json": tr("defaults for generation"),
    "*.py": tr("code of the model, copied with --copy_code"),
}
# What a training leaves beside an adapter that says nothing about the merged model.
SAYS_NOTHING = (
    *("optimizer*", "scheduler*", "rng_state*", "random_states*", "scaler*", "sampler*"),
    *("training_args*", "trainer_state.json", "trainer_log.jsonl", "*_results.json"),
    *("events.out.tfevents*", "zero_to_fp32.py", "latest", "*.log", "*.md", "*.txt", "*.rst"),
    *("LICENSE*", "NOTICE*", "README*", "SHA256*", "*.sha256", "*.png", "*.jpg", "*.svg"),
    *("*.pdf", "*.yaml", "*.yml", ".*", "merge_manifest.json"),
    # Earlier states of the same training, by mlx-lm, and what llama.cpp made of the adapter.
    *("[0-9]*_adapters.safetensors", "ggml-adapter-model.*"),
)
_PART = re.compile(r"adapter_model-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
WEIGHT_SUFFIXES = (
    *(".bin", ".pt", ".pth", ".safetensors", ".ckpt", ".gguf", ".npz", ".npy", ".h5", ".msgpack"),
    *(".pkl", ".distcp", ".enc"),
)


@dataclass(frozen=True)
class ForeignFile:
    """A weight file that other tools write beside an adapter: what it is and what to do."""

    pattern: str
    what: str
    remedy: str


FOREIGN = (
    ForeignFile(
        "non_lora_trainables.bin",
        tr(
            "the weights that LLaVA's training changed outside the language "
            "model's LoRA, such as its projector"
        ),
        tr("merge with LLaVA's own merge_lora_weights.py if the projector is wanted"),
    ),
    ForeignFile("mm_projector.bin", tr("LLaVA's projector"), tr("merge with LLaVA's own scripts")),
    ForeignFile(
        FSDP_NAME,
        tr("the state of an FSDP run, of which other files beside it hold an adapter too"),
        tr("keep the one that is meant"),
    ),
    ForeignFile(
        "model_world_size_*_rank_*.pt",
        tr("one process's part of a verl checkpoint"),
        tr("join the parts with verl's model_merger"),
    ),
    ForeignFile(
        "*.distcp",
        tr("a part of a distributed checkpoint"),
        tr("join the parts with torch.distributed.checkpoint.format_utils"),
    ),
)


@dataclass(frozen=True)
class AdapterFiles:
    """The weight files of an adapter's folder that are read, and what lies beside them unread.

    ``weights`` is the first of several ``parts`` where the adapter is in more than one file.
    ``duplicate`` holds the same tensors as ``weights`` in the other container. ``new_rows`` holds
    rows of tokens that the base has none for, ``heads`` are files that go along as they are.
    ``ignored`` are weight files that the user lets be ignored, ``unknown`` other files that no rule
    speaks of.
    """

    weights: Path
    parts: tuple[Path, ...] = ()
    duplicate: Path | None = None
    trainable_params: Path | None = None
    new_rows: Path | None = None
    heads: tuple[Path, ...] = ()
    ignored: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def further(self) -> tuple[Path, ...]:
        """What is read beside ``weights``."""
        single = filter(None, [self.trainable_params, self.new_rows])
        return (*self.parts[1:], *single, *self.heads)


def find_files(
    folder: Folder, names: Collection[Collection[str]], ignored: Collection[str] = ()
) -> AdapterFiles:
    """Account for every file directly in an adapter's folder.

    ``names`` are those that the weights may have, groups in the order of preference. Raises
    ``AdapterError`` when there are none, and for other weights unless they are ``ignored``.
    """
    files = folder.files
    left_out = tuple(name for name in files if name in ignored)
    there = {name: path for name, path in files.items() if name not in left_out}
    group = next((group for group in names if any(name in there for name in group)), ())
    found = [there[name] for name in group if name in there]
    parts = _find_parts(folder, there) if not found or group != next(iter(names)) else ()
    if parts:
        found = [parts[0]]
    if not found and (kind := find_unsupported_format(folder.path)) is not None:
        raise AdapterError(
            tr("the folder holds weights in a form that is not read here"),
            file=folder.path,
            expected=join(tr(" or "), next(iter(names))),
            found=kind.what,
            remedy=kind.remedy,
        )
    if not found:
        raise AdapterError(
            tr("the folder holds no adapter weights"),
            file=folder.path,
            expected=join(tr(" or "), next(iter(names))),
            found=", ".join(list(files)[:8]) or tr("an empty folder"),
            remedy=tr("give the folder into which PEFT saved the adapter"),
        )
    new_rows = [there[name] for name in (NEW_EMBEDDINGS, EXTRA_EMBEDDINGS) if name in there]
    if len(new_rows) > 1:
        raise AdapterError(
            tr("two files hold rows of added tokens"),
            file=folder.path,
            found=join(tr(" and "), (path.name for path in new_rows)),
            remedy=tr("keep the one that belongs to the adapter"),
        )
    heads = tuple(there[name] for name in _HEADS if name in there)
    known = {path.name for path in (*found, *parts, *new_rows, *heads)} | {TRAINABLE_PARAMS}
    others = [path for name, path in there.items() if name not in known]
    for path in others:
        if is_weight_file(path):
            raise _make_unknown_error(path)
    return AdapterFiles(
        found[0],
        parts,
        found[1] if len(found) > 1 else None,
        there.get(TRAINABLE_PARAMS),
        next(iter(new_rows), None),
        heads,
        left_out,
        tuple(path.name for path in others if not _is_known(path.name)),
    )


def _find_parts(folder: Folder, there: Mapping[str, Path]) -> tuple[Path, ...]:
    """The files of an adapter that was saved in several. Raises ``AdapterError`` for a gap."""
    numbered = {name: match for name in there if (match := _PART.fullmatch(name))}
    for suffix in (".safetensors", ".bin"):
        index = there.get(f"adapter_model{suffix}.index.json")
        listed = folder.read_json(index.name).get("weight_map") if index is not None else None
        names = {str(name) for name in listed.values()} if isinstance(listed, dict) else set()
        for match in (match for match in numbered.values() if match["suffix"] == suffix):
            count = int(match["count"])
            names |= {f"adapter_model-{n:05}-of-{count:05}{suffix}" for n in range(1, count + 1)}
            break
        if lost := sorted(name for name in names if name not in there):
            raise AdapterError(
                tr("a part of the adapter is missing"),
                file=folder.path / lost[0],
                expected=tr("{n_names} files", n_names=len(names)),
                found=tr("{n_lost} missing: {lost}", n_lost=len(lost), lost=", ".join(lost[:5])),
                remedy=tr("fetch or copy the missing files into this folder"),
            )
        if names:
            return tuple(there[name] for name in sorted(names))
    return ()


def has_no_meaning(name: str) -> bool:
    """Whether a file, by its name, says nothing about a model."""
    return _matches(name.rpartition("/")[2], SAYS_NOTHING)


def is_weight_file(path: Path) -> bool:
    """Whether a file, by its name, holds weights that may belong to a model: no trainer's state."""
    return path.name.lower().endswith(WEIGHT_SUFFIXES) and not _matches(path.name, SAYS_NOTHING)


def _is_known(name: str) -> bool:
    return _matches(name, SAYS_NOTHING) or _matches(name, READ)


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _make_unknown_error(path: Path) -> AdapterError:
    foreign = next((f for f in FOREIGN if fnmatch(path.name, f.pattern)), None)
    ignore = tr("; --ignore_file {name} merges without it", name=path.name)
    if foreign is not None:
        return AdapterError(
            tr("beside the adapter lie weights that are not merged here"),
            file=path,
            found=foreign.what,
            remedy=foreign.remedy + ignore,
        )
    return AdapterError(
        tr(
            "beside the adapter lies a weight file that is not known here, so "
            "the merge might lack a part of what was trained"
        ),
        file=path,
        expected=tr(
            "adapter_model.safetensors or adapter_model.bin alone, or {trainable_params}",
            trainable_params=TRAINABLE_PARAMS,
        ),
        found=path.name,
        remedy=tr("move it away if it is no part of the adapter") + ignore,
        topic=Topic.FILES,
    )
