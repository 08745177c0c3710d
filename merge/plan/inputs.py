"""Where inputs are: local folders, or repositories of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..deltas.adapter_config import AdapterFolder
from ..errors import FormatError, UsageError, VocabularyError
from ..layouts.config import CONFIG_NAME, is_llama
from ..layouts.model_folder import ModelFolder
from ..storage.offload import Offload
from ..storage.zipped_adapter import find_adapter_folder, unpack
from ..tokenizers.file_names import MODEL_NAME, TOKENIZER_JSON_NAME
from ..tokenizers.opaque_tokenizer import Tokenizer
from ..tokenizers.sentencepiece_tokenizer import (
    SentencePieceTokenizer,
    has_details,
    has_template_file,
    read_tokenizer,
)
from ..tokenizers.tiktoken_model import is_tiktoken_file
from .llama3_tokenizer import (
    find_tiktoken,
    find_tokenizer_model,
    holds_tokenizer,
    read_copied_tokenizer,
)

# What a Hub id looks like: owner/name, each of letters, digits, dots, dashes and underscores; then
# a folder of that repository, and a branch, tag or commit.
_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?P<folder>(?:/[A-Za-z0-9_][\w.-]*)*)"
    r"(?:@(?P<revision>[\w][\w./-]*))?"
)
_WANTED = (
    *("*.json", "tokenizer.model", "*.jinja", "additional_chat_templates/*", "vocab.txt"),
    *("merges.txt", "*.tiktoken", "*.py"),
)
_WEIGHTS = ("*.safetensors", "*.bin")
_MAY_BE_GGUF = ("base model", "adapter", "chat model")


def split_list(values: list[str]) -> list[str]:
    """Split ``--lora_model`` values: ``a,b``, ``"a, b"``, two words, or the option repeated.

    >>> split_list(["a, b", "c,", "d"])
    ['a', 'b', 'c', 'd']
    """
    parts = [part.strip() for value in values for part in value.split(",")]
    return [part for part in parts if part]


def resolve(source: str, role: str, offload: Offload | None = None) -> Path:
    """Return the folder of a local path or Hub id; a Hub repository is downloaded first. A
    ``.gguf`` file is a model or an adapter by itself.

    An id may name a folder of its repository and a revision: ``owner/name/folder@revision``.

    A zipped adapter folder is unpacked.
    Downloads go to the Hub's cache, or into the folder that the user named for such things,
    when there is one. Raises
    ``UsageError`` for a path that does not exist.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        require_links_inside(path)
        return path
    if role == "adapter" and offload is not None and path.is_file():
        inside = find_adapter_folder(path)
        if inside is not None:
            return unpack(path, inside, offload)
    if path.suffix == ".gguf" and path.is_file() and role in _MAY_BE_GGUF:
        return path
    if path.exists():
        raise UsageError(
            f"the {role} is a file, a folder is needed",
            file=path,
            remedy=f"give the folder that holds it: {path.parent}",
        )
    looks_local = path.is_absolute() or source.startswith((".", "~")) or "\\" in source
    hub_id = _HUB_ID.fullmatch(source)
    if looks_local or hub_id is None or path.parent.is_dir():
        raise UsageError(
            f"the {role} does not exist",
            file=path,
            expected="a local folder, or a Hub id such as owner/name",
            remedy=_suggest_nearby(path),
        )
    return _download(hub_id, role, offload)


def require_links_inside(folder: Path) -> None:
    """The links of a snapshot in the Hub's cache lead to that repository's blobs, nowhere else.

    Raises ``FormatError`` for one that would bring a file of somebody else's into the result.
    Links in other folders are their owner's.
    """
    repository = folder.absolute().parent.parent
    if folder.absolute().parent.name != "snapshots" or not repository.name.startswith("models--"):
        return
    for path in folder.rglob("*"):
        if path.is_symlink() and not _leads_into(path, repository):
            raise FormatError(
                "a link in the snapshot leads out of its repository",
                file=path,
                expected=f"a file in {repository / 'blobs'}",
                found=path.readlink(),
                remedy="remove the snapshot and download the repository again; if you made the "
                "link, put the file itself there",
            )


def _leads_into(link: Path, folder: Path) -> bool:
    try:
        return link.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def _suggest_nearby(path: Path) -> str:
    """Say what is there instead of a path that does not exist."""
    present = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(entry.name for entry in present.iterdir() if entry.is_dir())
    listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"check the spelling; {present} holds {listed or 'no folders'}"


def _download(hub_id: re.Match[str], role: str, offload: Offload | None) -> Path:
    """Fetch what a merge reads of a repository: safetensors if it has any, else ``.bin``."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Its bases are those of every error of the HTTP library, which differs between releases.
    unreachable = (*HfHubHTTPError.__bases__, OSError, HFValidationError)
    repo_id, inside, revision = hub_id["repo"], hub_id["folder"].strip("/"), hub_id["revision"]
    local_dir = None
    if offload is not None and offload.is_given:
        local_dir = offload.ensure_folder() / re.sub(r"[/@]", "--", hub_id[0])
    try:
        for weights in _WEIGHTS:
            wanted = [f"{inside}/{name}" if inside else name for name in (*_WANTED, weights)]
            snapshot = snapshot_download(
                repo_id, revision=revision, allow_patterns=wanted, local_dir=local_dir
            )
            folder = Path(snapshot) / inside
            if any(folder.glob(weights)):
                break
    except unreachable as error:  # type: ignore[misc]
        raise UsageError(
            f"the {role} is no local folder, and it could not be fetched from the Hub",
            file=hub_id[0],
            expected="a local folder or the id of a repository that you may read",
            found=shorten(str(error), 200),
            remedy="check the spelling; for a private or gated repository run `hf auth login` "
            "first; without a network, download it elsewhere and give the folder",
        ) from None
    if not folder.is_dir():
        raise UsageError(
            f"the repository of the {role} has no such folder",
            file=hub_id[0],
            expected=f"a folder {inside} in {repo_id}",
            remedy="check the spelling on the repository's page",
        )
    return folder


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
        raise UsageError("no adapter is named", expected="--lora_model with at least one folder")
    base = ModelFolder(resolve(base_model, "base model", offload))
    delta = ModelFolder(resolve(delta_model, "delta", offload)) if delta_model else None
    adapters = tuple(AdapterFolder(resolve(name, "adapter", offload)) for name in names)
    for number, folder in enumerate(adapters):
        folder.require_mergeable()
        if any(folder.path.samefile(other.path) for other in adapters[:number]):
            raise UsageError(
                "the same adapter is given twice; it would be added twice",
                file=folder.path,
                remedy="name each adapter once",
            )
    models = [folder for folder in (delta, base) if folder]
    named = resolve_tokenizer(tokenizer, offload) if tokenizer else None
    own, found = _choose_tokenizers(named, adapters[::-1], models)
    return Sources(
        base_model, tuple(names), base, adapters, found, own, delta_model, delta, named is not None
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
                "the adapter says which tokens are special, but neither it nor the base has the "
                "tokenizer.model that this belongs to",
                file=folder.path,
                expected=MODEL_NAME,
                found=f"a base in GGUF, {models[-1].path.name}",
                remedy=f"name the base itself with --tokenizer {models[-1].path} to keep its "
                "tokenizer as it is; or a folder with the tokenizer that the adapter was trained "
                "with",
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
    path = Path(source).expanduser()
    return ModelFolder(path if path.is_file() else resolve(source, "tokenizer", offload))
