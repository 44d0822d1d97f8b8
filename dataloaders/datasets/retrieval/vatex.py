"""VATEX for text-video retrieval: the published annotation files.

`vatex_training_v1.0.json` and `vatex_validation_v1.0.json` are lists of {"videoID", "enCap", "chCap"}, with ten English
captions each; those in Chinese are not read. The customary test set is one half of the validation videos, 1,500 that
the split lists of HGR name, a text file of ids (--val_list). Every caption is a sample, in training as in evaluation,
in the order of the list and of the captions. An id is `<youtube id>_<start>_<end>` with six-digit seconds; videos are
`<id>.<any container>`, at any depth.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path

from common.settings import setting
from dataloaders.annotations import read_json, show
from dataloaders.datasets.retrieval.captions import (
    Benchmark,
    Captions,
    ListSettings,
    are_texts,
    is_name,
    make_dataset,
    read_json_list,
)

TRAINING, VALIDATION = "vatex_training_v1.0.json", "vatex_validation_v1.0.json"
VATEX = Benchmark("VATEX", "Ptf_2VRj-V0_000122_000132.mp4")


def read_captions(path: str | Path) -> tuple[Captions, list[str]]:
    """The English captions of each video of an annotation file, and the problems of that file."""
    content, problems = read_json(path, list)
    captions = Captions()
    for position, item in enumerate(content):
        where = f"entry {position} of {path}"
        entry = item if isinstance(item, dict) else {}
        video_id, texts = entry.get("videoID"), entry.get("enCap")
        if not (is_name(video_id) and are_texts(texts)):
            problems.append(f"{where}: needs a text 'videoID' and a list of texts 'enCap', found {item!r:.80}")
        elif video_id in captions.texts:
            problems.append(f"{where}: {show(video_id)} is there before, in {captions.places[video_id]}")
        else:
            captions.add(video_id, texts, where)
    return captions, problems


@dataclass(frozen=True)
class VatexSettings(ListSettings):
    """Where VATEX's files are."""

    train_json: Path | None = setting(None, f"training captions: {TRAINING}", affects_results=False, metavar="FILE")
    val_json: Path = setting(MISSING, f"evaluation captions: {VALIDATION}", affects_results=False, metavar="FILE")


# the published setting of STOP's runs, but for the rate: that is STOP's own, and every method brings one
RECIPE = {"batch_size": 512, "epochs": 10, "max_frames": 12, "max_words": 32}
DATASET = make_dataset(
    VATEX,
    VatexSettings,
    partial(read_json_list, read_captions),
    official={"train_json": TRAINING, "val_json": VALIDATION},
    recipe=RECIPE,
)
