"""Threads that compute, each by itself: torch's own threads would fight over the processors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

_lock = threading.Lock()


class ComputePool(ThreadPoolExecutor):
    """A pool whose threads compute with one torch thread each.

    torch keeps the number for each thread, and a default for threads to come. Neither the caller's
    number nor that default is changed, so what else the process does stays as it is.
    """

    def __init__(self, num_workers: int) -> None:
        super().__init__(num_workers, initializer=_use_one_thread)


@contextmanager
def use_one_torch_thread() -> Iterator[None]:
    """Let the calling thread compute in the block with one torch thread, and no other."""
    before = torch.get_num_threads()
    _use_one_thread()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _use_one_thread() -> None:
    with _lock:
        default = torch.get_num_threads()
        torch.set_num_threads(1)  # of this thread, and of threads to come
        restore = threading.Thread(target=torch.set_num_threads, args=(default,))
        restore.start()
        restore.join()
