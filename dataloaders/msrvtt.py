"""MSR-VTT for text-video retrieval: the split files that CLIP4Clip made customary, read into samples.

Training reads `MSRVTT_train.9k.csv` (or 7k; a column `video_id`) and the captions in `MSRVTT_data.json`;
evaluation reads `MSRVTT_JSFUSION_test.csv`, the 1k-A split (columns `key`, `vid_key`, `video_id`,
`sentence`). Samples keep the order of the CSV file.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass
from pathlib import Path

import pandas as pd

from dataloaders.samples import AnnotationError, Dataset, Sample, raise_if_problems, scan_videos
from modules.settings import setting

REMEDY = (
    "Check that the CSV file, MSRVTT_data.json (--data_path) and the folder of videos (--features_path, with "
    "files such as video0.mp4) are those of one MSR-VTT download, complete and unpacked."
)


def read_train(
    train_csv: str | Path, data_path: str | Path, features_path: str | Path, expand_sentences: bool
) -> list[Sample]:
    """The training videos of `train_csv` with their captions.

    data_path: `MSRVTT_data.json`. features_path: the folder of video files, `<video_id>.<any container>`.
    expand_sentences: every caption is a sample of its own, `video0#3` for the fourth caption of video0 in the
    JSON (the customary protocol: 180,000 samples for 9k); else a sample is a video with all of its captions.

    Raises AnnotationError, once, with everything that is missing or empty in the three sources.
    """
    table, problems = _read_table(train_csv, ["video_id"], unique="video_id")
    captions, caption_problems = _read_captions(data_path)
    videos, video_problems = scan_videos(features_path)
    problems += caption_problems + video_problems

    samples = []
    for video_id in filter(None, table["video_id"]):
        texts = captions.get(video_id, [])
        if captions and not texts:
            problems.append(f"{video_id}: unknown to {data_path}, no captions")
        problems += [
            f"{video_id}: caption {position} in {data_path} is empty" for position, text in enumerate(texts) if not text
        ]
        problems += _missing(video_id, videos, features_path)
        path = videos.get(video_id)
        if expand_sentences:
            samples += [
                Sample(f"{video_id}#{position}", video_id, path, (text,)) for position, text in enumerate(texts)
            ]
        else:
            samples.append(Sample(video_id, video_id, path, tuple(texts)))
    raise_if_problems(f"MSR-VTT training split {train_csv}", problems, REMEDY)
    return samples


def read_eval(val_csv: str | Path, features_path: str | Path) -> list[Sample]:
    """The text-video pairs of an evaluation split, a sample a row, `sample_id` being the row's key.

    features_path: the folder of video files, `<video_id>.<any container>`. Sentences may repeat (1k-A: 995
    different ones in 1,000); keys may not.

    Raises AnnotationError, once, with everything that is missing or empty in the two sources.
    """
    table, problems = _read_table(val_csv, ["key", "video_id", "sentence"], unique="key")
    videos, video_problems = scan_videos(features_path)
    problems += video_problems
    for video_id in filter(None, table["video_id"]):
        problems += _missing(video_id, videos, features_path)
    raise_if_problems(f"MSR-VTT evaluation split {val_csv}", problems, REMEDY)
    return [
        Sample(row.key, row.video_id, videos[row.video_id], (row.sentence,)) for row in table.itertuples(index=False)
    ]


def _missing(video_id: str, videos: dict[str, Path], features_path: str | Path) -> list[str]:
    """The problem of a video without a file; none in a folder without videos, which is itself reported."""
    return [] if not videos or video_id in videos else [f"{video_id}: no video file in {features_path}"]


def _read_table(path: str | Path, columns: list[str], unique: str) -> tuple[pd.DataFrame, list[str]]:
    """The named columns of a CSV file as stripped text, and its problems.

    A missing column is one problem and comes back as empty strings, so that the others are checked still.
    """
    empty = pd.DataFrame({column: [] for column in columns}, dtype=str)
    if not Path(path).is_file():
        return empty, [f"no such file: {path}"]
    try:
        # Without keep_default_na a caption "null" would be a missing value; without index_col a row with a
        # comma too many would shift the columns.
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (OSError, ValueError) as error:  # pandas' parser errors and UnicodeDecodeError are ValueErrors
        return empty, [f"{path} cannot be read as CSV: {error}"]
    problems = []
    missing = [column for column in columns if column not in table]
    if missing:
        problems.append(f"{path} needs the columns {columns}; missing {missing}, found {list(table)}")
    if table.empty:
        problems.append(f"{path} has no rows")
    table = table.reindex(columns=columns, fill_value="").apply(lambda column: column.str.strip())
    for column in columns:
        if column not in missing:
            problems += [f"row {row + 1} of {path}: empty {column}" for row in table.index[table[column] == ""]]
    repeated = table[unique][table[unique].duplicated() & (table[unique] != "")]
    problems += [f"{value}: more than one row of {path} with this {unique}" for value in repeated.unique()]
    return table, problems


def _read_captions(path: str | Path) -> tuple[dict[str, list[str]], list[str]]:
    """Captions of each video in the order of `MSRVTT_data.json`, stripped, and the problems of that file."""
    if not Path(path).is_file():
        return {}, [f"no such file: {path}"]
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        return {}, [f"{path} cannot be read as JSON: {error}"]
    sentences = content.get("sentences") if isinstance(content, dict) else None
    if not isinstance(sentences, list) or not sentences:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        return {}, [f"{path} needs a list 'sentences' of captions, found {found}"]
    captions: dict[str, list[str]] = {}
    problems = []
    for position, sentence in enumerate(sentences):
        entry = sentence if isinstance(sentence, dict) else {}
        caption, video_id = entry.get("caption"), entry.get("video_id")
        if isinstance(caption, str) and isinstance(video_id, str):
            captions.setdefault(video_id, []).append(caption.strip())
        else:
            problems.append(f"sentence {position} of {path} needs texts 'caption' and 'video_id': {sentence!r:.80}")
    return captions, problems


@dataclass(frozen=True)
class MsrvttSettings:
    """Where MSR-VTT's files are."""

    train_csv: Path | None = setting(None, "training split: MSRVTT_train.9k.csv or 7k", affects_results=False)
    val_csv: Path = setting(MISSING, "evaluation split: MSRVTT_JSFUSION_test.csv (1k-A)", affects_results=False)
    data_path: Path | None = setting(None, "captions: MSRVTT_data.json", affects_results=False)
    features_path: Path = setting(MISSING, "folder of the videos, in any container", affects_results=False)
    expand_msrvtt_sentences: bool = setting(False, "every caption a sample, instead of one drawn for each video")


def _read_train(settings: MsrvttSettings) -> list[Sample]:
    missing = [name for name in ("train_csv", "data_path") if getattr(settings, name) is None]
    if missing:
        raise AnnotationError(f"training on MSR-VTT needs {' and '.join('--' + name for name in missing)}")
    return read_train(settings.train_csv, settings.data_path, settings.features_path, settings.expand_msrvtt_sentences)


def _read_eval(settings: MsrvttSettings) -> list[Sample]:
    return read_eval(settings.val_csv, settings.features_path)


DATASET = Dataset(MsrvttSettings, _read_train, _read_eval)
