"""URLs as places of files: which protocols there are, and what their clients' errors mean.

fsspec and the clients are imported here, where a URL was given, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import FormatError, MergeError, NetworkError, UsageError
from ..messages import Message, compose, tell_error, tr

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]+)://")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@(?=[^/\s]*[./:])|\?\S*")
# The package that reads a protocol, beside fsspec.
PACKAGES = {
    "hf": "huggingface_hub",
    "s3": "s3fs",
    "gs": "gcsfs",
    "hdfs": "pyarrow",
    "http": "aiohttp",
    "https": "aiohttp",
}
_INSTALL = tr('install it: pip install "chinese-llama-merge[remote]"')
# Seconds until a server that says nothing counts as gone, and how often a request is tried.
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 30.0
ATTEMPTS = 5
# Whole answers up to this size are read at once, so that a connection that breaks counts as well.
SMALL_BYTES = 32 << 20
_NOT_ALLOWED = (401, 403)
_GONE = (404, 410)
_CHANGED = 412


class MissingError(UsageError):
    """A file, folder or bucket is not there."""


class WholeFilesOnlyError(UsageError):
    """A server cannot send a part of a file."""


class ChangedError(Exception):
    """A server answers with another version of a file than before."""


class NoRangesError(Exception):
    """A server answers a request for a part of a file with the whole."""


def is_url(text: str) -> bool:
    """Whether a name is a URL; ``C:\\models`` is a path, and so is ``owner/name``.

    >>> is_url("s3://bucket/base"), is_url("C:/models"), is_url("owner/name")
    (True, False, False)
    """
    return _URL.match(text) is not None


def is_http(url: str) -> bool:
    """Whether a URL is of a plain web server, which cannot list its files."""
    return url.lower().startswith(("http://", "https://"))


def hide_credentials(text: str) -> str:
    """A name, or a message, without the user, password and query of the URLs in it.

    >>> hide_credentials("https://me:secret@host.org/base?signature=5 failed")
    'https://host.org/base failed'
    >>> hide_credentials("hf://owner/name@v1/folder")
    'hf://owner/name@v1/folder'
    """
    return _CREDENTIALS.sub("", text) if is_url(text) or "://" in text else text


def open_file_system(url: str) -> AbstractFileSystem:
    """fsspec's implementation for the protocol of ``url``, with bounded waiting.

    What fsspec's own configuration says (``FSSPEC_S3_ENDPOINT_URL`` and the like) comes first.
    Raises ``UsageError`` for an unknown protocol, and where a package is missing.
    """
    protocol = _find_protocol(url)
    try:
        import fsspec
        from fsspec.config import conf

        options = _get_options(protocol) | conf.get(protocol, {})
        kind = fsspec.get_filesystem_class(protocol)
        options |= kind._get_kwargs_from_urls(url)
        with told_as_error(url, tr("connecting")):
            return kind(skip_instance_cache=True, **options)
    except ImportError as error:
        raise UsageError(
            tr("a package that reads {protocol}:// is not installed", protocol=protocol),
            file=hide_credentials(url),
            expected=PACKAGES[protocol],
            found=error,
            remedy=_INSTALL,
        ) from None


def _find_protocol(url: str) -> str:
    match = _URL.match(url)
    assert match is not None, "only URLs come here"
    protocol = match["protocol"].lower()
    if protocol not in PACKAGES:
        raise UsageError(
            tr("no program part reads URLs of this kind"),
            file=hide_credentials(url),
            expected=", ".join(f"{name}://" for name in PACKAGES),
            found=f"{protocol}://",
            remedy=tr("name a local file by its path; copy others to one of these places first"),
        )
    return protocol


def _get_options(protocol: str) -> dict[str, Any]:
    if protocol in ("http", "https"):
        from .http_client import make_client_options

        return {"client_kwargs": make_client_options(), "encoded": True}
    if protocol == "s3":
        timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENT_SECONDS}
        retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
        return {"config_kwargs": {**timeouts, "retries": retries}}
    return {}


@contextmanager
def told_as_error(url: str, asked: str) -> Iterator[None]:
    """Turn what a client raises in the block into one message with URL, request and answer.

    Raises ``FormatError`` for a file that has changed meanwhile, ``UsageError`` for one that is not
    there or may not be read, else ``NetworkError``.
    """
    try:
        yield
    except (MergeError, MemoryError, ImportError):
        raise
    except Exception as error:
        raise _translate(error, hide_credentials(url), asked) from error


def _translate(error: Exception, shown: str, asked: str) -> MergeError:
    chain = list(_iter_causes(error))
    statuses = {_get_status(one) for one in chain}
    kinds = {type(one).__name__ for one in chain}
    text = tell_error(chain[-1] or error, 300)
    if not isinstance(text, Message):
        text = hide_credentials(text) or type(error).__name__
    found = compose("{asked}: {text}", asked=asked, text=text)
    if _CHANGED in statuses or kinds & {"ChangedError", "FileExpired"}:
        return FormatError(
            tr("the file was changed while it was read"),
            file=shown,
            found=found,
            remedy=tr("start again when nobody writes there"),
        )
    if "NoRangesError" in kinds:
        return WholeFilesOnlyError(
            tr("the server sends whole files only, so that tensors cannot be read where they are"),
            file=shown,
            expected=tr("a server that answers requests with Range"),
            found=found,
            remedy=tr("name a folder with room for a copy with --offload_dir, or copy it yourself"),
        )
    if statuses & set(_NOT_ALLOWED) or kinds & {"PermissionError", "NoCredentialsError"}:
        return UsageError(
            tr("the place does not exist, or these credentials do not open it"),
            file=shown,
            found=found,
            remedy=tr(
                "check the spelling, and give the client your credentials (docs/remote_files.md)"
            ),
        )
    if statuses & set(_GONE) or (isinstance(error, FileNotFoundError) and len(chain) == 1):
        return MissingError(
            tr("there is no such file, folder or bucket"),
            file=shown,
            found=found,
            remedy=tr("check the spelling"),
        )
    return NetworkError(
        tr("the place did not answer as it should, also when asked again"),
        file=shown,
        found=found,
        remedy=tr("check the address and the network, then run the command again"),
    )


def _iter_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _get_status(error: BaseException) -> int | None:
    """The HTTP status that an error of aiohttp, botocore or huggingface_hub was made from."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return response if isinstance(response, int) else None
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def split_query(url: str) -> tuple[str, str]:
    """A URL without its query, and the query; only a web server has one."""
    if not is_http(url):
        return url.rstrip("/"), ""
    query = urlsplit(url).query
    return url.partition("?")[0].rstrip("/"), f"?{query}" if query else ""
