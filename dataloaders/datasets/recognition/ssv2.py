"""Something-Something V2 for action recognition: the published annotation files.

`something-something-v2-train.json` and `-validation.json` are lists of {"id", "label", "template", "placeholders"};
results are customarily those on the validation videos, which are the test list here. `-labels.json` maps class names
to labels from 0, written as texts ("0"). An entry's class is its template without brackets: "Holding [something]
next to [something]"; its "label" is the template filled in for that video and is not read. Videos are `<id>.webm`,
at any depth and in any container. Samples keep the order of the lists.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dataloaders.annotations import AnnotationError, raise_if_problems, read_json, show
from dataloaders.datasets.recognition.splits import (
    LISTS,
    ListedVideo,
    RecognitionSplit,
    build_split,
    make_dataset,
    to_number,
)
from dataloaders.video.pack_index import PackIndex
from dataloaders.video_files import VideoFiles

SPLITS = ("1",)
WITHOUT_BRACKETS = str.maketrans("", "", "[]")
REMEDY = (
    "Check that --split_dir holds something-something-v2-train.json, -validation.json and -labels.json, and that "
    "{flag} holds all videos of Something-Something V2, unpacked, with files such as 1.webm, in any container and at "
    "any depth."
)


def read_split(
    split_dir: str | Path,
    features_path: str | Path | PackIndex,
    split: str = "1",
    allow_missing: Collection[str] = (),
    lists: Collection[str] = LISTS,
) -> RecognitionSplit:
    """The only split of Something-Something V2; `sample_id` is the video's id.

    split_dir: the folder of annotation files. features_path: the folder of videos, or a pack. allow_missing: the lists,
    "training" and "test" (that of the validation videos), whose videos without a file are left out.

    Raises AnnotationError, once, with everything that is wrong or missing in the two.
    """
    if split not in SPLITS:
        raise AnnotationError(f"Something-Something V2 has one split, --split 1, and no split {split}")
    folder = Path(split_dir)
    classes, problems = _read_classes(_find_file(folder, "labels"))
    train, train_problems = _read_list(_find_file(folder, "train"), classes)
    test, test_problems = _read_list(_find_file(folder, "validation"), classes)
    texts = tuple(to_text(name) for name in classes)
    videos = VideoFiles(features_path, ignore_case=True)
    result, split_problems, remedies = build_split(classes, texts, train, test, videos, allow_missing, lists)
    problems += train_problems + test_problems + split_problems
    source = f"Something-Something V2 in {split_dir}"
    raise_if_problems(source, problems, REMEDY.format(flag=videos.flag), *remedies)
    return result


def to_text(name: str) -> str:
    """A class name in lower case, every word kept: they stand in the middle of class prompts."""
    return name.strip().lower()


def _find_file(folder: Path, name: str) -> Path:
    """An annotation file under its first published name, or under the short one of later downloads: `train.json`."""
    path, short = folder / f"something-something-v2-{name}.json", folder / f"{name}.json"
    return short if short.is_file() and not path.is_file() else path


def _read_classes(path: Path) -> tuple[tuple[str, ...], list[str]]:
    """The class names in label order and the problems of the file; with problems, no classes."""
    content, problems = read_json(path, dict)
    names: dict[int, str] = {}
    for name, given in content.items():
        label = to_number(str(given))
        if label is None:
            problems.append(f"{path.name}: label {given!r:.80} of {name!r} is not a number from 0")
        elif label in names:
            problems.append(f"{path.name}: {name!r} and {names[label]!r} both have label {label}")
        else:
            names[label] = name
    if not problems and sorted(names) != list(range(len(names))):
        count, absent = len(names), sorted(set(range(len(names))) - set(names))
        problems.append(f"{path.name}: the labels of {count} classes must be 0 to {count - 1}, missing {absent}")
    return () if problems else tuple(names[label] for label in sorted(names)), problems


def _read_list(path: Path, classes: tuple[str, ...]) -> tuple[list[ListedVideo], list[str]]:
    """The videos of a list and the problems of its entries."""
    labels = {name: label for label, name in enumerate(classes)}
    content, problems = read_json(path, list)
    listed = []
    for position, item in enumerate(content):
        where = f"entry {position} of {path.name}"
        entry = item if isinstance(item, dict) else {}
        video_id, template = entry.get("id"), entry.get("template")
        if not (isinstance(video_id, str) and video_id and isinstance(template, str)):
            problems.append(f"{where}: needs texts 'id' and 'template', found {item!r:.80}")
            continue
        label = labels.get(template.translate(WITHOUT_BRACKETS))
        if label is not None:
            listed.append(ListedVideo(video_id, label, where))
        elif classes:
            problems.append(f"{where}: video {show(video_id)}: template {template!r:.120} is not among the labels")
    return listed, problems


RECIPE = {"epochs": 10}  # ours: the paper's sources at hand do not state its own
DATASET = make_dataset(read_split, SPLITS, left_right_matters=True, recipe=RECIPE)
