"""Which video is being read: what a process can say of its workers while it waits for them."""

import contextlib
import time
from collections.abc import Iterator

import torch
from torch.utils.data import get_worker_info

SLOTS = 256  # more workers than that share theirs
NONE = -1


class BeingRead:
    """Notes of a dataset's readers, the process itself and its workers, in memory that they share."""

    def __init__(self):
        """Nothing is being read."""
        # (SLOTS, 2) int64, a row a reader: which item, and since when, in nanoseconds of a clock that all have
        self._notes = torch.full((SLOTS, 2), NONE).share_memory_()

    @contextlib.contextmanager
    def note(self, item: int) -> Iterator[None]:
        """Within this the reader that enters it reads an item, a number from 0."""
        worker = get_worker_info()
        row = self._notes.numpy()[0 if worker is None else 1 + worker.id % (SLOTS - 1)]
        row[1], row[0] = time.monotonic_ns(), item
        try:
            yield
        finally:
            row[0] = NONE

    def longest(self) -> tuple[int, float] | None:
        """The item that has been read for the longest time, and for how many seconds; None where none is read."""
        now = time.monotonic_ns()
        reading = [(since, item) for item, since in self._notes.tolist() if item != NONE]
        if not reading:
            return None
        since, item = min(reading)
        return item, (now - since) / 1e9
