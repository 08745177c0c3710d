"""moto's S3 server on loopback, and a client of botocore's for a look into its buckets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

BUCKET = "models"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "a-key",
    "AWS_SECRET_ACCESS_KEY": "a-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def serve_bucket(patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket ``BUCKET``; its server and credentials are in the environment meanwhile."""
    from botocore.session import Session
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        patch.setenv(name, value)
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    try:
        client = Session().create_client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client
        client.close()
    finally:
        server.stop()


def upload(client: Any, folder: Path, prefix: str) -> None:
    """Put the files of a folder below ``prefix``."""
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())


def list_keys(client: Any, prefix: str = "") -> list[str]:
    """The names of the objects that anybody sees."""
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return [entry["Key"] for entry in found]


def list_uploads(client: Any) -> list[str]:
    """The names of multipart uploads that nobody has completed."""
    found = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return [entry["Key"] for entry in found]


def fetch(client: Any, prefix: str) -> dict[str, bytes]:
    """The objects below ``prefix``, by name."""
    return {
        key.removeprefix(f"{prefix}/"): client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        for key in list_keys(client, f"{prefix}/")
    }
