"""What every dataset reader returns and raises, and what readers share: text files, folders, checks."""

from __future__ import annotations

import codecs
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.settings import setting
from dataloaders.video.pack_index import PackIndex

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts"}
)
MAX_LISTED_PROBLEMS = 10
MAX_CAPTION_WORDS = 1000
# Also what has no width and is no space to `str.strip`: soft hyphen, zero-width spaces and joiners, byte order mark.
BLANK = re.compile(r"[\s\u00ad\u200b-\u200f\u2060\ufeff]*")
# Halves of a surrogate pair, which JSON can write and UTF-8 cannot; both would fail only in the tokenizer or later.
UNUSABLE = re.compile("[\0\ud800-\udfff]")
# UTF-32 first: its mark of little-endian text begins with that of UTF-16.
OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(frozen=True)
class Sample:
    """One training or evaluation item: a video and the captions that it may be paired with.

    sample_id: unique within its split; the key of every random draw that is made for this item.
    video_id: the dataset's own name of the video; equal for samples that share a video.
    path: the video file; of a packed video, the path that `PackIndex` gives it.
    captions: at least one text; where there are several, the dataset draws one an epoch.
    label: in recognition the index of the video's class, from 0; None in retrieval.
    """

    sample_id: str
    video_id: str
    path: Path
    captions: tuple[str, ...]
    label: int | None = None


@dataclass(frozen=True)
class Listed:
    """What a list of videos holds.

    samples: in the order of the list. missing: the ids of its videos without a file, in order, each once; they are
    not among the samples, and there are none unless the reader was told to go on without them.
    """

    samples: list[Sample]
    missing: list[str]


@dataclass(frozen=True)
class VideoLocation:
    """Where a dataset's videos are: in a folder or in a pack, one of the two."""

    features_path: Path | None = setting(
        None, "folder of the videos, in any container", affects_results=False, metavar="FOLDER"
    )
    packed: Path | None = setting(
        None,
        "folder that preprocess/pack_frames.py made, read in place of --features_path",
        affects_results=False,
        metavar="FOLDER",
    )

    @property
    def videos(self) -> Path | PackIndex:
        """The folder of the videos, or the opened pack.

        Raises:
            UserError: none is given, or both are; or the pack cannot be used.
        """
        if (self.features_path is None) == (self.packed is None):
            given = "neither is" if self.packed is None else "both are"
            raise UserError(
                "give --features_path, the folder of the videos, or --packed, a pack of their frames: " + given
            )
        return self.features_path if self.pack is None else self.pack

    @cached_property
    def pack(self) -> PackIndex | None:
        """The pack, opened; None where videos are in a folder. Read once, however many lists are read.

        Raises:
            UserError: it cannot be used.
        """
        return None if self.packed is None else PackIndex.open(self.packed)


@dataclass(frozen=True)
class Dataset:
    """A dataset: its flags, and how its files become samples.

    settings: a frozen dataclass of `common.settings.setting` fields; each becomes a flag.
    read_train, read_eval: from the settings, and from `allow_missing=True` where videos without a file are to be left
    out instead of being problems, what a split lists; they raise AnnotationError.
    official: whether the settings name the dataset's published split files, which share no video.
    """

    settings: type
    read_train: Callable[..., Listed]
    read_eval: Callable[..., Listed]
    official: Callable[[Any], bool]


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


def read_all(readers: Sequence[Callable[[Any], Any]], settings: Any) -> list[Any]:
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


def read_text(path: str | Path) -> tuple[str, list[str]]:
    """The text of an annotation file, and its problem: one at most, and with it no text.

    The file is UTF-8, with or without a byte order mark; line ends are left as they are.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return "", [f"no such file: {path}"]
    except OSError as error:
        return "", [f"{path} cannot be read: {error.strerror}"]
    for mark, encoding in OTHER_ENCODINGS.items():
        if content.startswith(mark):
            return "", [f"line 1 of {path}: {encoding}, not UTF-8; {_convert(path, encoding)}"]
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start], error.object[error.start]
        where = f"line {_line_after(before.decode('latin-1'))} of {path}"
        return "", [f"{where}: not UTF-8 (byte 0x{byte:02x}); if it is Latin-1, {_convert(path, 'LATIN1')}"]
    if (position := text.find("\0")) >= 0:
        return "", [
            f"line {_line_after(text[:position])} of {path}: a NUL character; the file is half-written, or UTF-16: "
            "download it again or convert it"
        ]
    return (text, []) if text.strip() else ("", [f"{path} is empty"])


def _convert(path: str | Path, encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > NEW_FILE"


def _line_after(text: str) -> int:
    """The number, from 1, of the line that goes on where the text ends."""
    # Not str.splitlines, to which far more characters end a line.
    return text.replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1


def read_json(path: str | Path, kind: type) -> tuple[Any, list[str]]:
    """What a JSON file holds, which must be a `kind` (list or dict) that is not empty, and its problem."""
    text, problems = read_text(path)
    if problems:
        return kind(), problems
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        return kind(), [f"line {error.lineno}, column {error.colno} of {path}: cannot be read as JSON: {error.msg}"]
    except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets in each other
        return kind(), [f"{path} cannot be read as JSON: {error}"]
    if not isinstance(content, kind) or not content:
        wanted = {list: "a list", dict: "an object"}[kind]
        return kind(), [f"{path} needs {wanted} that is not empty, found {content!s:.80}"]
    return content, []


def show(text: str) -> str:
    """A name for a message: as it is, or where that would be long or not to be seen, quoted and cut."""
    return text if text.isprintable() and len(text) <= 80 else f"{text!r:.80}"


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen."""
    return BLANK.fullmatch(text) is not None


def caption_problem(text: str) -> str | None:
    """What is wrong with a caption, None for nothing."""
    if is_blank(text):
        return "empty caption"
    if (words := len(text.split())) > MAX_CAPTION_WORDS:
        return f"a caption of {words:,} words; probably a quotation mark that is never closed"
    if UNUSABLE.search(text):
        return f"a caption with characters that are no text: {text!r:.80}"
    return None


def check_overlap(training: Iterable[Sample], evaluation: Iterable[Sample], official: bool, source: str) -> str | None:
    """A warning that names the evaluation videos that are also trained on; None where there are none.

    official: of splits that share none as they were published, so that the files cannot be theirs. source: the
    lists, for the message.

    Raises AnnotationError in place of the warning where the splits are official.
    """
    shared = shared_videos(training, evaluation)
    if not shared:
        return None
    names = [
        show(video_id) if video_id == trained else f"{show(video_id)} (trained on as {show(trained)})"
        for video_id, trained in shared.items()
    ]
    more = f" and {len(names) - MAX_LISTED_PROBLEMS} more" if len(names) > MAX_LISTED_PROBLEMS else ""
    count = "1 evaluation video is" if len(names) == 1 else f"{len(names)} evaluation videos are"
    text = f"{source}: {count} also trained on: {', '.join(names[:MAX_LISTED_PROBLEMS])}{more}"
    if official:
        raise AnnotationError(f"{text}\nThe official splits share no video: download their files again.")
    return f"{text}. The results will be too good: take these videos out of one of the two lists."


def shared_videos(training: Iterable[Sample], evaluation: Iterable[Sample]) -> dict[str, str]:
    """The ids of the evaluation videos that are also trained on, in order, each with the id under which it is.

    One video is what has one id, and also what is one file under two ids, be it by links or another spelling.
    """
    # A video may have twenty samples: paths are resolved once a video.
    trained = {sample.video_id: sample.path for sample in training}
    evaluated = {sample.video_id: sample.path for sample in evaluation}
    files = {os.path.realpath(path): video_id for video_id, path in trained.items()}
    shared = {}
    for video_id, path in evaluated.items():
        same = video_id if video_id in trained else files.get(os.path.realpath(path))
        if same is not None:
            shared[video_id] = same
    return shared


def list_folder(folder: str | Path, name: str) -> tuple[list[os.DirEntry], list[str]]:
    """The entries of a folder in alphabetical order, and its problem: one at most, and with it no entries.

    name: what the folder is, for messages. Entries with a leading dot are left out: it marks what file managers leave
    behind ("._video0.mp4"), never a file of the dataset.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name), []
    except OSError as error:
        return [], [folder_problem(folder, name, error)]


def folder_problem(folder: str | Path, name: str, error: OSError) -> str:
    """Why a folder cannot be listed; name: what it is."""
    reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
    return f"the {name} {folder} {reason}"
