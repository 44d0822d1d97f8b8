"""MSR-VTT for text-video retrieval: the split files that CLIP4Clip made customary, read into samples.

Training reads `MSRVTT_train.9k.csv` (or 7k; a column `video_id`) and the captions in `MSRVTT_data.json`;
evaluation reads `MSRVTT_JSFUSION_test.csv`, the 1k-A split (columns `key`, `vid_key`, `video_id`,
`sentence`); where it has a column `set`, too, ranks are taken within each set. Samples keep the order of the CSV file.
Videos are `<video_id>.<any container>`, at any depth; where several have that name, a `video_id` of the CSV file may be
the path of one, "part1/video7" or "part1/video7.mp4".
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from common.settings import setting
from dataloaders.annotations import AnnotationError, caption_problem, raise_if_problems, read_json, show
from dataloaders.datasets.retrieval.lists import (
    Listed,
    RetrievalDataset,
    locate,
    names_of_captions,
    one_download,
    read_table,
    set_problems,
)
from dataloaders.samples import Sample, VideoLocation
from dataloaders.video.pack_index import PackIndex
from dataloaders.video_files import VideoFiles

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
    videos = VideoFiles(features_path)
    located = locate(rows, videos, "training", train_csv, allow_missing)
    problems += caption_problems + located.problems

    samples = []
    names = names_of_captions(rows, captions, located.paths)
    left_out = set(located.missing)
    for row in rows:
        video_id = row.values["video_id"]
        if not video_id or (allow_missing and video_id in left_out):
            continue
        listed = captions.get(names[video_id], [])
        if captions and not listed:
            problems.append(f"{row.where}: {show(video_id)}: unknown to {data_path}, no captions")
        problems += [
            f"sentence {position} of {data_path}: {show(video_id)}: {problem}"
            for position, text in listed
            if (problem := caption_problem(text))
        ]
        texts = tuple(text for _, text in listed)
        path = located.paths.get(video_id)
        if expand_sentences:
            samples += [Sample(f"{video_id}#{number}", video_id, path, (text,)) for number, text in enumerate(texts)]
        else:
            samples.append(Sample(video_id, video_id, path, texts))
    remedy = one_download("MSR-VTT", TRAIN_SOURCES, videos, "video0.mp4")
    raise_if_problems(f"MSR-VTT training split {train_csv}", problems, remedy, *located.remedies)
    return Listed(samples, located.missing)


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
    remedy = one_download("MSR-VTT", EVAL_SOURCES, videos, "video0.mp4")
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


def _read_captions(path: str | Path) -> tuple[dict[str, list[tuple[int, str]]], list[str]]:
    """Captions of each video in the order of `MSRVTT_data.json`, stripped, and the problems of that file.

    Each has its position in the list of all sentences before it.
    """
    content, problems = read_json(path, dict)
    if problems:
        return {}, problems
    sentences = content.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        return {}, [f"{path} needs a list 'sentences' of captions, found {sorted(content)!s:.200}"]
    captions: dict[str, list[tuple[int, str]]] = {}
    for position, sentence in enumerate(sentences):
        entry = sentence if isinstance(sentence, dict) else {}
        caption, video_id = entry.get("caption"), entry.get("video_id")
        if isinstance(caption, str) and isinstance(video_id, str):
            captions.setdefault(video_id, []).append((position, caption.strip()))
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
    absent = [name for name in ("train_csv", "data_path") if getattr(settings, name) is None]
    if absent:
        raise AnnotationError(f"training on MSR-VTT needs {' and '.join('--' + name for name in absent)}")
    return read_train(
        settings.train_csv, settings.data_path, settings.videos, settings.expand_msrvtt_sentences, allow_missing
    )


def _read_eval(settings: MsrvttSettings, allow_missing: bool = False) -> Listed:
    return read_eval(settings.val_csv, settings.videos, allow_missing)


def _official(settings: MsrvttSettings) -> bool:
    train_csv = settings.train_csv
    return train_csv is not None and train_csv.name in OFFICIAL_TRAIN and settings.val_csv.name == OFFICIAL_EVAL


DATASET = RetrievalDataset(MsrvttSettings, _read_train, _read_eval, _official, training_list="train_csv")
