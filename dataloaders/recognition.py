"""What every recognition reader returns, and what the readers share: finding videos, and checks of a whole split."""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass
from pathlib import Path

from dataloaders.pack_index import PackIndex
from dataloaders.samples import (
    UNUSABLE,
    VIDEO_SUFFIXES,
    Sample,
    VideoLocation,
    is_blank,
    is_video,
    list_folder,
    missing_problems,
    read_text,
    show,
)
from modules.settings import setting


@dataclass(frozen=True)
class RecognitionSplit:
    """One split of a recognition dataset.

    classes: official class names; a class's position is its label. texts: the words shown to CLIP, same order.
    train, test: in the order of the split files; a sample's only caption is its class's text.
    missing: the list ("training" or "test") and id of each video without a file, in order; they are in neither
    `train` nor `test`, and there are none unless the reader was told to go on without them.
    """

    classes: tuple[str, ...]
    texts: tuple[str, ...]
    train: list[Sample]
    test: list[Sample]
    missing: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RecognitionDataset:
    """A dataset: its flags, and how its files become a split.

    settings: a frozen dataclass of `modules.settings.setting` fields; each becomes a flag.
    splits: the names that --split takes.
    read: from the settings and a name of `splits`, that split; raises AnnotationError. A third argument, by name
    `allow_missing`, holds "training", "test" or both: the lists whose videos without a file are left out.
    left_right_matters: left and right are part of a class's meaning, so frames must not be mirrored.
    """

    settings: type
    splits: tuple[str, ...]
    read: Callable[..., RecognitionSplit]
    left_right_matters: bool


@dataclass(frozen=True)
class SplitSettings(VideoLocation):
    """Where a recognition dataset's files are."""

    split_dir: Path = setting(
        MISSING,
        "official files: testTrainMulti_7030_splits of HMDB51, ucfTrainTestlist of UCF101, JSON files of SSv2",
        affects_results=False,
        metavar="FOLDER",
    )


def make_dataset(
    read_split: Callable[[Path, Path | PackIndex, str, Collection[str]], RecognitionSplit],
    splits: tuple[str, ...],
    left_right_matters: bool,
) -> RecognitionDataset:
    """A dataset of a folder of split files and a folder or pack of videos.

    read_split: from the two, a name of `splits` and the lists that may miss files, that split.
    """

    def read(settings: SplitSettings, split: str, allow_missing: Collection[str] = ()) -> RecognitionSplit:
        return read_split(settings.split_dir, settings.videos, split, allow_missing)

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
    """The videos in a folder and in its class folders, or in a pack of these, found by the names in split files.

    Every folder is listed once, when the object is made. Containers do not matter, and neither does upper or
    lower case where no file has the exact name: copies of UCF101 disagree on `HandStandPushups`.

    problems: what is wrong with the folder as a whole.
    """

    def __init__(self, folder: str | Path | PackIndex, class_folders: bool):
        """folder: holds the videos, or a pack that does. class_folders: it may hold them in subfolders, one a class."""
        self.folder = Path(folder)
        self.problems: list[str] = []
        self._class_folders = class_folders
        self._paths: dict[str, list[str]] = {}  # case-folded `<class>/<stem>` or `<stem>` -> files
        if isinstance(folder, PackIndex):
            self._list_pack(folder)
        else:
            self._list(self.folder, "", class_folders)
        if not self._paths and not self.problems:
            place = "no videos, neither directly nor in class folders" if class_folders else "no videos"
            self.problems.append(f"the video folder {folder} holds {place} ({', '.join(sorted(VIDEO_SUFFIXES))})")

    def _list_pack(self, pack: PackIndex) -> None:
        for folders, path in pack.paths():
            if len(folders) <= int(self._class_folders):
                self._add("/".join([*folders, path.stem]), str(path))

    def _list(self, folder: str | Path, prefix: str, subfolders: bool) -> None:
        # Not glob, to which the brackets in HMDB51's file names are patterns; and not a Path for every entry, of
        # which Something-Something V2 has 220,000.
        entries, problems = list_folder(folder, "class folder" if prefix else "video folder")
        self.problems += problems
        for entry in entries:
            if is_video(entry):
                stem = os.path.splitext(entry.name)[0]
                self._add(prefix + stem, entry.path)
            elif subfolders and os.path.isdir(entry.path):
                self._list(entry.path, f"{entry.name.casefold()}/", subfolders=False)

    def _add(self, name: str, path: str) -> None:
        self._paths.setdefault(name.casefold(), []).append(path)

    def find(self, video_id: str) -> list[Path]:
        """The files of a video, in its class folder or directly in the folder: one, if all is well.

        What is found was in a listing of the folders: no id leads out of them.
        """
        *folders, stem = video_id.split("/")
        names = [video_id.casefold()]
        if self._class_folders and len(folders) == 1:
            names.append(stem.casefold())
        found = [path for name in names for path in self._paths.get(name, [])]
        found = [path for path in found if Path(path).stem == stem] or found
        return [Path(path) for path in found]


def build_split(
    classes: tuple[str, ...],
    texts: tuple[str, ...],
    train: list[ListedVideo],
    test: list[ListedVideo],
    videos: VideoFiles,
    allow_missing: Collection[str] = (),
) -> tuple[RecognitionSplit, list[str]]:
    """The samples of a split, and the problems that no single line of its files shows.

    These are: a class without a text of its own, a video without exactly one file, a video listed twice, and a
    test video in its own training list. The split is of use only where neither this nor the reader found any.

    allow_missing: the lists, "training" and "test", whose videos without a file are left out; that all of a list
    are without one is a problem still.
    """
    problems = [f"class {name!r} has no text" for name, text in zip(classes, texts, strict=True) if is_blank(text)]
    problems += [f"class {name!r} is not written in UTF-8" for name in classes if UNUSABLE.search(name)]
    problems += [
        f"classes {classes[texts.index(text)]!r} and {classes[label]!r} are both shown to CLIP as {text!r}"
        for label, text in enumerate(texts)
        if text and texts.index(text) < label
    ]
    problems += videos.problems
    first: dict[Path | str, tuple[str, str]] = {}
    samples: dict[str, list[Sample]] = {"training": [], "test": []}
    missing: list[tuple[str, str]] = []
    for name, listed in (("training", train), ("test", test)):
        places: dict[str, str] = {}
        for video in listed:
            shown = show(video.video_id)
            found = videos.find(video.video_id)
            path = found[0] if len(found) == 1 else None
            if len(found) > 1:
                files = ", ".join(os.path.relpath(file, videos.folder) for file in sorted(found))
                problems.append(f"{video.where}: {shown}: more than one video file in {videos.folder}: {files}")
            # One file under two names is one video as well.
            key = path or video.video_id
            if key in first:
                before, where = first[key]
                problems.append(
                    f"{shown}: in the {name} list ({video.where}) and before in the {before} list ({where})"
                )
            first.setdefault(key, (name, video.where))
            if found:
                samples[name].append(Sample(video.video_id, video.video_id, path, (texts[video.label],), video.label))
            else:
                places.setdefault(video.video_id, video.where)
        # What a folder lacks that cannot be listed or holds no videos is not reported again for every video.
        if not videos.problems:
            problems += missing_problems(places, len(listed), name in allow_missing, f"the {name} list", videos.folder)
        missing += [(name, video_id) for video_id in places]
    return RecognitionSplit(classes, texts, samples["training"], samples["test"], tuple(missing)), problems


def strip_suffix(file: str) -> str | None:
    """The name of a listed video file without its suffix; None where it is not the name of a video file."""
    stem, suffix = posixpath.splitext(file)
    return stem if suffix.lower() in VIDEO_SUFFIXES else None


def to_number(text: str) -> int | None:
    """The number that a text writes in decimal digits; None where it writes none, or one that is no label."""
    return int(text) if text.isdecimal() and len(text) < 10 else None


def read_lines(path: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """The lines of a text file that are not blank, stripped and with their numbers from 1, and its problems."""
    text, problems = read_text(path)
    lines = enumerate(io.StringIO(text, newline=None), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()], problems
