"""Where inputs are: local folders, repositories of the Hugging Face Hub, places behind URLs."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten

from ..deltas.adapter_files import has_no_meaning
from ..errors import FormatError, Topic, UsageError
from ..messages import tr
from ..storage.offload import Offload
from ..storage.remote_path import WEIGHT_SUFFIXES, RemotePath
from ..storage.urls import is_url
from ..storage.zipped_adapter import find_adapter_folder, unpack
from ..user_paths import expand_user

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
_MAY_BE_GGUF = (tr("base model"), "adapter", tr("chat model"))


def resolve(source: str, role: str, offload: Offload | None = None) -> Path:
    """Return the folder of a local path or Hub id; a Hub repository is downloaded first. A
    ``.gguf`` file is a model or an adapter by itself.

    An id may name a folder of its repository and a revision: ``owner/name/folder@revision``.

    A zipped adapter folder is unpacked. Downloads go to the Hub's cache, or into the folder that
    the user named for such things, when there is one. A model behind a URL is read where it is; an
    adapter or tokenizer is small, and fetched. Raises ``UsageError`` for what does not exist.
    """
    if is_url(source):
        path = open_url(source, role, offload)
        if isinstance(path, RemotePath):
            return path
    else:
        path = expand_user(source)
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
            tr("the {role} is a file, a folder is needed", role=role),
            file=path,
            remedy=tr("give the folder that holds it: {parent}", parent=path.parent),
        )
    looks_local = path.is_absolute() or source.startswith((".", "~")) or "\\" in source
    hub_id = _HUB_ID.fullmatch(source)
    if looks_local or hub_id is None or path.parent.is_dir():
        raise UsageError(
            tr("the {role} does not exist", role=role),
            file=path,
            expected=tr("a local folder, or a Hub id such as owner/name"),
            remedy=_suggest_nearby(path),
            topic=Topic.FILES,
        )
    return _download(hub_id, role, offload)


def find_output(name: str | Path) -> Path:
    """The output folder that a user names: local, or behind a URL with what is there already.

    Raises ``OutputError`` for a place that files cannot be uploaded to so that they appear whole.
    """
    if not is_url(str(name)):
        return expand_user(name)
    from ..storage.remote_listing import open_output_place

    return open_output_place(str(name))


def find_result(name: str | Path) -> Path:
    """The folder of an earlier result, which may be behind a URL."""
    if not is_url(str(name)):
        return expand_user(name)
    from ..storage.remote_listing import open_place

    return open_place(str(name), None)


def open_url(source: str, role: str, offload: Offload | None) -> Path:
    """The place behind a URL, or its copy: of an adapter and a tokenizer, and where a server sends
    nothing but whole files and there is a folder for them.
    """
    from ..storage.remote_listing import can_read_parts, fetch, open_place

    place = open_place(source, offload)
    if offload is None:
        return place
    if role == "adapter":
        return fetch(place, offload, lambda name: not has_no_meaning(name))
    if role == "tokenizer":
        return fetch(place, offload, lambda name: not name.endswith(WEIGHT_SUFFIXES))
    if offload.is_given and not can_read_parts(place):
        offload.notes.append(
            tr(
                "{place} was copied into --offload_dir: its server sends whole files only",
                place=place,
            )
        )
        return fetch(place, offload, lambda name: not has_no_meaning(name))
    return place


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
                tr("a link in the snapshot leads out of its repository"),
                file=path,
                expected=tr("a file in {repository}", repository=repository / "blobs"),
                found=path.readlink(),
                remedy=tr(
                    "remove the snapshot and download the repository again; if you made "
                    "the link, put the file itself there"
                ),
            )


def _leads_into(link: Path, folder: Path) -> bool:
    try:
        target = link.resolve()
        # Links in a circle: an error up to Python 3.12, and a link from 3.13 on.
        return not target.is_symlink() and target.is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False


def _suggest_nearby(path: Path) -> str:
    """Say what is there instead of a path that does not exist, and what was probably meant."""
    whole = path.absolute()
    present = next(parent for parent in whole.parents if parent.is_dir())
    entries = sorted(present.iterdir())
    names = [entry.name for entry in entries if entry.is_dir()]
    usable = [*names, *(entry.name for entry in entries if entry.suffix in (".gguf", ".zip"))]
    missing = whole.relative_to(present).parts[0]
    by_case = {name.casefold(): name for name in usable}
    if close := get_close_matches(missing.casefold(), by_case, 1):
        return tr("did you mean {present}?", present=present / by_case[close[0]])
    listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return tr(
        "check the spelling; {present} holds {listed}",
        present=present,
        listed=listed or tr("no folders"),
    )


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
        offload.copies[local_dir] = repo_id
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
            tr(
                "the {role} is no local folder, and it could not be fetched from the Hub", role=role
            ),
            file=hub_id[0],
            expected=tr("a local folder or the id of a repository that you may read"),
            found=shorten(str(error), 200),
            remedy=tr(
                "check the spelling; for a private or gated repository run `hf auth "
                "login` first; without a network, download it elsewhere and give the "
                "folder"
            ),
        ) from None
    if not folder.is_dir():
        raise UsageError(
            tr("the repository of the {role} has no such folder", role=role),
            file=hub_id[0],
            expected=tr("a folder {inside} in {repo_id}", inside=inside, repo_id=repo_id),
            remedy=tr("check the spelling on the repository's page"),
        )
    return folder
