"""MSR-VTT for text-video retrieval: the split files that CLIP4Clip made customary, read into samples.

Training reads `MSRVTT_train.9k.csv` (or 7k; a column `video_id`) and the captions in `MSRVTT_data.json`;
evaluation reads `MSRVTT_JSFUSION_test.csv`, the 1k-A split (columns `key`, `vid_key`, `video_id`,
`sentence`); where it has a column `set`, too, ranks are taken within each set. Samples keep the order of the CSV file.
Videos are `<video_id>.<any container>`, at any depth; where several have that name, a `video_id` of the CSV file may be
the path of one, "part1/video7" or "part1/video7.mp4".
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, replace
from pathlib import Path

from common.settings import setting
from dataloaders.annotations import caption_problem, raise_if_problems, read_json
from dataloaders.datasets.retrieval.captions import (
    EACH,
    TOGETHER,
    Benchmark,
    Captions,
    VideoList,
    find_samples,
    require,
)
from dataloaders.datasets.retrieval.lists import (
    Listed,
    RetrievalDataset,
    locate,
    one_download,
    set_problems,
)
from dataloaders.samples import Sample, VideoLocation
from dataloaders.tables import read_table
from dataloaders.video.pack_index import PackIndex
from dataloaders.video_files import VideoFiles

MSRVTT = Benchmark("MSR-VTT", "video0.mp4")
OFFICIAL_TRAIN = ("MSRVTT_train.9k.csv", "MSRVTT_train.7k.csv")
OFFICIAL_EVAL = "MSRVTT_JSFUSION_test.csv"
TRAIN_SOURCES = "the CSV file (--train_csv), MSRVTT_data.json (--data_path)"
EVAL_SOURCES = "the CSV file (--val_csv)"


def read_train(
    train_csv: str | Path,
    data_path: str | Path,
    features_path: str | Path | PackIndex,
    expand_sentences: bool,
    allow_missing: bool = False,
) -> Listed:
    """The training videos of `train_csv` with their captions.

    data_path: `MSRVTT_data.json`. features_path: the folder of video files, or a pack.
    expand_sentences: every caption is a sample of its own, `video0#3` for the fourth caption of video0 in the
    JSON (the customary protocol: 180,000 samples for 9k); else a sample is a video with all of its captions. Those of
    an id that is a path may be in the JSON under the name alone, if no other listed video has that name.
    allow_missing: leave out videos without a file; that all are without one is an error still.

    Raises AnnotationError, once, with everything that is missing or empty in the three sources.
    """
    rows, problems = read_table(train_csv, ["video_id"], unique="video_id")
    captions, caption_problems = _read_captions(data_path)
    listed = VideoList(train_csv, rows, captions, data_path, problems + caption_problems, TRAIN_SOURCES)
    benchmark = replace(MSRVTT, form=EACH if expand_sentences else TOGETHER)
    return find_samples(benchmark, "training", listed, features_path, allow_missing)


def read_eval(val_csv: str | Path, features_path: str | Path | PackIndex, allow_missing: bool = False) -> Listed:
    """The text-video pairs of an evaluation split, a sample a row, `sample_id` being the row's key.

    features_path: the folder of video files, or a pack. Sentences may repeat (1k-A: 995 different ones in 1,000); keys
    may not. A column `set`, where there is one, becomes the samples' `test_set`; a video may not stand in two.
    allow_missing: leave out videos without a file; that all are without one is an error still.

    Raises AnnotationError, once, with everything that is missing or empty in the two sources.
    """
    rows, problems = read_table(val_csv, ["key", "video_id", "sentence"], unique="key", optional=["set"])
    videos = VideoFiles(features_path)
    located = locate(rows, videos, "evaluation", val_csv, allow_missing)
    problems += located.problems + set_problems(rows)
    for row in rows:
        # The table has reported what is empty.
        sentence = row.values["sentence"]
        if sentence and (problem := caption_problem(sentence)):
            problems.append(f"{row.where}: {problem}")
    remedy = one_download(MSRVTT.name, EVAL_SOURCES, videos, MSRVTT.example)
    raise_if_problems(f"MSR-VTT evaluation split {val_csv}", problems, remedy, *located.remedies)
    samples = [
        Sample(
            sample_id=row.values["key"],
            video_id=video_id,
            path=located.paths[video_id],
            captions=(row.values["sentence"],),
            test_set=row.values.get("set"),
        )
        for row in rows
        if (video_id := row.values["video_id"]) in located.paths
    ]
    return Listed(samples, located.missing)


def _read_captions(path: str | Path) -> tuple[Captions, list[str]]:
    """Captions of each video in the order of `MSRVTT_data.json`, and the problems of that file."""
    content, problems = read_json(path, dict)
    captions = Captions()
    if problems:
        return captions, problems
    sentences = content.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        return captions, [f"{path} needs a list 'sentences' of captions, found {sorted(content)!s:.200}"]
    for position, sentence in enumerate(sentences):
        entry = sentence if isinstance(sentence, dict) else {}
        caption, video_id = entry.get("caption"), entry.get("video_id")
        if isinstance(caption, str) and isinstance(video_id, str):
            captions.add(video_id, [caption], f"sentence {position} of {path}")
        else:
            problems.append(f"sentence {position} of {path} needs texts 'caption' and 'video_id': {sentence!r:.80}")
    return captions, problems


@dataclass(frozen=True)
class MsrvttSettings(VideoLocation):
    """Where MSR-VTT's files are."""

    train_csv: Path | None = setting(
        None, "training split: MSRVTT_train.9k.csv or 7k", affects_results=False, metavar="FILE"
    )
    val_csv: Path = setting(
        MISSING, "evaluation split: MSRVTT_JSFUSION_test.csv (1k-A)", affects_results=False, metavar="FILE"
    )
    data_path: Path | None = setting(None, "captions: MSRVTT_data.json", affects_results=False, metavar="FILE")
    expand_msrvtt_sentences: bool = setting(False, "every caption a sample, instead of one drawn for each video")


def _read_train(settings: MsrvttSettings, allow_missing: bool = False) -> Listed:
    require(MSRVTT.name, settings, "train_csv", "data_path")
    return read_train(
        settings.train_csv, settings.data_path, settings.videos, settings.expand_msrvtt_sentences, allow_missing
    )


def _read_eval(settings: MsrvttSettings, allow_missing: bool = False) -> Listed:
    return read_eval(settings.val_csv, settings.videos, allow_missing)


def _official(settings: MsrvttSettings) -> bool:
    train_csv = settings.train_csv
    return train_csv is not None and train_csv.name in OFFICIAL_TRAIN and settings.val_csv.name == OFFICIAL_EVAL


DATASET = RetrievalDataset(MsrvttSettings, _read_train, _read_eval, _official, training_list="train_csv")
