"""Kinetics-400 for action recognition: the official CSV files.

`train.csv` and `validate.csv` (or `val.csv`; something may stand before these names, as in kinetics400_train.csv) have
the columns label, youtube_id, time_start, time_end and split; results are customarily those on the validation videos,
which are the test list here. Classes are the labels of both files in alphabetical order, 400 in the official ones. A
video is `<youtube_id>_<start>_<end>` with six-digit seconds, in class folders or flat, at any depth and in any
container. Samples keep the order of the files.

Many of the videos are no longer to be had: `--allow_missing` and `--on_bad_eval_video drop` leave out those without a
file, count them in the results and list them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dataloaders.annotations import AnnotationError, list_folder, raise_if_problems, show
from dataloaders.datasets.recognition.splits import (
    LISTS,
    ListedVideo,
    RecognitionSplit,
    build_split,
    make_dataset,
    to_number,
)
from dataloaders.tables import read_table
from dataloaders.video.pack_index import PackIndex
from dataloaders.video_files import VideoFiles

SPLITS = ("1",)
COLUMNS = ["label", "youtube_id", "time_start", "time_end", "split"]
# what the names of the files of a list end in, and what its rows say in the column split
TRAINING, VALIDATION = ("train",), ("validate", "val", "validation")
REMEDY = (
    "Check that --split_dir is the folder of the official train.csv and validate.csv, and that {flag} holds the videos "
    "of Kinetics-400 as <youtube_id>_<start>_<end> with six-digit seconds, such as 0wR5jVB-WPk_000417_000427.mp4, in "
    "class folders or not, in any container and at any depth."
)


def read_split(
    split_dir: str | Path,
    features_path: str | Path | PackIndex,
    split: str = "1",
    allow_missing: Collection[str] = (),
    lists: Collection[str] = LISTS,
) -> RecognitionSplit:
    """The only split of Kinetics-400; `sample_id` is `<label>/<youtube_id>_<start>_<end>`.

    split_dir: the folder of the CSV files. features_path: the folder of videos, or a pack. allow_missing: the lists,
    "training" and "test" (that of the validation videos), whose videos without a file are left out.

    Raises AnnotationError, once, with everything that is wrong or missing in the two.
    """
    if split not in SPLITS:
        raise AnnotationError(f"Kinetics-400 has one split, --split 1, and no split {split}")
    entries, problems = list_folder(split_dir, "folder of CSV files")
    train, test = [], []
    if not problems:
        paths = [Path(entry.path) for entry in entries if entry.name.lower().endswith(".csv")]
        (train, problems), (test, more) = (_read_list(paths, split_dir, names) for names in (TRAINING, VALIDATION))
        problems += more
    classes = tuple(sorted({video.name for video in (*train, *test)}))
    known = {video.name for video in train}
    if train and test:
        problems += [f"class {name!r} has test videos and no training videos" for name in classes if name not in known]
    labels = {name: label for label, name in enumerate(classes)}
    lists_of_videos = [
        [ListedVideo(f"{video.name}/{video.stem}", labels[video.name], video.where) for video in videos]
        for videos in (train, test)
    ]
    videos = VideoFiles(features_path, classes, ignore_case=True)
    result, split_problems, remedies = build_split(classes, classes, *lists_of_videos, videos, allow_missing, lists)
    problems += split_problems
    raise_if_problems(f"Kinetics-400 in {split_dir}", problems, REMEDY.format(flag=videos.flag), *remedies)
    return result


@dataclass(frozen=True)
class LabelledVideo:
    """A row of a CSV file: the class's name, the video's name without suffix, and the place of the row."""

    name: str
    stem: str
    where: str


def _read_list(paths: list[Path], folder: str | Path, names: tuple[str, ...]) -> tuple[list[LabelledVideo], list[str]]:
    """The videos of the one file whose name ends in one of the names, and its problems.

    names: also what the column `split` may say there.
    """
    found = [path for path in paths if path.stem.lower().endswith(names)]
    if len(found) != 1:
        files = " and ".join(path.name for path in found) or "none"
        wanted = " or ".join(f"{name}.csv" for name in names)
        return [], [f"needs one file whose name is {wanted}, or ends so, in {folder}; found {files}"]
    rows, problems = read_table(found[0], COLUMNS)
    videos = []
    for row in rows:
        label, youtube_id, *times, split = (row.values[column] for column in COLUMNS)
        start, end = (to_number(time) for time in times)
        if not (label and youtube_id and all(times) and split):
            continue  # the table has reported what is empty
        if start is None or end is None:
            problems.append(f"{row.where}: {show(youtube_id)}: time_start and time_end must be whole seconds: {times}")
        elif split not in names:
            problems.append(f"{row.where}: {show(youtube_id)}: split {split!r:.80}, needs {' or '.join(names)}")
        else:
            videos.append(LabelledVideo(label, f"{youtube_id}_{start:06d}_{end:06d}", row.where))
    return videos, problems


RECIPE = {"batch_size": 128, "epochs": 10}  # ours: the paper's sources at hand do not state its own
DATASET = make_dataset(read_split, SPLITS, left_right_matters=False, recipe=RECIPE)
