"""What the readers of retrieval datasets return, and what they share: lists of videos and their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dataloaders.annotations import show
from dataloaders.samples import Sample
from dataloaders.tables import Row
from dataloaders.video_files import Located, VideoFiles, stem_of


@dataclass(frozen=True)
class RetrievalDataset:
    """A dataset: its flags, and how its files become samples.

    settings: a frozen dataclass of `common.settings.setting` fields; each becomes a flag.
    read_train, read_eval: from the settings, and from `allow_missing=True` where videos without a file are to be left
    out instead of being problems, what a split lists; they raise AnnotationError.
    official: whether the settings name the dataset's published split files, which share no video.
    recipe: the dataset's own defaults of flags, by their names without dashes: what it is customarily trained with.
    training_list: the setting that names the training list, which an evaluation does without; None where every command
    names what holds it.
    """

    settings: type
    read_train: Callable[..., Listed]
    read_eval: Callable[..., Listed]
    official: Callable[[Any], bool]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    training_list: str | None = None

    def names_training(self, settings: Any) -> bool:
        """Whether settings name a training list."""
        return self.training_list is None or getattr(settings, self.training_list) is not None


@dataclass(frozen=True)
class Listed:
    """What a list of videos holds.

    samples: in the order of the list. missing: the ids of its videos without a file, in order, each once; they are
    not among the samples, and there are none unless the reader was told to go on without them.
    """

    samples: list[Sample]
    missing: list[str]


def locate(rows: list[Row], videos: VideoFiles, list_name: str, source: str | Path, allow_missing: bool) -> Located:
    """The files of the videos of a list, and all problems of these: also a file that has two ids in it.

    rows: with a column `video_id`. list_name: "training" or "evaluation". source: the list, for messages.
    """
    places: dict[str, str] = {}
    for row in rows:
        if row.values["video_id"]:
            places.setdefault(row.values["video_id"], row.where)
    located = videos.locate(places, list_name, str(source), allow_missing)
    first: dict[Path, str] = {}
    doubles = []
    for video_id, path in located.paths.items():
        before = first.setdefault(path, video_id)
        if before != video_id:
            doubles.append(f"{places[video_id]}: {show(video_id)}: the file of {show(before)} ({places[before]})")
    return replace(located, problems=videos.problems + located.problems + doubles)


def set_problems(rows: list[Row]) -> list[str]:
    """Problems of a column `set`, where there is one: videos that stand in two sets.

    rows: with a column `video_id`.
    """
    first: dict[str, Row] = {}
    problems = []
    for row in rows:
        video_id, name = row.values["video_id"], row.values.get("set")
        if video_id and name:
            before = first.setdefault(video_id, row)
            if before.values["set"] != name:
                found = f"in set {show(name)}, and in set {show(before.values['set'])} before ({before.where})"
                problems.append(f"{row.where}: {show(video_id)}: {found}; a video belongs to one set")
    return problems


def names_of_captions(rows: list[Row], captions: Collection[str], paths: Mapping[str, Path]) -> dict[str, str]:
    """For each video id of a list, the name under which there are its captions, if there are any.

    rows: with a column `video_id`. captions: the names that there are captions of. paths: the files that were found.
    """
    ids = {row.values["video_id"] for row in rows}
    videos = {paths.get(video_id, video_id): stem_of(video_id) for video_id in ids}
    count = Counter(videos.values())
    return {
        video_id: video_id if video_id in captions or count[stem_of(video_id)] > 1 else stem_of(video_id)
        for video_id in ids
    }


def one_download(dataset: str, sources: str, videos: VideoFiles, example: str) -> str:
    """What to do about problems of a list: the dataset's name, its annotation files, its videos and the name of one."""
    return (
        f"Check that {sources} and the videos ({videos.flag}, for {dataset} files such as {example}, at any depth) "
        f"belong together; if they are those of one {dataset} download, that it is complete and unpacked."
    )
