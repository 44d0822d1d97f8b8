"""ActivityNet Captions for paragraph-to-video retrieval: the published annotation files.

`train.json` (10,009 videos) and `val_1.json` (4,917), on which models are customarily tested, are objects from id to
{"duration", "timestamps", "sentences"}. A video's caption is its paragraph: its sentences in the order of time, that is
of their beginnings and where these are equal of their ends, joined by spaces. In one video of eighteen that is not the
order of the file. Lists of ids (`train_list.txt`, `val_1_list.txt`) may choose among the videos. Samples keep the order
of the list, which without one is that of the JSON file.
Videos are `<id>.<any container>`, such as v_QOlSCBRmfWY.mp4, at any depth.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.settings import setting
from dataloaders.annotations import read_json, show
from dataloaders.datasets.retrieval.captions import (
    PARAGRAPH,
    Benchmark,
    Captions,
    ListSettings,
    are_texts,
    is_name,
    make_dataset,
    read_json_list,
)

TRAINING, VALIDATION = "train.json", "val_1.json"
ACTIVITYNET = Benchmark("ActivityNet Captions", "v_QOlSCBRmfWY.mp4", PARAGRAPH)


def read_captions(path: str | Path) -> tuple[Captions, list[str]]:
    """The sentences of each video of an annotation file in the order of time, and the problems of that file."""
    content, problems = read_json(path, dict)
    captions = Captions()
    for video_id, item in content.items():
        where = f"entry {show(video_id)} of {path}"
        entry = item if isinstance(item, dict) else {}
        sentences, times = entry.get("sentences"), entry.get("timestamps")
        if not (is_name(video_id) and are_texts(sentences) and are_times(times)):
            problems.append(
                f"{where}: needs a list of texts 'sentences' and one of [start, end] 'timestamps', found {item!r:.80}"
            )
        elif len(sentences) != len(times):
            problems.append(f"{where}: {len(sentences)} sentences and {len(times)} timestamps")
        else:
            order = sorted(range(len(times)), key=lambda number: times[number])
            captions.add(video_id, [sentences[number] for number in order], where)
    return captions, problems


def are_times(value: Any) -> bool:
    """Whether a value of a file is a list of pairs of seconds."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(_is_number(seconds) for seconds in pair) for pair in value
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class ActivitySettings(ListSettings):
    """Where the files of ActivityNet Captions are."""

    train_json: Path | None = setting(None, f"training paragraphs: {TRAINING}", affects_results=False, metavar="FILE")
    val_json: Path = setting(MISSING, f"evaluation paragraphs: {VALIDATION}", affects_results=False, metavar="FILE")


# the published setting of STOP's runs, but for the rate: that is STOP's own, and every method brings one
RECIPE = {"batch_size": 128, "epochs": 10, "max_frames": 64, "max_words": 64}
DATASET = make_dataset(
    ACTIVITYNET,
    ActivitySettings,
    partial(read_json_list, read_captions),
    official={"train_json": TRAINING, "val_json": VALIDATION},
    recipe=RECIPE,
)
