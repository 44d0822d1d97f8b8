"""MSR-VTT for text-video retrieval: the split files that CLIP4Clip made customary, read into samples.

Training reads `MSRVTT_train.9k.csv` (or 7k; a column `video_id`) and the captions in `MSRVTT_data.json`;
evaluation reads `MSRVTT_JSFUSION_test.csv`, the 1k-A split (columns `key`, `vid_key`, `video_id`,
`sentence`). Samples keep the order of the CSV file. Videos are `<video_id>.<any container>`, at any depth; where
several have that name, a `video_id` of the CSV file may be the path of one, "part1/video7" or "part1/video7.mp4".
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, replace
from pathlib import Path

from common.settings import setting
from dataloaders.samples import (
    AnnotationError,
    Dataset,
    Listed,
    Sample,
    VideoLocation,
    caption_problem,
    is_blank,
    raise_if_problems,
    read_json,
    read_text,
    show,
)
from dataloaders.video.pack_index import PackIndex
from dataloaders.video_files import Located, VideoFiles, stem_of

OFFICIAL_TRAIN = ("MSRVTT_train.9k.csv", "MSRVTT_train.7k.csv")
OFFICIAL_EVAL = "MSRVTT_JSFUSION_test.csv"
REMEDY = (
    "Check that {sources} and the videos ({flag}, with files such as video0.mp4, at any depth) are those of one "
    "MSR-VTT download, complete and unpacked."
)
TRAIN_SOURCES = "the CSV file (--train_csv), MSRVTT_data.json (--data_path)"
EVAL_SOURCES = "the CSV file (--val_csv)"


@dataclass(frozen=True)
class Row:
    """A row of a CSV file.

    where: the place in the file, for messages. values: column -> stripped text, empty where it is blank or where the
    file has no such column.
    """

    where: str
    values: dict[str, str]


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
    rows, problems = _read_table(train_csv, ["video_id"], unique="video_id")
    captions, caption_problems = _read_captions(data_path)
    videos = VideoFiles(features_path)
    located = _locate(rows, videos, "training", train_csv, allow_missing)
    problems += caption_problems + located.problems

    samples = []
    names = _names_of_captions(rows, captions, located.paths)
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
    remedy = " ".join([REMEDY.format(sources=TRAIN_SOURCES, flag=videos.flag), *located.remedies])
    raise_if_problems(f"MSR-VTT training split {train_csv}", problems, remedy)
    return Listed(samples, located.missing)


def read_eval(val_csv: str | Path, features_path: str | Path | PackIndex, allow_missing: bool = False) -> Listed:
    """The text-video pairs of an evaluation split, a sample a row, `sample_id` being the row's key.

    features_path: the folder of video files, or a pack. Sentences may repeat (1k-A: 995 different ones in 1,000); keys
    may not. allow_missing: leave out videos without a file; that all are without one is an error still.

    Raises AnnotationError, once, with everything that is missing or empty in the two sources.
    """
    rows, problems = _read_table(val_csv, ["key", "video_id", "sentence"], unique="key")
    videos = VideoFiles(features_path)
    located = _locate(rows, videos, "evaluation", val_csv, allow_missing)
    problems += located.problems
    for row in rows:
        # The table has reported what is empty.
        sentence = row.values["sentence"]
        if sentence and (problem := caption_problem(sentence)):
            problems.append(f"{row.where}: {problem}")
    remedy = " ".join([REMEDY.format(sources=EVAL_SOURCES, flag=videos.flag), *located.remedies])
    raise_if_problems(f"MSR-VTT evaluation split {val_csv}", problems, remedy)
    samples = [
        Sample(row.values["key"], video_id, located.paths[video_id], (row.values["sentence"],))
        for row in rows
        if (video_id := row.values["video_id"]) in located.paths
    ]
    return Listed(samples, located.missing)


def _locate(rows: list[Row], videos: VideoFiles, list_name: str, source: str | Path, allow_missing: bool) -> Located:
    """The files of the videos of a list, and all problems of these: also a file that has two ids in it."""
    places: dict[str, str] = {}
    for row in rows:
        if row.values["video_id"]:
            places.setdefault(row.values["video_id"], row.where)
    located = videos.locate(places, list_name, str(source), allow_missing)
    first: dict[Path, str] = {}
    doubles = []
    for video_id, path in located.paths.items():
        before = first.setdefault(path, video_id)
        if before != video_id:
            doubles.append(f"{places[video_id]}: {show(video_id)}: the file of {show(before)} ({places[before]})")
    return replace(located, problems=videos.problems + located.problems + doubles)


def _names_of_captions(rows: list[Row], captions: Collection[str], paths: Mapping[str, Path]) -> dict[str, str]:
    """For each video id of a list, the name under which there are its captions, if there are any."""
    ids = {row.values["video_id"] for row in rows}
    videos = {paths.get(video_id, video_id): stem_of(video_id) for video_id in ids}
    count = Counter(videos.values())
    return {
        video_id: video_id if video_id in captions or count[stem_of(video_id)] > 1 else stem_of(video_id)
        for video_id in ids
    }


def _read_table(path: str | Path, columns: list[str], unique: str) -> tuple[list[Row], list[str]]:
    """The rows of a CSV file with the named columns, and its problems.

    A missing column is one problem and comes back as empty strings, so that the others are checked still; a row with
    too many or too few fields is a problem and does not come back, since any of its fields may be in a wrong place.
    """
    text, problems = read_text(path)
    if problems:
        return [], problems
    records, problems = _read_records(text, path)
    if not records:
        return [], problems or [f"{path} is empty"]
    (line, header), *records = records
    places = {column: header.index(column) for column in columns if column in header}
    if absent := [column for column in columns if column not in places]:
        found = f"{header!s:.200}"
        problems.append(f"line {line} of {path}: needs the columns {columns}; missing {absent}, found {found}")
    problems += [
        f"line {line} of {path}: more than one column {column}" for column in columns if header.count(column) > 1
    ]
    if not records and not problems:
        problems.append(f"{path} has no rows")
    rows: list[Row] = []
    first: dict[str, int] = {}
    for line, fields in records:
        where = f"line {line} of {path}"
        if len(fields) != len(header):
            problems.append(
                f"{where}: {len(fields)} fields, the header has {len(header)}; a text with commas needs quotation marks"
            )
            continue
        values = {column: "" for column in columns}
        values |= {column: fields[place] for column, place in places.items() if not is_blank(fields[place])}
        problems += [f"{where}: empty {column}" for column in places if not values[column]]
        key = values[unique]
        if key in first:
            problems.append(f"{where}: {unique} {show(key)} is there before, in line {first[key]}")
        elif key:
            first[key] = line
        rows.append(Row(where, values))
    return rows, problems


def _read_records(text: str, path: str | Path) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """The records of a CSV text and the number of each one's first line, and the problem that ended the reading.

    Blank lines are no records.
    """
    # Strict: else a quotation mark that is never closed silently makes one field of all that follows.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records = []
    line = 1
    try:
        for fields in reader:
            fields = [field.strip() for field in fields]
            if len(fields) > 1 or any(fields):
                records.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        reason = f"cannot be read as CSV ({error}); probably a quotation mark that is never closed"
        return records, [f"line {line} of {path}: {reason}, or one in a text that is not doubled"]
    return records, []


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


DATASET = Dataset(MsrvttSettings, _read_train, _read_eval, _official)
