"""UCF101 for action recognition: the official splits.

`trainlist0<k>.txt` has lines `Class/file.avi label`, `testlist0<k>.txt` lines `Class/file.avi`, and `classInd.txt`
lines `label Class` with labels from 1. Videos are `<Class>/<file>` or without class folders, at any depth and in any
container. Samples keep the order of the lists.

The official names are not of one mind: class HandstandPushups holds files v_HandStandPushups_*. Names are
therefore compared without regard to case where none fits exactly.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from dataloaders.annotations import raise_if_problems, read_lines
from dataloaders.datasets.recognition.splits import (
    LISTS,
    ListedVideo,
    RecognitionSplit,
    build_split,
    make_dataset,
    strip_suffix,
    to_number,
)
from dataloaders.video.pack_index import PackIndex
from dataloaders.video_files import VideoFiles

REMEDY = (
    "Check that --split_dir is the folder ucfTrainTestlist with classInd.txt, trainlist01.txt and testlist01.txt "
    "to 03, and that {flag} holds all videos of UCF101, unpacked, as <Class>/<file>.avi or without class folders, in "
    "any container and at any depth."
)


def read_split(
    split_dir: str | Path,
    features_path: str | Path | PackIndex,
    split: str,
    allow_missing: Collection[str] = (),
    lists: Collection[str] = LISTS,
) -> RecognitionSplit:
    """Split "1", "2" or "3" of UCF101; `sample_id` is `<Class>/<file without suffix>`.

    split_dir: the folder of split files. features_path: the folder of videos, or a pack. A sample's label is that of
    `classInd.txt` less 1. allow_missing: the lists, "training" and "test", whose videos without a file are left out.

    Raises AnnotationError, once, with everything that is wrong or missing in the two.
    """
    folder = Path(split_dir)
    classes, problems = _read_classes(folder / "classInd.txt")
    train, train_problems = _read_list(folder / f"trainlist0{split}.txt", classes, labelled=True)
    test, test_problems = _read_list(folder / f"testlist0{split}.txt", classes, labelled=False)
    texts = tuple(to_text(name) for name in classes)
    videos = VideoFiles(features_path, classes, ignore_case=True)
    result, split_problems, remedies = build_split(classes, texts, train, test, videos, allow_missing, lists)
    problems += train_problems + test_problems + split_problems
    raise_if_problems(f"UCF101 split {split} in {split_dir}", problems, REMEDY.format(flag=videos.flag), *remedies)
    return result


def to_text(name: str) -> str:
    """The words of a CamelCase class name in lower case: "ApplyEyeMakeup" becomes "apply eye makeup"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()


def _read_classes(path: Path) -> tuple[tuple[str, ...], list[str]]:
    """The class names of `classInd.txt` in label order, and the problems of that file.

    A file with problems gives no classes, so that they are not reported again for every video.
    """
    lines, problems = read_lines(path)
    names: dict[int, str] = {}
    first: dict[int | str, int] = {}  # a label or a case-folded class -> its line
    for number, line in lines:
        parts = line.split()
        label = to_number(parts[0])
        if len(parts) != 2 or label is None:
            problems.append(f"line {number} of {path.name}: needs a label and a class, found {line!r:.80}")
            continue
        before = first.get(label, first.get(parts[1].casefold()))
        if before is not None:
            problems.append(
                f"line {number} of {path.name}: label or class is there before, in line {before}: {line!r:.80}"
            )
            continue
        names[label] = parts[1]
        first |= {label: number, parts[1].casefold(): number}
    if not problems and sorted(names) != list(range(1, len(names) + 1)):
        absent = sorted(set(range(1, len(names) + 1)) - set(names))
        problems.append(f"{path.name}: the labels of {len(names)} classes must be 1 to {len(names)}, missing {absent}")
    return () if problems else tuple(names[label] for label in sorted(names)), problems


def _read_list(path: Path, classes: tuple[str, ...], labelled: bool) -> tuple[list[ListedVideo], list[str]]:
    """The videos of a list and the problems of its lines.

    labelled: each line ends with the class's number, as in the training lists.
    """
    labels = {name.casefold(): label for label, name in enumerate(classes)}
    wanted = "and a label" if labelled else "alone"
    lines, problems = read_lines(path)
    listed = []
    for number, line in lines:
        where = f"line {number} of {path.name}"
        # From the right: only the label is known to hold no spaces.
        file, given = line.rsplit(None, 1) if labelled and len(line.split()) > 1 else (line, "")
        video_id = strip_suffix(file)
        if video_id is None or video_id.count("/") != 1 or (to_number(given) is not None) != labelled:
            problems.append(f"{where}: needs Class/file.avi {wanted}, found {line!r:.80}")
            continue
        name = video_id.split("/")[0]
        label = labels.get(name.casefold())
        if label is None:
            problems += [f"{where}: class {name!r:.80} is not in classInd.txt"] if classes else []
        elif labelled and int(given) != label + 1:
            problems.append(f"{where}: label {given} for class {name!r}, which is {label + 1} in classInd.txt")
        else:
            listed.append(ListedVideo(video_id, label, where))
    return listed, problems


RECIPE = {"batch_size": 64, "epochs": 20}  # ours: the paper's sources at hand do not state its own
DATASET = make_dataset(read_split, ("1", "2", "3"), left_right_matters=False, recipe=RECIPE)
