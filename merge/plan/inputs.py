"""The inputs of a merge: base, delta, adapters and the tokenizer that is chosen among theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..deltas.adapter_config import AdapterFolder
from ..errors import UsageError, VocabularyError
from ..layouts.config import CONFIG_NAME, is_llama
from ..layouts.model_folder import ModelFolder
from ..messages import tr
from ..storage.offload import Offload
from ..storage.urls import hide_credentials, is_url
from ..tokenizers.file_names import MODEL_NAME, TOKENIZER_JSON_NAME
from ..tokenizers.opaque_tokenizer import Tokenizer
from ..tokenizers.sentencepiece_tokenizer import (
    SentencePieceTokenizer,
    has_details,
    has_template_file,
    read_tokenizer,
)
from ..tokenizers.tiktoken_model import is_tiktoken_file
from ..user_paths import expand_user
from .llama3_tokenizer import (
    find_tiktoken,
    find_tokenizer_model,
    holds_tokenizer,
    read_copied_tokenizer,
)
from .places import open_url, resolve


def split_list(values: list[str]) -> list[str]:
    """Split ``--lora_model`` values: ``a,b``, ``"a, b"``, two words, or the option repeated.

    >>> split_list(["a, b", "c,", "d"])
    ['a', 'b', 'c', 'd']
    """
    parts = [part.strip() for value in values for part in value.split(",")]
    return [part for part in parts if part]


@dataclass(frozen=True)
class Sources:
    """The folders that a merge reads, and the words by which the user named them.

    ``base_tokenizer`` is None when the base has none; ``tokenizer_named`` where the tokenizer was
    named apart. ``delta`` is added to the base before the
    adapters, and what is said of the base is then said of the sum.
    """

    base_model: str
    lora_models: tuple[str, ...]
    base: ModelFolder
    adapters: tuple[AdapterFolder, ...]
    tokenizer: Tokenizer
    base_tokenizer: Tokenizer | None
    delta_model: str | None = None
    delta: ModelFolder | None = None
    tokenizer_named: bool = False

    @property
    def named(self) -> dict[str, Any]:
        """The inputs as the user named them, by their options; the tokenizer by its place."""
        named = {"base_model": self.base_model, "lora_model": list(self.lora_models)}
        return {**named, "delta_model": self.delta_model, "tokenizer": str(self.tokenizer.path)}

    @property
    def model(self) -> ModelFolder:
        """The folder with the configuration of what the adapters are merged into."""
        return self.delta or self.base

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder that is read, also that of a ``.gguf`` file."""
        models = filter(None, [self.base, self.delta, *self.adapters])
        paths = [*(folder.path for folder in models), self.tokenizer.path]
        return tuple(path.parent if path.suffix == ".gguf" else path for path in paths)


def find_sources(
    base_model: str,
    lora_models: list[str],
    tokenizer: str | None,
    offload: Offload,
    delta_model: str | None = None,
) -> Sources:
    """Find every input, and read what is small: adapter configurations and tokenizers.

    The tokenizer is the one named, else the last adapter's that has one, else the delta's, else the
    base's. For a LLaMA that is a ``tokenizer.model`` where there is any; a base in GGUF has its
    tokenizer in its metadata.
    """
    names = split_list(lora_models)
    if not names:
        raise UsageError(
            tr("no adapter is named"), expected=tr("--lora_model with at least one folder")
        )
    base = ModelFolder(resolve(base_model, tr("base model"), offload))
    delta = ModelFolder(resolve(delta_model, tr("delta"), offload)) if delta_model else None
    adapters = tuple(AdapterFolder(resolve(name, tr("adapter"), offload)) for name in names)
    for number, folder in enumerate(adapters):
        folder.require_mergeable()
        if any(folder.path.samefile(other.path) for other in adapters[:number]):
            raise UsageError(
                tr("the same adapter is given twice; it would be added twice"),
                file=folder.path,
                remedy=tr("name each adapter once"),
            )
    models = [folder for folder in (delta, base) if folder]
    named = resolve_tokenizer(tokenizer, offload) if tokenizer else None
    own, found = _choose_tokenizers(named, adapters[::-1], models)
    called = [hide_credentials(name) for name in (base_model, delta_model or "", *names)]
    of_delta = called[1] if delta_model else None
    return Sources(
        called[0], tuple(called[2:]), base, adapters, found, own, of_delta, delta, named is not None
    )


def _choose_tokenizers(
    named: ModelFolder | None, adapters: Sequence[ModelFolder], models: Sequence[ModelFolder]
) -> tuple[Tokenizer | None, Tokenizer]:
    """The tokenizer of the last of ``models`` that has one, and that of the result."""
    adapters = [folder for folder in adapters if folder.path.is_dir()]
    if models[-1].is_gguf or (named is not None and _has_embedded_tokenizer(named)):
        return _choose_beside_gguf(named, adapters, models)
    if _holds_llama(models[0]):
        pieces = find_tokenizer(models)
        folders = [*adapters, *models]
        chosen = _read_named(named, folders) if named else find_tokenizer(folders)
        if chosen is not None:
            return pieces, chosen
        if not named and not any(map(holds_tokenizer, folders)):
            return pieces, read_tokenizer(models[-1].path)  # which says what is missing
    home = next(filter(holds_tokenizer, models), None)
    copied = named or next(filter(holds_tokenizer, adapters), home or models[-1])
    own = read_copied_tokenizer(home, models[-1]) if home else None
    return own, own if own and copied is home else read_copied_tokenizer(copied, models[-1])


def _choose_beside_gguf(
    named: ModelFolder | None, adapters: Sequence[ModelFolder], models: Sequence[ModelFolder]
) -> tuple[Tokenizer | None, Tokenizer]:
    """The same where the base or ``named`` is a GGUF file, whose tokenizer is in its metadata.

    Raises ``VocabularyError`` for an adapter that says something of a tokenizer without having one:
    there is no ``tokenizer.model`` that it could be of.
    """
    from ..layouts.gguf.base import read_embedded_tokenizer

    folders = [folder for folder in models if not folder.is_gguf]
    own: Tokenizer | None = find_tokenizer(folders)
    if own is None and models[-1].is_gguf:
        own = read_embedded_tokenizer(models[-1].gguf_metadata)
    if named is not None and _has_embedded_tokenizer(named):
        return own, read_embedded_tokenizer(named.gguf_metadata)
    folders = [*adapters, *folders]
    if named is not None:
        return own, _read_named(named, folders) or read_copied_tokenizer(named, models[-1])
    found: Tokenizer | None = find_tokenizer(folders)
    if found is None and (home := next(filter(holds_tokenizer, folders), None)):
        found = read_copied_tokenizer(home, models[-1])
    for folder in adapters if found is None else ():
        if has_details(folder.path) or has_template_file(folder.path):
            raise VocabularyError(
                tr(
                    "the adapter says which tokens are special, but neither it nor the "
                    "base has the tokenizer.model that this belongs to"
                ),
                file=folder.path,
                expected=MODEL_NAME,
                found=tr("a base in GGUF, {name}", name=models[-1].path.name),
                remedy=tr(
                    "name the base itself with --tokenizer {path} to keep its tokenizer "
                    "as it is; or a folder with the tokenizer that the adapter was "
                    "trained with",
                    path=models[-1].path,
                ),
            )
    chosen = found or own
    assert chosen is not None, "a base in GGUF has a tokenizer"
    return own, chosen


def _has_embedded_tokenizer(folder: ModelFolder) -> bool:
    """Whether a folder, or a file, has no tokenizer but that of a model in GGUF."""
    return folder.is_gguf and (folder.path.is_file() or not holds_tokenizer(folder))


def find_tokenizer(folders: Sequence[ModelFolder]) -> SentencePieceTokenizer | None:
    """LLaMA's tokenizer from the first of ``folders`` that says something of one.

    The ``tokenizer.model`` may be that of a later folder: trainers that save with transformers 5
    leave it out of an adapter's. None where no folder has a ``tokenizer.model``. Raises
    ``VocabularyError`` where a ``tokenizer.json`` agrees with none of them.
    """
    homes = [find_tokenizer_home(folder) for folder in folders]
    for number, (folder, home) in enumerate(zip(folders, homes, strict=True)):
        if home is not None:
            return read_tokenizer(home)
        later = [home for home in homes[number:] if home is not None]
        if later and (has_details(folder.path) or has_template_file(folder.path)):
            return _with_details(later, folder.path)
    return None


def _with_details(homes: Sequence[Path], details: Path) -> SentencePieceTokenizer:
    """What ``details`` says of the first vocabulary that it agrees with."""
    errors = []
    for home in homes:
        try:
            return read_tokenizer(home, details)
        except VocabularyError as error:
            errors.append(error)
    raise errors[0]


def choose_tokenizer(
    named: str | Path | None, folders: Sequence[ModelFolder], offload: Offload
) -> SentencePieceTokenizer:
    """The tokenizer that ``--tokenizer`` names, else that of ``folders``, as ``find_tokenizer``.

    Raises ``FormatError`` where there is no ``tokenizer.model``.
    """
    home = resolve_tokenizer(str(named), offload) if named else None
    found = _read_named(home, folders) if home else find_tokenizer(folders)
    return found or read_tokenizer((home or folders[0]).path)


def choose_any_tokenizer(
    named: str | Path | None, folder: ModelFolder, offload: Offload
) -> Tokenizer:
    """The tokenizer that ``--tokenizer`` names, else that of the model in ``folder``, of any kind.

    Raises ``FormatError`` where there is none.
    """
    home = resolve_tokenizer(str(named), offload) if named else None
    found = _read_named(home, [folder]) if home else find_tokenizer([folder])
    source = home or folder
    if found is None and not holds_tokenizer(source):
        return read_tokenizer(source.path)  # which says what is missing
    return found or read_copied_tokenizer(source, folder)


def _read_named(home: ModelFolder, folders: Sequence[ModelFolder]) -> SentencePieceTokenizer | None:
    """The tokenizer that ``--tokenizer`` names, or None where it can only be copied."""
    path = home.path
    if find_tiktoken(home) is not None or path.name == TOKENIZER_JSON_NAME:
        return None
    if path.is_file() or MODEL_NAME in home.files:
        return read_tokenizer(path)
    if not has_details(path) and not has_template_file(path):
        return None
    try:
        return find_tokenizer([home, *folders])
    except VocabularyError:
        if TOKENIZER_JSON_NAME in home.files:
            return None
        raise


def _holds_llama(folder: ModelFolder) -> bool:
    """Whether a folder's model is a LLaMA; one without ``config.json`` is refused later."""
    return folder.is_meta or CONFIG_NAME not in folder.files or is_llama(folder.config)


def find_tokenizer_home(folder: ModelFolder) -> Path | None:
    """Where the SentencePiece model of the model in ``folder`` is: there, or nowhere.

    The one that Meta keeps for all sizes, beside their folders, is taken alone.
    """
    file = find_tokenizer_model(folder)
    if file is None or is_tiktoken_file(file):
        return None
    return folder.path if MODEL_NAME in folder.files else file


def resolve_tokenizer(source: str, offload: Offload) -> ModelFolder:
    """Return the folder, or the file, that ``--tokenizer`` names."""
    if is_url(source):
        return ModelFolder(open_url(source, "tokenizer", offload))
    path = expand_user(source)
    return ModelFolder(path if path.is_file() else resolve(source, tr("tokenizer"), offload))
