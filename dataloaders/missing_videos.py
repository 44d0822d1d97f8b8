"""Videos of a list that have no file: how they are listed, and which of them a run may leave out."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from dataloaders.annotations import raise_if_problems, read_text, show

MISSING_VIDEOS = "missing_videos.csv"  # the list, of a run or of preprocess/check_videos.py
MISSING_COLUMNS = ("list", "video")
MAKE_AGAIN = (
    "If these are gone too, preprocess/check_videos.py, with the flags of this run that name its files, writes the "
    "list anew."
)


class MayBeMissing:
    """Which videos of its lists a run may leave out because they have no file.

    Attributes:
        training, evaluation: whether any of that list may be missing; `check` says whether those that are may.
    """

    def __init__(self, allow_missing: bool | Path, drop_evaluation: bool):
        """From flags.

        Args:
            allow_missing: training videos; or a list, whose videos may be missing in training and in evaluation, and
                none but these.
            drop_evaluation: evaluation videos, without a list any of them.

        Raises:
            UserError: if there is no such list.
        """
        self._source = None if isinstance(allow_missing, bool) else allow_missing
        self._listed = frozenset() if self._source is None else read_missing(self._source)
        self.training = bool(allow_missing)
        self.evaluation = drop_evaluation or self._source is not None

    def check(self, missing: Sequence[tuple[str, str]]) -> None:
        """Refuse to leave out what the list does not name.

        Args:
            missing: (list, video id) of the videos that have no file.

        Raises:
            AnnotationError: naming the videos and the list.
        """
        if self._source is not None:
            others = [(name, video) for name, video in missing if video not in self._listed]
            problems = [
                f"{show(video)}, of the {name} list: no video file, and not in this list" for name, video in others
            ]
            raise_if_problems(f"--allow_missing {self._source}", problems, MAKE_AGAIN)


def read_missing(path: Path) -> frozenset[str]:
    """The ids in a list of missing videos, a CSV file with a column `video`.

    Raises:
        UserError: if it cannot be read or is another file.
    """
    text, problems = read_text(path)
    if problems:
        raise UserError(f"--allow_missing: {problems[0]}")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if "video" not in (rows.fieldnames or ()):
        raise UserError(
            f"--allow_missing {path}: needs a column video, as in the {MISSING_VIDEOS} that preprocess/check_videos.py "
            f"writes; found {rows.fieldnames!s:.80}"
        )
    return frozenset(row["video"] for row in rows if row["video"])
