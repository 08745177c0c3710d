"""A Ray cluster as this program uses it: connecting, calling functions there, and their results."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import MergeError, UsageError
from ..interruption import raise_if_interrupted
from ..messages import tr
from ..version import __version__

# A task that is lost more often is lost for a reason of its own, such as memory that is too small.
RETRIES = 20
_CONNECT_SECONDS = 5.0
_POLL_SECONDS = 0.2


@contextmanager
def connect(address: str | None) -> Iterator[None]:
    """A connection of this process to the cluster, unless it has one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    if address and ":" in address:
        _require_answer(address)
    import ray

    if ray.is_initialized():  # by the program that calls this one
        connected = str(ray.get_runtime_context().gcs_address)
        if address not in (None, "auto", connected):
            raise UsageError(
                tr("this process is connected to another Ray cluster"),
                expected=address,
                found=connected,
                remedy=tr("leave --ray_address out, or call ray.shutdown() before"),
            )
        yield
        return
    try:
        with _keep_signal_handlers():
            ray.init(
                address=address,
                include_dashboard=False,  # of a cluster that is started here
                log_to_driver=False,
                logging_level="ERROR",
            )
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Ray itself would try for minutes. Raises ``UsageError``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            tr("no Ray cluster answers at this address"),
            expected=tr(
                "a connection to {address} within {connect_seconds:g} s",
                address=address,
                connect_seconds=_CONNECT_SECONDS,
            ),
            found=error,
            remedy=tr(
                "check --ray_address and RAY_ADDRESS, and `ray status` on a machine "
                "of the cluster; `ray start --head` starts one"
            ),
        ) from None


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Ray takes SIGTERM for itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class MachineLostError(MergeError):
    """A task was lost with its process or machine, and Ray has given it up."""


def iter_done(refs: Sequence[Any], each_time: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """Yield references as their tasks end; ``each_time`` is called now and then."""
    import ray

    pending = list(refs)
    while pending:
        raise_if_interrupted()
        done, pending = ray.wait(pending, num_returns=1, timeout=_POLL_SECONDS)
        yield from done
        each_time()


def make_remote(**options: Any) -> Callable[..., Any]:
    """Make a function that has Ray call one of ``ray_worker``; it returns a reference.

    Ray carries bytes, so that a machine on which this program is missing, or is another version,
    can say so. Where it is not installed, it is looked for where it is on this machine.
    """
    import ray

    folder = str(Path(__file__).parents[2])

    def enter(name: str, arguments: bytes, *results: bytes) -> bytes:
        import sys

        if folder not in sys.path:
            sys.path.append(folder)
        from merge.engines.ray_worker import run

        return run(__version__, name, arguments, *results)

    remote = ray.remote(**options)(enter)

    def call(function: Callable[..., Any], *arguments: Any, results: Iterable[Any] = ()) -> Any:
        return remote.remote(function.__name__, pickle.dumps(arguments), *results)

    return call


def get_result(ref: Any) -> Any:
    """What a task returned. Raises what it raised, as if that had happened here."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return pickle.loads(ray.get(ref))
    except RayTaskError as error:
        if isinstance(error.cause, (MergeError, OSError)):
            raise error.cause from None
        raise
    except RayError as error:
        raise MachineLostError(
            tr("a task was lost with the process or the machine that ran it"),
            found=str(error).partition("\n")[0],
            expected=tr("a task is tried again up to {retries} times", retries=RETRIES),
            remedy=tr(
                "see Ray's logs; where memory is short, give a smaller --max_memory "
                "or --num_workers; --resume keeps what is whole"
            ),
        ) from None
