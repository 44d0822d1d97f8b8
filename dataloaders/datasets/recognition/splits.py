"""What every recognition reader returns, and what the readers share: checks of a whole split."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from common.settings import setting
from dataloaders.annotations import UNUSABLE, is_blank, show
from dataloaders.samples import Sample, VideoLocation
from dataloaders.video.pack_index import PackIndex
from dataloaders.video_files import VIDEO_SUFFIXES, VideoFiles

LISTS = ("training", "test")


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

    settings: a frozen dataclass of `common.settings.setting` fields; each becomes a flag.
    splits: the names that --split takes.
    read: from the settings and a name of `splits`, that split; raises AnnotationError. A third argument, by name
    `allow_missing`, holds "training", "test" or both: the lists whose videos without a file are left out; a fourth, by
    name `lists`, those whose videos are looked for at all: an evaluation needs no training videos.
    left_right_matters: left and right are part of a class's meaning, so frames must not be mirrored.
    recipe: the dataset's own defaults of flags, by their names without dashes: what it is customarily trained with.
    """

    settings: type
    splits: tuple[str, ...]
    read: Callable[..., RecognitionSplit]
    left_right_matters: bool
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitSettings(VideoLocation):
    """Where a recognition dataset's files are."""

    split_dir: Path = setting(
        MISSING,
        "official files: testTrainMulti_7030_splits of HMDB51, ucfTrainTestlist of UCF101, JSON files of SSv2, CSV "
        "files of Kinetics-400",
        affects_results=False,
        metavar="FOLDER",
    )


def make_dataset(
    read_split: Callable[[Path, Path | PackIndex, str, Collection[str], Collection[str]], RecognitionSplit],
    splits: tuple[str, ...],
    left_right_matters: bool,
    recipe: Mapping[str, Any] | None = None,
) -> RecognitionDataset:
    """A dataset of a folder of split files and a folder or pack of videos.

    read_split: from the two, a name of `splits`, the lists that may miss files and those wanted, that split.
    recipe: None for none.
    """

    def read(
        settings: SplitSettings, split: str, allow_missing: Collection[str] = (), lists: Collection[str] = LISTS
    ) -> RecognitionSplit:
        return read_split(settings.split_dir, settings.videos, split, allow_missing, lists)

    return RecognitionDataset(SplitSettings, splits, read, left_right_matters, recipe or {})


@dataclass(frozen=True)
class ListedVideo:
    """A video as a split file lists it.

    video_id: `<class>/<stem>`, or `<stem>` where the dataset has no class folders. label: from 0.
    where: the place in the split file, for messages.
    """

    video_id: str
    label: int
    where: str


def build_split(
    classes: tuple[str, ...],
    texts: tuple[str, ...],
    train: list[ListedVideo],
    test: list[ListedVideo],
    videos: VideoFiles,
    allow_missing: Collection[str] = (),
    lists: Collection[str] = LISTS,
) -> tuple[RecognitionSplit, list[str], list[str]]:
    """The samples of a split, the problems that no single line of its files shows, and a sentence against some of them.

    These are: a class without a text of its own, a video without exactly one file, a video listed twice, and a
    test video in its own training list. The split is of use only where neither this nor the reader found any.

    allow_missing: the lists, "training" and "test", whose videos without a file are left out; that all of a list
    are without one is a problem still. lists: of these two, those whose videos are looked for; the other is empty.
    """
    problems = [f"class {name!r} has no text" for name, text in zip(classes, texts, strict=True) if is_blank(text)]
    problems += [f"class {name!r} is not written in UTF-8" for name in classes if UNUSABLE.search(name)]
    problems += [
        f"classes {classes[texts.index(text)]!r} and {classes[label]!r} are both shown to CLIP as {text!r}"
        for label, text in enumerate(texts)
        if text and texts.index(text) < label
    ]
    problems += videos.problems
    remedies: list[str] = []
    first: dict[Path | str, tuple[str, str]] = {}
    samples: dict[str, list[Sample]] = {"training": [], "test": []}
    missing: list[tuple[str, str]] = []
    for name, list_name, listed in (("training", "training", train), ("test", "evaluation", test)):
        if name not in lists:
            continue
        places: dict[str, str] = {}
        for video in listed:
            places.setdefault(video.video_id, video.where)
        located = videos.locate(places, list_name, f"the {name} list", name in allow_missing)
        for video in listed:
            path = located.paths.get(video.video_id)
            # One file under two names is one video as well.
            key = path or video.video_id
            if key in first:
                before, where = first[key]
                problems.append(
                    f"{show(video.video_id)}: in the {name} list ({video.where}) "
                    f"and before in the {before} list ({where})"
                )
            first.setdefault(key, (name, video.where))
            if path is not None:
                samples[name].append(Sample(video.video_id, video.video_id, path, (texts[video.label],), video.label))
        problems += located.problems
        remedies += located.remedies
        missing += [(name, video_id) for video_id in located.missing]
    split = RecognitionSplit(classes, texts, samples["training"], samples["test"], tuple(missing))
    # A folder that cannot be read is a problem of both lists.
    return split, list(dict.fromkeys(problems)), list(dict.fromkeys(remedies))


def strip_suffix(file: str) -> str | None:
    """The name of a listed video file without its suffix; None where it is not the name of a video file."""
    stem, suffix = posixpath.splitext(file)
    return stem if suffix.lower() in VIDEO_SUFFIXES else None


def to_number(text: str) -> int | None:
    """The number that a text writes in decimal digits; None where it writes none, or one that is no label."""
    return int(text) if text.isdecimal() and len(text) < 10 else None
