"""LSMDC for text-video retrieval: the published annotation files.

`LSMDC16_annos_training.csv`, `LSMDC16_annos_val.csv` and `LSMDC16_challenge_1000_publictect.csv`, the 1,000 test clips,
have no header and six fields a line between tabs: clip, four times, caption. Quotation marks are part of a caption.
Every line is a sample; a clip's lines, where it has several, follow its first one, else the order is the file's. Clips
are `<clip>.<any container>`, at any depth: as published in a folder a film, such as
1001_Flight/1001_Flight_00.00.05.930-00.00.10.930.avi.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from common.settings import setting
from dataloaders.annotations import is_blank, read_lines
from dataloaders.datasets.retrieval.captions import Benchmark, Captions, VideoList, make_dataset
from dataloaders.samples import VideoLocation

TRAINING, TEST = "LSMDC16_annos_training.csv", "LSMDC16_challenge_1000_publictect.csv"
LSMDC = Benchmark("LSMDC", "1001_Flight_00.00.05.930-00.00.10.930.avi")
FIELDS = 6


def read_captions(path: str | Path) -> tuple[Captions, list[str]]:
    """The captions of each clip of an annotation file, and the problems of that file."""
    lines, problems = read_lines(path, around="\r\n ")  # an empty field at an end is a field
    captions = Captions()
    for number, line in lines:
        where = f"line {number} of {path}"
        fields = line.split("\t")
        if len(fields) != FIELDS or is_blank(fields[0]):
            problems.append(
                f"{where}: needs clip, four times and caption with tabs between them, found {len(fields)} "
                f"field{'s' * (len(fields) > 1)}: {line!r:.80}"
            )
        else:
            captions.add(fields[0].strip(), [fields[-1]], where)
    return captions, problems


@dataclass(frozen=True)
class LsmdcSettings(VideoLocation):
    """Where LSMDC's files are."""

    train_csv: Path | None = setting(None, f"training captions: {TRAINING}", affects_results=False, metavar="FILE")
    val_csv: Path = setting(
        MISSING, f"evaluation captions: {TEST} or LSMDC16_annos_val.csv", affects_results=False, metavar="FILE"
    )


def read_list(settings: LsmdcSettings, part: str) -> VideoList:
    """The clips of an annotation file; part: "train" or "val"."""
    path = getattr(settings, f"{part}_csv")
    captions, problems = read_captions(path)
    return VideoList(path, captions.rows(), captions, path, problems, f"the tab-separated file (--{part}_csv)")


# ours: there is no published setting at hand
RECIPE = {"batch_size": 128, "epochs": 5, "max_frames": 12, "max_words": 32}
DATASET = make_dataset(
    LSMDC, LsmdcSettings, read_list, official={"train_csv": TRAINING, "val_csv": TEST}, recipe=RECIPE
)
