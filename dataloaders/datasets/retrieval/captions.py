"""Captions by video, and how those of a list become samples: what the readers of retrieval datasets share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.settings import setting
from dataloaders.annotations import AnnotationError, caption_problem, is_blank, raise_if_problems, read_lines, show
from dataloaders.datasets.retrieval.lists import (
    Listed,
    RetrievalDataset,
    locate,
    names_of_captions,
    one_download,
)
from dataloaders.samples import Sample, VideoLocation
from dataloaders.tables import Row
from dataloaders.video.pack_index import PackIndex
from dataloaders.video_files import VideoFiles

EACH, TOGETHER, PARAGRAPH = ("each", "together", "paragraph")


@dataclass
class Captions:
    """What a file says of videos, by their ids in the order of the file.

    texts: the captions, in order and stripped. places: where a video is first, for messages. problems: what is wrong
    with a video's captions; it matters only where a list has the video.
    """

    texts: dict[str, list[str]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)

    def add(self, video_id: str, texts: Sequence[str], where: str) -> None:
        """More captions of a video; where: their place in the file, for messages."""
        self.places.setdefault(video_id, where)
        self.texts.setdefault(video_id, []).extend(text.strip() for text in texts)
        for number, text in enumerate(texts):
            if problem := caption_problem(text):
                which = f"caption {number}: " if len(texts) > 1 else ""
                self.problems.setdefault(video_id, []).append(f"{where}: {show(video_id)}: {which}{problem}")

    def rows(self) -> list[Row]:
        """The list of all videos of the file."""
        return [Row(where, {"video_id": video_id}) for video_id, where in self.places.items()]


def is_name(value: Any) -> bool:
    """Whether a value of a file can be the name of a video."""
    return isinstance(value, str) and not is_blank(value)


def are_texts(value: Any) -> bool:
    """Whether a value of a file is a list of texts that is not empty."""
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def read_ids(path: str | Path) -> tuple[list[Row], list[str]]:
    """The videos of a text file with an id a line, and its problems."""
    lines, problems = read_lines(path)
    first: dict[str, int] = {}
    rows = []
    for number, video_id in lines:
        if video_id in first:
            problems.append(f"line {number} of {path}: {show(video_id)} is there before, in line {first[video_id]}")
        first.setdefault(video_id, number)
        rows.append(Row(f"line {number} of {path}", {"video_id": video_id}))
    return rows, problems


def make_samples(
    rows: Sequence[Row],
    captions: Captions,
    source: str | Path,
    paths: Mapping[str, Path],
    left_out: Sequence[str],
    form: str,
) -> tuple[list[Sample], list[str]]:
    """The samples of a list in its order, and the problems of its videos' captions.

    rows: with a column `video_id`. source: where the captions are from. paths: the file of each video that has one.
    left_out: the videos that are not to be among the samples. form: "each" caption is a sample of its own, `video0#3`
    for the fourth of video0; or a video is a sample with all of them "together"; or with them joined to a "paragraph".

    Captions of an id that is a path may be there under the name alone, if no other listed video has that name.
    """
    names = names_of_captions(rows, captions.texts, paths)
    without = frozenset(left_out)
    samples: list[Sample] = []
    problems: list[str] = []
    for row in rows:
        video_id = row.values["video_id"]
        if not video_id or video_id in without:
            continue
        texts = captions.texts.get(names[video_id], [])
        if captions.texts and not texts:
            problems.append(f"{row.where}: {show(video_id)}: unknown to {source}, no captions")
        problems += captions.problems.get(names[video_id], [])
        path = paths.get(video_id)
        if form == EACH:
            samples += [Sample(f"{video_id}#{number}", video_id, path, (text,)) for number, text in enumerate(texts)]
        else:
            samples.append(Sample(video_id, video_id, path, (" ".join(texts),) if form == PARAGRAPH else tuple(texts)))
    return samples, problems


@dataclass(frozen=True)
class VideoList:
    """What was read of a list of videos and of their captions.

    source: the list. rows: its videos, with a column `video_id`. captions: of them, and of others it may be.
    captions_source: where these are from. problems: of all files. flags: the files in words, for messages.
    """

    source: str | Path
    rows: list[Row]
    captions: Captions
    captions_source: str | Path
    problems: list[str]
    flags: str


@dataclass(frozen=True)
class Benchmark:
    """What the readers of a dataset need to know of it beside its files.

    name: as messages call it. example: the name of one of its videos. form: see `make_samples`.
    """

    name: str
    example: str
    form: str = EACH


def find_samples(
    benchmark: Benchmark,
    list_name: str,
    listed: VideoList,
    videos: str | Path | PackIndex,
    allow_missing: bool,
) -> Listed:
    """The samples of a list of videos.

    list_name: "training" or "evaluation". videos: the folder of video files, or a pack. allow_missing: leave out videos
    without a file; that all are without one is an error still.

    Raises AnnotationError, once, with everything that is wrong or missing in the list, the captions and the videos.
    """
    files = VideoFiles(videos)
    located = locate(listed.rows, files, list_name, listed.source, allow_missing)
    samples, caption_problems = make_samples(
        listed.rows,
        listed.captions,
        listed.captions_source,
        located.paths,
        located.missing if allow_missing else (),
        benchmark.form,
    )
    remedy = one_download(benchmark.name, listed.flags, files, benchmark.example)
    raise_if_problems(
        f"{benchmark.name} {list_name} split {listed.source}",
        [*listed.problems, *located.problems, *caption_problems],
        remedy,
        *located.remedies,
    )
    return Listed(samples, located.missing)


def require(dataset: str, settings: Any, *names: str) -> None:
    """Raises AnnotationError that names the flags, of those that training on a dataset needs, that were not given."""
    if absent := [name for name in names if getattr(settings, name) is None]:
        raise AnnotationError(f"training on {dataset} needs {' and '.join('--' + name for name in absent)}")


def make_dataset(
    benchmark: Benchmark,
    settings: type,
    read_list: Callable[[Any, str], VideoList],
    official: Mapping[str, str],
    recipe: Mapping[str, Any],
) -> RetrievalDataset:
    """A dataset of two lists of videos.

    settings: of the dataset. read_list: from these and "train" or "val", that list. official: for the field that names
    each list, the training list first, the published name of the file. recipe: as in `RetrievalDataset`.
    """

    def read_train(given: Any, allow_missing: bool = False) -> Listed:
        require(benchmark.name, given, next(iter(official)))
        return find_samples(benchmark, "training", read_list(given, "train"), given.videos, allow_missing)

    def read_eval(given: Any, allow_missing: bool = False) -> Listed:
        return find_samples(benchmark, "evaluation", read_list(given, "val"), given.videos, allow_missing)

    def is_official(given: Any) -> bool:
        return all(
            (path := getattr(given, field)) is not None and path.name == name for field, name in official.items()
        )

    return RetrievalDataset(settings, read_train, read_eval, is_official, recipe, training_list=next(iter(official)))


# --- Lists of ids that choose among the videos of an annotation file --------------------------------------------


@dataclass(frozen=True)
class ListSettings(VideoLocation):
    """Flags of lists that choose among the videos of --train_json and --val_json."""

    train_list: Path | None = setting(
        None,
        "ids of the training videos, one a line; without it, all of --train_json",
        affects_results=False,
        metavar="FILE",
    )
    val_list: Path | None = setting(
        None,
        "ids of the evaluation videos, one a line; without it, all of --val_json",
        affects_results=False,
        metavar="FILE",
    )


def read_json_list(read_captions: Callable[[Path], tuple[Captions, list[str]]], settings: Any, part: str) -> VideoList:
    """The videos of the JSON file `train_json` or `val_json`, or those of them that a list of ids names.

    read_captions: what such a file holds, and its problems. settings: a `ListSettings`, or without lists. part: "train"
    or "val".
    """
    path, ids = getattr(settings, f"{part}_json"), getattr(settings, f"{part}_list", None)
    captions, problems = read_captions(path)
    flags = f"the JSON file (--{part}_json)"
    if ids is None:
        return VideoList(path, captions.rows(), captions, path, problems, flags)
    rows, list_problems = read_ids(ids)
    return VideoList(ids, rows, captions, path, list_problems + problems, f"the list of ids (--{part}_list), {flags}")
