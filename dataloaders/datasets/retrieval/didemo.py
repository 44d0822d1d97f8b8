"""DiDeMo for paragraph-to-video retrieval: the published annotation files.

`train_data.json`, `val_data.json` and `test_data.json` are lists of {"video", "description", "times", …}, an entry a
description of a moment; "video" is a file name with its suffix. A video's caption is its paragraph: all its
descriptions in the order of the file, joined by spaces. That is the customary protocol, and the file gives no better
order: "times" are the moments that several people chose for one description, which need not agree. Samples keep the
order in which the file first names their videos. These are found by that name without its suffix, in any container and
at any depth.

The descriptions are of the first 30 seconds. A video is read whole, as every video is: of longer ones
`preprocess/compress_video.py --max_seconds 30` keeps that part.
"""

from __future__ import annotations

import posixpath
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path

from common.settings import setting
from dataloaders.annotations import read_json
from dataloaders.datasets.retrieval.captions import (
    PARAGRAPH,
    Benchmark,
    Captions,
    is_name,
    make_dataset,
    read_json_list,
)
from dataloaders.samples import VideoLocation

TRAINING, TEST = "train_data.json", "test_data.json"
DIDEMO = Benchmark("DiDeMo", "54322086@N00_2408598493_274c77d26a.avi", PARAGRAPH)


def read_captions(path: str | Path) -> tuple[Captions, list[str]]:
    """The descriptions of each video of an annotation file, and the problems of that file."""
    content, problems = read_json(path, list)
    captions = Captions()
    for position, item in enumerate(content):
        where = f"entry {position} of {path}"
        entry = item if isinstance(item, dict) else {}
        video, description = entry.get("video"), entry.get("description")
        if is_name(video) and isinstance(description, str):
            captions.add(posixpath.splitext(video.strip())[0], [description], where)
        else:
            problems.append(f"{where}: needs texts 'video' and 'description', found {item!r:.80}")
    return captions, problems


@dataclass(frozen=True)
class DidemoSettings(VideoLocation):
    """Where DiDeMo's files are."""

    train_json: Path | None = setting(None, f"training descriptions: {TRAINING}", affects_results=False, metavar="FILE")
    val_json: Path = setting(
        MISSING, f"evaluation descriptions: {TEST} or val_data.json", affects_results=False, metavar="FILE"
    )


# frames and words as customary for paragraphs; batch and epochs are ours, those of ActivityNet
RECIPE = {"batch_size": 128, "epochs": 10, "max_frames": 64, "max_words": 64}
DATASET = make_dataset(
    DIDEMO,
    DidemoSettings,
    partial(read_json_list, read_captions),
    official={"train_json": TRAINING, "val_json": TEST},
    recipe=RECIPE,
)
