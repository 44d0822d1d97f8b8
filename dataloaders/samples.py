"""What every dataset reader returns, and the error it raises where a dataset's files do not fit together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.errors import UserError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts"}
)
MAX_LISTED_PROBLEMS = 10


@dataclass(frozen=True)
class Sample:
    """One training or evaluation item: a video and the captions that it may be paired with.

    sample_id: unique within its split; the key of every random draw that is made for this item.
    video_id: the dataset's own name of the video; equal for samples that share a video.
    path: the video file.
    captions: at least one text; where there are several, the dataset draws one an epoch.
    label: in recognition the index of the video's class, from 0; None in retrieval.
    """

    sample_id: str
    video_id: str
    path: Path
    captions: tuple[str, ...]
    label: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A dataset: its flags, and how its files become samples.

    settings: a frozen dataclass of `modules.settings.setting` fields; each becomes a flag.
    read_train, read_eval: from the settings, the samples of a split; they raise AnnotationError.
    """

    settings: type
    read_train: Callable[[Any], list[Sample]]
    read_eval: Callable[[Any], list[Sample]]


class AnnotationError(UserError):
    """A dataset's files do not fit together; the message lists the problems and says what to do."""


def raise_if_problems(source: str, problems: list[str], remedy: str) -> None:
    """Raises one AnnotationError for all problems of a source, so that one run shows all there is to repair.

    source: what was read, with its path. problems: one line each; the first ten are shown, and the count of
    all. remedy: what the person who reads the message should do.
    """
    if not problems:
        return
    lines = [f"{source}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"]
    lines += [f"  - {problem}" for problem in problems[:MAX_LISTED_PROBLEMS]]
    if len(problems) > MAX_LISTED_PROBLEMS:
        lines.append(f"  ... and {len(problems) - MAX_LISTED_PROBLEMS} more")
    lines.append(remedy)
    raise AnnotationError("\n".join(lines))


def read_all(readers: Sequence[Callable[[Any], list[Sample]]], settings: Any) -> list[list[Sample]]:
    """What each reader of a dataset returns.

    Raises one AnnotationError with the messages of all readers that raised one.
    """
    read, errors = [], []
    for reader in readers:
        try:
            read.append(reader(settings))
        except AnnotationError as error:
            errors.append(str(error))
    if errors:
        raise AnnotationError("\n".join(errors))
    return read


def scan_videos(folder: str | Path, suffixes: Collection[str] = VIDEO_SUFFIXES) -> tuple[dict[str, Path], list[str]]:
    """The videos of a folder by their stem, and what is wrong with it; for readers that have more to report.

    suffixes: lower case, with the dot; a file's own suffix may be in any case. Subfolders are not searched.
    Where two files share a stem the first in alphabetical order is in the dictionary and the pair is among
    the problems.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return {}, [f"the video folder {folder} does not exist"]
    videos: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.iterdir()):
        # A leading dot marks what file managers leave behind ("._video0.mp4"), never a video of the dataset.
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in videos:
            problems.append(f"{videos[path.stem].name} and {path.name} in {folder} are both video {path.stem}")
        videos.setdefault(path.stem, path)
    if not videos:
        problems.append(f"the video folder {folder} holds no videos ({', '.join(sorted(suffixes))})")
    return videos, problems
