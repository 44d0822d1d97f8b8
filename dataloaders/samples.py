"""What every dataset reader returns: samples, with where their videos are; and videos that two lists share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common.errors import UserError
from common.settings import setting
from dataloaders.annotations import MAX_LISTED_PROBLEMS, AnnotationError, show
from dataloaders.video.pack_index import PackIndex


@dataclass(frozen=True)
class Sample:
    """One training or evaluation item: a video and the captions that it may be paired with.

    sample_id: unique within its split; the key of every random draw that is made for this item.
    video_id: the dataset's own name of the video; equal for samples that share a video.
    path: the video file; of a packed video, the path that `PackIndex` gives it.
    captions: at least one text; where there are several, the dataset draws one an epoch.
    label: in recognition the index of the video's class, from 0; None in retrieval.
    test_set: the name of the set within which the item is ranked; None where the list names no sets.
    """

    sample_id: str
    video_id: str
    path: Path
    captions: tuple[str, ...]
    label: int | None = None
    test_set: str | None = None


@dataclass(frozen=True)
class VideoLocation:
    """Where a dataset's videos are: in a folder or in a pack, one of the two."""

    features_path: Path | None = setting(
        None, "folder of the videos, in any container", affects_results=False, metavar="FOLDER"
    )
    packed: Path | None = setting(
        None,
        "folder that preprocess/pack_frames.py made, read in place of --features_path",
        affects_results=False,
        metavar="FOLDER",
    )

    @property
    def videos(self) -> Path | PackIndex:
        """The folder of the videos, or the opened pack.

        Raises:
            UserError: none is given, or both are; or the pack cannot be used.
        """
        if (self.features_path is None) == (self.packed is None):
            given = "neither is" if self.packed is None else "both are"
            raise UserError(
                "give --features_path, the folder of the videos, or --packed, a pack of their frames: " + given
            )
        return self.features_path if self.pack is None else self.pack

    @cached_property
    def pack(self) -> PackIndex | None:
        """The pack, opened; None where videos are in a folder. Read once, however many lists are read.

        Raises:
            UserError: it cannot be used.
        """
        return None if self.packed is None else PackIndex.open(self.packed)


def check_overlap(training: Iterable[Sample], evaluation: Iterable[Sample], official: bool, source: str) -> str | None:
    """A warning that names the evaluation videos that are also trained on; None where there are none.

    official: of splits that share none as they were published, so that the files cannot be theirs. source: the
    lists, for the message.

    Raises AnnotationError in place of the warning where the splits are official.
    """
    shared = shared_videos(training, evaluation)
    if not shared:
        return None
    names = [
        show(video_id) if video_id == trained else f"{show(video_id)} (trained on as {show(trained)})"
        for video_id, trained in shared.items()
    ]
    more = f" and {len(names) - MAX_LISTED_PROBLEMS} more" if len(names) > MAX_LISTED_PROBLEMS else ""
    count = "1 evaluation video is" if len(names) == 1 else f"{len(names)} evaluation videos are"
    text = f"{source}: {count} also trained on: {', '.join(names[:MAX_LISTED_PROBLEMS])}{more}"
    if official:
        raise AnnotationError(f"{text}\nThe official splits share no video: download their files again.")
    return f"{text}. The results will be too good: take these videos out of one of the two lists."


def shared_videos(training: Iterable[Sample], evaluation: Iterable[Sample]) -> dict[str, str]:
    """The ids of the evaluation videos that are also trained on, in order, each with the id under which it is.

    One video is what has one id, and also what is one file under two ids, be it by links or another spelling.
    """
    # A video may have twenty samples: paths are resolved once a video.
    trained = {sample.video_id: sample.path for sample in training}
    evaluated = {sample.video_id: sample.path for sample in evaluation}
    folders: dict[str, str] = {}
    files = {_real_path(path, folders): video_id for video_id, path in trained.items()}
    shared = {}
    for video_id, path in evaluated.items():
        same = video_id if video_id in trained else files.get(_real_path(path, folders))
        if same is not None:
            shared[video_id] = same
    return shared


def _real_path(path: Path, folders: dict[str, str]) -> str:
    """The path of a file without links; `folders` keeps those of folders, each of which holds thousands of files."""
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    file = os.path.join(folders[folder], name)
    return os.path.realpath(file) if os.path.islink(file) else file
