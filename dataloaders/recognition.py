"""What every recognition reader returns, and what the readers share: finding videos, and checks of a whole split."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dataloaders.samples import VIDEO_SUFFIXES, Sample
from modules.settings import setting


@dataclass(frozen=True)
class RecognitionSplit:
    """One split of a recognition dataset.

    classes: official class names; a class's position is its label. texts: the words shown to CLIP, same order.
    train, test: in the order of the split files; a sample's only caption is its class's text.
    """

    classes: tuple[str, ...]
    texts: tuple[str, ...]
    train: list[Sample]
    test: list[Sample]


@dataclass(frozen=True)
class RecognitionDataset:
    """A dataset: its flags, and how its files become a split.

    settings: a frozen dataclass of `modules.settings.setting` fields; each becomes a flag.
    splits: the names that --split takes.
    read: from the settings and a name of `splits`, that split; raises AnnotationError.
    left_right_matters: left and right are part of a class's meaning, so frames must not be mirrored.
    """

    settings: type
    splits: tuple[str, ...]
    read: Callable[[Any, str], RecognitionSplit]
    left_right_matters: bool


@dataclass(frozen=True)
class SplitSettings:
    """Where a recognition dataset's files are."""

    split_dir: Path = setting(
        MISSING,
        "official files: testTrainMulti_7030_splits of HMDB51, ucfTrainTestlist of UCF101, JSON files of SSv2",
        affects_results=False,
    )
    features_path: Path = setting(MISSING, "folder of the videos, in any container", affects_results=False)


def make_dataset(
    read_split: Callable[[Path, Path, str], RecognitionSplit], splits: tuple[str, ...], left_right_matters: bool
) -> RecognitionDataset:
    """A dataset of a folder of split files and a folder of videos.

    read_split: from the two folders and a name of `splits`, that split.
    """

    def read(settings: SplitSettings, split: str) -> RecognitionSplit:
        return read_split(settings.split_dir, settings.features_path, split)

    return RecognitionDataset(SplitSettings, splits, read, left_right_matters)


@dataclass(frozen=True)
class ListedVideo:
    """A video as a split file lists it.

    video_id: `<class>/<stem>`, or `<stem>` where the dataset has no class folders. label: from 0.
    where: the place in the split file, for messages.
    """

    video_id: str
    label: int
    where: str


class VideoFiles:
    """The videos in a folder and in its class folders, found by the names that split files give them.

    Every folder is listed once, when the object is made. Containers do not matter, and neither does upper or
    lower case where no file has the exact name: copies of UCF101 disagree on `HandStandPushups`.

    problems: what is wrong with the folder as a whole.
    """

    def __init__(self, folder: str | Path, class_folders: bool):
        """folder: holds the videos. class_folders: it may hold them in subfolders, one a class."""
        self.folder = Path(folder)
        self.problems: list[str] = []
        self._paths: dict[str, list[str]] = {}  # case-folded `<class>/<stem>` or `<stem>` -> files
        if not self.folder.is_dir():
            self.problems.append(f"the video folder {folder} does not exist")
            return
        self._list(self.folder, "", class_folders)
        if not self._paths:
            place = "no videos, neither directly nor in class folders" if class_folders else "no videos"
            self.problems.append(f"the video folder {folder} holds {place} ({', '.join(sorted(VIDEO_SUFFIXES))})")

    def _list(self, folder: str | Path, prefix: str, subfolders: bool) -> None:
        # Not glob, to which the brackets in HMDB51's file names are patterns; and not a Path for every entry, of
        # which Something-Something V2 has 220,000.
        with os.scandir(folder) as entries:
            for entry in entries:
                # A leading dot marks what file managers leave behind ("._1.webm"), never a video of the dataset.
                if entry.name.startswith("."):
                    continue
                stem, suffix = os.path.splitext(entry.name)
                if suffix.lower() in VIDEO_SUFFIXES:
                    self._paths.setdefault(prefix + stem.casefold(), []).append(entry.path)
                elif subfolders and entry.is_dir():
                    self._list(entry.path, f"{entry.name.casefold()}/", subfolders=False)

    def find(self, video_id: str) -> tuple[Path | None, list[str]]:
        """The file of a video, in its class folder or directly in the folder, and the problem where not one fits.

        In a folder without any video, which is itself among `problems`, no further one is reported.
        """
        stem = PurePosixPath(video_id).name
        names = dict.fromkeys([video_id.casefold(), stem.casefold()])
        found = [path for name in names for path in self._paths.get(name, [])]
        found = [path for path in found if Path(path).stem == stem] or found
        if len(found) == 1:
            return Path(found[0]), []
        if found:
            files = ", ".join(os.path.relpath(path, self.folder) for path in sorted(found))
            return None, [f"{video_id}: more than one video file in {self.folder}: {files}"]
        return None, [f"{video_id}: no video file in {self.folder}"] if self._paths else []


def build_split(
    classes: tuple[str, ...],
    texts: tuple[str, ...],
    train: list[ListedVideo],
    test: list[ListedVideo],
    videos: VideoFiles,
) -> tuple[RecognitionSplit, list[str]]:
    """The samples of a split, and the problems that no single line of its files shows.

    These are: a class without a text of its own, a video without exactly one file, a video listed twice, and a
    test video in its own training list. The split is of use only where neither this nor the reader found any.
    """
    problems = [f"class {name!r} has no text" for name, text in zip(classes, texts, strict=True) if not text]
    problems += [
        f"classes {classes[texts.index(text)]!r} and {classes[label]!r} are both shown to CLIP as {text!r}"
        for label, text in enumerate(texts)
        if text and texts.index(text) < label
    ]
    problems += videos.problems
    first: dict[Path | str, tuple[str, str]] = {}
    samples: dict[str, list[Sample]] = {"training": [], "test": []}
    for name, listed in (("training", train), ("test", test)):
        for video in listed:
            path, path_problems = videos.find(video.video_id)
            problems += path_problems
            # One file under two names is one video as well.
            key = path or video.video_id
            if key in first:
                before, where = first[key]
                problems.append(
                    f"{video.video_id}: in the {name} list ({video.where}) and before in the {before} list ({where})"
                )
            first.setdefault(key, (name, video.where))
            samples[name].append(Sample(video.video_id, video.video_id, path, (texts[video.label],), video.label))
    return RecognitionSplit(classes, texts, samples["training"], samples["test"]), problems


def strip_suffix(file: str) -> str | None:
    """The name of a listed video file without its suffix; None where it is not the name of a video file."""
    path = PurePosixPath(file)
    return str(path.with_suffix("")) if path.suffix.lower() in VIDEO_SUFFIXES else None


def read_lines(path: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """The lines of a text file that are not blank, stripped and with their numbers from 1, and its problems."""
    if not path.is_file():
        return [], [f"no such file: {path}"]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        return [], [f"{path} cannot be read as text: {error}"]
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return lines, [] if lines else [f"{path} is empty"]


def read_json(path: Path, kind: type) -> tuple[Any, list[str]]:
    """What a JSON file holds, which must be a `kind` (list or dict) that is not empty, and its problems."""
    if not path.is_file():
        return kind(), [f"no such file: {path}"]
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        return kind(), [f"{path} cannot be read as JSON: {error}"]
    if not isinstance(content, kind) or not content:
        wanted = {list: "a list", dict: "an object"}[kind]
        return kind(), [f"{path} needs {wanted} that is not empty, found {content!s:.80}"]
    return content, []
