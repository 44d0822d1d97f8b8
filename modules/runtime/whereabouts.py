"""Where each process is, told in the store that they share: for the message of one that has waited too long."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator

from torch.distributed import Store

from common.progress import duration

EVERY = 5.0  # seconds between two notes of a process


class Whereabouts:
    """What this process tells the others, and what they told.

    A thread tells it: a process that waits for its videos says nothing by itself.
    """

    def __init__(self, store: Store, rank: int, world_size: int, every: float = EVERY):
        """Begin to tell.

        Args:
            store: that all share, also while one of them waits for another.
            rank: of this process. world_size: how many there are.
            every: seconds between two notes.
        """
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._every = every
        self._meetings = 0
        self._find: Callable[[], tuple[str, float] | None] = lambda: None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def come_together(self) -> None:
        """Count one more of what all processes come to in the same order."""
        self._meetings += 1

    @contextlib.contextmanager
    def reading(self, find: Callable[[], tuple[str, float] | None]) -> Iterator[None]:
        """Within this tell the others which video is being read.

        Args:
            find: the video and for how many seconds already, None for none; called from another thread.
        """
        before, self._find = self._find, find
        try:
            yield
        finally:
            self._find = before

    def describe_late(self) -> str:
        """Who has not come where this process waits, and with which video, for a message."""
        return "; ".join(filter(None, map(self._describe, range(self._world_size)))) or "another process"

    def stop(self) -> None:
        """Tell nothing any more."""
        self._stopped.set()
        self._thread.join()

    def _describe(self, rank: int) -> str | None:
        """What a process that is late does; None for one that is not."""
        if rank == self._rank:
            return None
        name, key = f"process {rank} of {self._world_size}", _key(rank)
        try:
            told = json.loads(self._store.get(key)) if self._store.check([key]) else None
        except RuntimeError:  # whoever kept the store is gone
            return None
        if told is None:
            return f"{name}, of which nothing was heard"
        if told["meetings"] >= self._meetings:
            return None
        if told["video"] is None:
            return f"{name}, which reads no video"
        return f"{name}, which has been reading {told['video']} for {duration(told['seconds'])}"

    def _tell(self) -> None:
        while not self._stopped.wait(self._every):
            video, seconds = self._find() or (None, 0.0)
            note = {"meetings": self._meetings, "video": video, "seconds": seconds}
            try:
                self._store.set(_key(self._rank), json.dumps(note))
            except RuntimeError:  # whoever kept the store is gone
                return


def _key(rank: int) -> str:
    return f"whereabouts/{rank}"
