"""Several jobs that run side by side: the same rows of the same tensor are computed in a row.

Each job has a plan, files and an engine of its own, in threads of its own. It submits its spans in
order; when every job of the group has submitted one, those that come first in the model, and are
the same rows, go to one thread, which computes them one after the other. What they have in common
is then read once (``tensors/shared.py``). A job that ends, or fails, drops out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import torch

from ..interruption import Interrupted
from ..tensors.shared import read_once
from .spans import Span, Submit


@dataclass(frozen=True)
class _Request:
    """A span that a job wants to have computed into ``buffer``."""

    span: Span
    buffer: torch.Tensor
    future: Future[torch.Tensor]

    def run(self) -> None:
        """Compute it, unless nobody waits for it any more; an error is for the job that waits."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.span.compute(self.buffer))
        except BaseException as error:  # noqa: BLE001  # raised again in the job's thread
            self.future.set_exception(error)


class Group:
    """Jobs, ``size`` of them, whose spans are computed by the threads of ``pool``."""

    def __init__(self, size: int, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._lock = Lock()
        self._places: dict[str, int] = {}
        self._is_stopped = False
        self.members = tuple(Member(self, size) for _ in range(size))
        self._taking_part = list(self.members)

    def stop(self) -> None:
        """End all jobs that are not at their end: they are told that they were interrupted."""
        with self._lock:
            self._is_stopped = True
            for member in self._taking_part:
                while member.requests:
                    future = member.requests.popleft().future
                    if future.set_running_or_notify_cancel():
                        future.set_exception(Interrupted())

    def learn_order(self, names: Iterable[str]) -> None:
        """Take the names of a member's tensors in their order; those that are known keep theirs."""
        with self._lock:
            for name in names:
                self._places.setdefault(name, len(self._places))

    def submit(self, member: Member, request: _Request) -> None:
        """Take the next span of a member. Raises ``Interrupted`` once the group is stopped."""
        with self._lock:
            if self._is_stopped:
                raise Interrupted
            member.requests.append(request)
            self._dispatch()

    def leave(self, member: Member) -> None:
        """Go on without a member."""
        with self._lock:
            if member in self._taking_part:
                self._taking_part.remove(member)
            while member.requests:
                member.requests.popleft().future.cancel()
            self._dispatch()

    def _dispatch(self) -> None:
        """Hand on what comes first, as long as it is known of every member what it wants next."""
        while self._taking_part and all(member.requests for member in self._taking_part):
            first = min(self._locate(member.requests[0]) for member in self._taking_part)
            chosen = [
                member.requests.popleft()
                for member in self._taking_part
                if self._locate(member.requests[0]) == first
            ]
            self._pool.submit(_compute, chosen)

    def _locate(self, request: _Request) -> tuple[int, int]:
        """Where rows are in the model."""
        return self._places[request.span.placed.name], request.span.start


def _compute(requests: Sequence[_Request]) -> None:
    if len(requests) == 1:
        requests[0].run()
        return
    with read_once(requests[0].span.start, max(request.span.stop for request in requests)):
        for request in requests:
            request.run()


class Member:
    """A job of a group of ``size``, which takes part until it has left."""

    def __init__(self, group: Group, size: int) -> None:
        self._group = group
        self._futures: list[Future[torch.Tensor]] = []
        self.size = size
        self.requests: deque[_Request] = deque()

    @contextmanager
    def computing(self, names: Iterable[str]) -> Iterator[Submit]:
        """In the block a job writes tensors of these ``names``, of which it may skip some.

        Yields what has its spans computed, in the order of the names, called from one thread. At
        the end the member leaves, and no thread reads for it any more.
        """
        self._group.learn_order(names)
        try:
            yield self._submit
        finally:
            self.leave()
            wait([future for future in self._futures if not future.cancelled()])

    def _submit(self, span: Span, buffer: torch.Tensor) -> Future[torch.Tensor]:
        future: Future[torch.Tensor] = Future()
        self._group.submit(self, _Request(span, buffer, future))
        self._futures = [one for one in self._futures if not one.done()] + [future]
        return future

    def leave(self) -> None:
        """Let the others go on without this job, which is at its end or has failed."""
        self._group.leave(self)
