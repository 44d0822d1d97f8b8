"""HMDB51 for action recognition: the official splits, one file a class and split.

`<class>_test_split<k>.txt` has lines `file.avi N`: N = 1 is a training video, 2 a test video, 0 one that the split
leaves out. Videos are `<class>/<file>` or without class folders, at any depth and in any container. Samples keep
the order of the files, class after class; the label is the class's position in alphabetical order.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from dataloaders.annotations import list_folder, raise_if_problems, read_lines
from dataloaders.datasets.recognition.splits import (
    LISTS,
    ListedVideo,
    RecognitionSplit,
    build_split,
    make_dataset,
    strip_suffix,
)
from dataloaders.video.pack_index import PackIndex
from dataloaders.video_files import VideoFiles

SPLIT_FILE = re.compile(r"(?P<name>.+)_test_split(?P<split>\d+)\.txt")
TRAIN, TEST, UNUSED = "1", "2", "0"
REMEDY = (
    "Check that --split_dir is the folder testTrainMulti_7030_splits with a file such as "
    "brush_hair_test_split1.txt for every class, and that {flag} holds all videos of HMDB51, unpacked, as "
    "<class>/<file>.avi or without class folders, in any container and at any depth."
)


def read_split(
    split_dir: str | Path,
    features_path: str | Path | PackIndex,
    split: str,
    allow_missing: Collection[str] = (),
    lists: Collection[str] = LISTS,
) -> RecognitionSplit:
    """Split "1", "2" or "3" of HMDB51; `sample_id` is `<class>/<file without suffix>`.

    split_dir: the folder of split files; other files in it do not matter. features_path: the folder of videos, or a
    pack. allow_missing: the lists, "training" and "test", whose videos without a file are left out.

    Raises AnnotationError, once, with everything that is wrong or missing in the two.
    """
    files, problems = _find_split_files(Path(split_dir), split)
    classes = tuple(sorted(files))
    texts = tuple(to_text(name) for name in classes)
    listed: dict[str, list[ListedVideo]] = {TRAIN: [], TEST: [], UNUSED: []}
    for label, name in enumerate(classes):
        lines, line_problems = read_lines(files[name])
        problems += line_problems
        for number, line in lines:
            where = f"line {number} of {files[name].name}"
            # From the right: only the mark is known to hold no spaces.
            file, mark = line.rsplit(None, 1) if len(line.split()) > 1 else (line, "")
            stem = strip_suffix(file)
            if stem is None or not mark:
                problems.append(f"{where}: needs a video file and a mark, found {line!r:.80}")
            elif mark not in listed:
                problems.append(f"{where}: mark {mark!r:.80} is none of 1 (training), 2 (test) and 0 (unused)")
            else:
                listed[mark].append(ListedVideo(f"{name}/{stem}", label, where))
    if not problems:
        problems += [f"no video has mark {mark} in any file" for mark in (TRAIN, TEST) if not listed[mark]]
    videos = VideoFiles(features_path, classes, ignore_case=True)
    result, split_problems, remedies = build_split(
        classes, texts, listed[TRAIN], listed[TEST], videos, allow_missing, lists
    )
    problems += split_problems
    raise_if_problems(f"HMDB51 split {split} in {split_dir}", problems, REMEDY.format(flag=videos.flag), *remedies)
    return result


def to_text(name: str) -> str:
    """The words of a class name: "brush_hair" becomes "brush hair"."""
    return " ".join(name.replace("_", " ").split())


def _find_split_files(folder: Path, split: str) -> tuple[dict[str, Path], list[str]]:
    """The split's file of every class.

    A class with a file for another split only is a problem: without it all labels after it would move.
    """
    entries, problems = list_folder(folder, "folder of split files")
    if problems:
        return {}, problems
    files: dict[str, dict[str, Path]] = defaultdict(dict)
    for entry in entries:
        if match := SPLIT_FILE.fullmatch(entry.name):
            files[match["split"]][match["name"]] = Path(entry.path)
    if not files[split]:
        return {}, [f"no file *_test_split{split}.txt in {folder}"]
    known = {name for names in files.values() for name in names}
    return files[split], [
        f"class {name!r} has a file for another split and no {name}_test_split{split}.txt in {folder}"
        for name in sorted(known - set(files[split]))
    ]


RECIPE = {"batch_size": 32, "epochs": 20}  # ours: the paper's sources at hand do not state its own
DATASET = make_dataset(read_split, ("1", "2", "3"), left_right_matters=False, recipe=RECIPE)
