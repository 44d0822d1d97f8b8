"""Videos that cannot be read: as a worker returns them, as a run lists them, and what to do about them."""

from dataclasses import dataclass
from typing import NoReturn

from dataloaders.video.decoding import BadVideoError

SKIPPED = "bad_videos.csv"  # the list, of a run or of preprocess/check_videos.py
SKIPPED_COLUMNS = ("step", "epoch", "sample", "attempt", "video", "reason")
READ_ANOTHER = "Replace this video, or give --on_bad_video skip, which reads another in its stead."
LEAVE_OUT_BAD = "Replace this video, or give --on_bad_eval_video drop, which leaves it out and changes the metrics."


@dataclass(frozen=True)
class SkippedVideo:
    """A video that was drawn for a sample of training and could not be read.

    Attributes:
        epoch: from 0. sample_id: of the sample that it was drawn for.
        attempt: 0 for the sample's own video, then for those drawn in its stead.
        path, reason: which video, and what is wrong with it.
    """

    epoch: int
    sample_id: str
    attempt: int
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class BadItem:
    """What a worker returns for an item that could not be read.

    Raised in the worker, the error would arrive as a text with the worker's traceback, without path and reason.
    """

    index: int
    path: str
    reason: str

    def raise_error(self, remedy: str = "") -> NoReturn:
        """Raise what was raised in the worker, and say what to do.

        As a new error: one that its own traceback leads back to would keep the data loader alive.

        Raises:
            BadVideoError: always.
        """
        raise BadVideoError(self.path, self.reason, remedy)
