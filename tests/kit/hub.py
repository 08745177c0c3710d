"""As much of the Hugging Face Hub's API as huggingface_hub needs to download a repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Serves the folders ``root/OWNER/NAME`` as repositories, ``NAME@REVISION`` as a revision.

    A file whose name is among ``cut`` ends half-way, as when a connection is lost. Parts are sent
    from another place, as the Hub does.
    """

    protocol_version = "HTTP/1.1"

    def __init__(self, root: Path, cut: tuple[str, ...], *args: object) -> None:
        self._root = root
        self._cut = cut
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            revision = parts[5] if len(parts) > 5 else "main"
            self._describe(self._repository(*parts[2:4], revision), parts, with_body)
        elif parts[0] == "parts":
            repository = self._repository(*parts[1:3], parts[4])
            self._send_part(repository / "/".join(parts[5:]))
        elif len(parts) > 4 and parts[2] == "resolve" and "Range" in self.headers:
            self._send(302, b"", {"Location": "/parts/" + "/".join(parts)}, with_body)
        elif len(parts) > 4 and parts[2] == "resolve":
            repository = self._repository(*parts[:2], parts[3])
            self._send_file(repository, "/".join(parts[4:]), with_body)
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)

    def _repository(self, owner: str, name: str, revision: str) -> Path:
        """The folder of a revision, which is named by itself or by its commit."""
        for path in self._root.glob(f"{owner}/{name}@*"):
            if revision in (tag := path.name.partition("@")[2], commit(tag)):
                return path
        return self._root / owner / name

    def _describe(self, repo: Path, parts: list[str], with_body: bool) -> None:
        if not repo.is_dir():
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
            return
        files = (path for path in repo.rglob("*") if path.is_file())
        names = sorted(path.relative_to(repo).as_posix() for path in files)
        answer: object = {
            "id": "/".join(parts[2:4]),
            "sha": commit_of(repo),
            "lastModified": "2024-01-02T03:04:05.000Z",
            "siblings": [{"rfilename": name} for name in names],
        }
        if "tree" in parts:
            folder = repo.joinpath(*parts[parts.index("tree") + 2 :])
            if "recursive=true" in self.path.lower():
                entries = [repo / name for name in names if folder in (repo / name).parents]
            else:
                entries = sorted(folder.iterdir()) if folder.is_dir() else []
            answer = [
                {
                    "type": "file" if path.is_file() else "directory",
                    "path": path.relative_to(repo).as_posix(),
                    "size": path.stat().st_size if path.is_file() else 0,
                    "oid": etag(path) if path.is_file() else "",
                }
                for path in entries
            ]
        headers = {"Content-Type": "application/json"}
        self._send(200, json.dumps(answer).encode(), headers, with_body)

    def _send_file(self, repo: Path, name: str, with_body: bool) -> None:
        path = repo / name
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
            return
        headers = {"ETag": f'"{etag(path)}"', "X-Repo-Commit": commit_of(repo)}
        self._send(200, path.read_bytes(), headers, with_body, path.name in self._cut)

    def _send_part(self, path: Path) -> None:
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        content = path.read_bytes()
        part = content[int(first) : int(last) + 1]
        place = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self._send(206, part, {"Content-Range": place}, with_body=True)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], with_body: bool, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: the test's own output is enough."""


def commit(tag: str) -> str:
    """The commit that a tag stands for."""
    return hashlib.sha1(tag.encode()).hexdigest()


def commit_of(repo: Path) -> str:
    """The commit of a repository's folder."""
    tag = repo.name.partition("@")[2]
    return commit(tag) if tag else COMMIT


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serve(root: Path, cut: tuple[str, ...] = ()) -> Iterator[str]:
    """Serve the repositories in ``root``; give the address for ``HF_ENDPOINT``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root, cut))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
