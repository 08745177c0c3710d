"""What one merge shares with others that run beside it: an opened base, and threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from ..storage.offload import Offload

if TYPE_CHECKING:
    from ..engines.group import Member
    from ..tensors.lazy import Checkpoint


class OpenedModels:
    """Models that a job reads, or several side by side: each is opened by the first that needs it.

    Their digests are made while they are read, for all jobs together. ``offload`` holds what is
    unpacked.
    """

    def __init__(self, offload: Offload, are_shared: bool = False) -> None:
        self._offload = offload
        self._are_shared = are_shared
        self._lock = Lock()
        self._opened: dict[str, tuple[Checkpoint, Checkpoint]] = {}

    def open(
        self, role: str, open_model: Callable[[Offload], Checkpoint]
    ) -> tuple[Checkpoint, Checkpoint]:
        """The model of this ``role`` as its files hold it, and as jobs read it.

        What ``open_model`` raises is for each job by itself.
        """
        from ..tensors.digests import add_checkpoint_digests
        from ..tensors.shared import share

        with self._lock:
            if role not in self._opened:
                model = open_model(self._offload)
                read = share(model) if self._are_shared else model
                self._opened[role] = model, add_checkpoint_digests(read)
            return self._opened[role]


@dataclass(frozen=True)
class Together:
    """What a merge gets that runs beside others of a group."""

    member: Member
    models: OpenedModels
