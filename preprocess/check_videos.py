"""Find the videos that cannot be read, before a run meets them.

    python preprocess/check_videos.py --features_path data/msrvtt/videos
    python preprocess/check_videos.py --datatype msrvtt --train_csv MSRVTT_train.9k.csv --data_path MSRVTT_data.json \\
        --val_csv MSRVTT_JSFUSION_test.csv --features_path data/msrvtt/videos
    python preprocess/check_videos.py --datatype hmdb51 --split_dir testTrainMulti_7030_splits --features_path videos

Without --datatype every video in the folder is checked, at any depth; what is hidden is no video. With it, the videos
that a run with the same flags reads: of a retrieval dataset those of the evaluation, and of the training if its list is
named; all splits of a recognition dataset or the one of --split. A table in the end says of each list how many videos
it has, how many of these have a file, and how many can be read. Those without a file also go to `missing_videos.csv`,
which a run accepts: --allow_missing missing_videos.csv leaves out these videos and no other.

A video is read as a run reads it, from its first frame to its last, with the same time limit. What is bad goes to
`bad_videos.csv`, in the form of the file that a run leaves: step, epoch, sample, attempt (empty here), video, reason;
of a missing video its id. The file is complete or not there, and also written, with its header alone, if nothing is
bad.

Exit code: 0 all videos are good, 1 some are bad or missing, 2 the command cannot start or write, 130 interrupted: what
was found until then is written; that of missing videos is whole by then.
"""

from __future__ import annotations

import argparse
import csv
import os
import queue
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import MISSING, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.early import say_starting

if __name__ == "__main__":  # here, since what follows takes seconds
    say_starting()

from common.errors import UserError
from common.files import csv_text, write_whole
from common.progress import Progress
from common.settings import add_arguments, at_least, from_arguments, setting
from dataloaders.annotations import MAX_LISTED_PROBLEMS, read_all
from dataloaders.bad_videos import SKIPPED, SKIPPED_COLUMNS
from dataloaders.datasets import RECOGNITION, RETRIEVAL
from dataloaders.datasets.recognition.splits import LISTS
from dataloaders.missing_videos import MISSING_COLUMNS, MISSING_VIDEOS
from dataloaders.samples import Sample
from dataloaders.video.decoding import BadVideoError
from dataloaders.video.reader import DecodingSettings, VideoReader
from dataloaders.video.sampling import FrameSampler
from dataloaders.video_files import list_videos, no_videos
from modules.program.arguments import USAGE


@dataclass(frozen=True)
class CheckSettings(DecodingSettings):
    """Flags of the check."""

    num_workers: int = setting(os.cpu_count() or 1, "videos read at a time", within=at_least(1), metavar="VIDEOS")
    output: Path = setting(Path(SKIPPED), "the bad videos go to this file", metavar="FILE")
    missing_list: Path = setting(
        Path(MISSING_VIDEOS),
        "with --datatype, the listed videos without a file go to this file, which a run's --allow_missing takes",
        metavar="FILE",
    )


@dataclass(frozen=True)
class FolderSettings:
    """Flags where no dataset is named."""

    features_path: Path = setting(
        MISSING, "folder of the videos, which may be in folders of their own", metavar="FOLDER"
    )


@dataclass(frozen=True)
class SplitChoice:
    """Flags of recognition beside those of its datasets."""

    split: str | None = setting(None, "official split; without it all of them")
    lists: str = setting("both", "lists that are checked; of a copy without training videos, test", ("both", *LISTS))


@dataclass(frozen=True)
class VideoList:
    """The videos of one list of a dataset.

    name: of the list. paths: the files that there are. missing: the ids without one.
    """

    name: str
    paths: frozenset[Path]
    missing: frozenset[str]

    @classmethod
    def of(cls, name: str, samples: Sequence[Sample], missing: Collection[str]) -> VideoList:
        """From what a reader found."""
        return cls(name, frozenset(sample.path for sample in samples), frozenset(missing))


@dataclass(frozen=True)
class Plan:
    """What there is to check.

    paths: sorted, each once. bad: what is bad without having been read, and why. lists: those of a dataset; none of a
    folder.
    """

    paths: list[Path]
    bad: dict[str, str]
    lists: Sequence[VideoList] = ()


# --- Which videos -----------------------------------------------------------------------------------------


def plan_folder(folder: Path) -> Plan:
    """Everything named like a video under a folder, also in linked folders and what is no file.

    Raises:
        UserError: there is none.
    """
    if not folder.is_dir():
        raise UserError(f"--features_path {folder} is not a folder")
    listing = list_videos(folder)
    paths = [folder / path for path in (*listing.files, *listing.no_files)]
    bad = {
        str(folder / path): f"a folder that cannot be read: {error.strerror}" for path, error in listing.unread.items()
    }
    if not paths and not bad:
        raise UserError(no_videos("--features_path", folder, listing))
    return Plan(sorted(paths), bad)


def plan_retrieval(datatype: str, settings: Any) -> Plan:
    """The videos of a retrieval dataset's evaluation and, where the settings name a training list, of its training.

    Raises:
        AnnotationError: listing everything that is wrong with its files, but for videos that are missing.
    """
    dataset = RETRIEVAL[datatype]
    if not dataset.names_training(settings):
        of_training = [f"--{name}" for name, value in vars(settings).items() if name.startswith("train_") and value]
        if of_training:
            raise UserError(f"{', '.join(of_training)}: give --{dataset.training_list} too, which has the videos")
    readers = {"training": dataset.read_train} if dataset.names_training(settings) else {}
    readers["evaluation"] = dataset.read_eval
    lists = read_all([lambda s, read=read: read(s, allow_missing=True) for read in readers.values()], settings)
    found = zip(readers, lists, strict=True)
    return plan_lists([VideoList.of(name, listed.samples, listed.missing) for name, listed in found], settings)


def plan_recognition(datatype: str, settings: Any, split: str | None, chosen: str = "both") -> Plan:
    """The videos of a recognition dataset's split, or where it is None of all its splits; chosen: of which lists.

    Raises:
        UserError: there is no such split; as AnnotationError, as above.
    """
    dataset = RECOGNITION[datatype]
    if split not in (None, *dataset.splits):
        raise UserError(f"--split {split}: {datatype} has split {', '.join(dataset.splits)} only")
    names = dataset.splits if split is None else (split,)
    wanted = LISTS if chosen == "both" else (chosen,)
    splits = read_all([lambda s, name=name: dataset.read(s, name, LISTS, wanted) for name in names], settings)
    lists = []
    for name, read in zip(names, splits, strict=True):
        of_split = f"split {name}, " if len(names) > 1 else ""
        for list_name in wanted:
            samples = read.train if list_name == LISTS[0] else read.test
            missing = [video_id for its, video_id in read.missing if its == list_name]
            lists.append(VideoList.of(of_split + list_name, samples, missing))
    return plan_lists(lists, settings)


def plan_lists(lists: Sequence[VideoList], settings: Any) -> Plan:
    """The videos of all lists; settings: of the dataset, a `VideoLocation`."""
    paths = frozenset().union(*(listed.paths for listed in lists))
    missing = frozenset().union(*(listed.missing for listed in lists))
    bad = dict.fromkeys(sorted(missing), f"no video file in {settings.features_path}")
    return Plan(sorted(paths), bad, lists)


# --- Checking them ----------------------------------------------------------------------------------------


def check_all(paths: Sequence[Path], settings: CheckSettings) -> Iterator[tuple[Path, str | None]]:
    """Yield (video, None or what is wrong with it) as they are read, `num_workers` at a time."""
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    answers: queue.SimpleQueue = queue.SimpleQueue()
    for path in paths:
        waiting.put(path)
    stopped = threading.Event()

    def work() -> None:
        reader = VideoReader(settings)
        try:
            while not stopped.is_set():
                path = waiting.get_nowait()
                answers.put((path, reason_of(reader, path)))
        except queue.Empty:
            pass
        except Exception as error:  # no video's doing; it ends the check, in the thread that everything else is in
            answers.put(error)
        finally:
            reader.close()

    # Threads are enough: each one waits for a process that decodes. As daemons, so that one that waits for a video
    # does not hold up an interrupted program.
    for _ in range(min(settings.num_workers, len(paths))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in paths:
            answer = answers.get()
            if isinstance(answer, Exception):
                raise answer
            yield answer
    finally:
        stopped.set()


def reason_of(reader: VideoReader, path: Path) -> str | None:
    """What is wrong with a video, None for nothing."""
    try:
        reader.read(path, 1, FrameSampler())  # all frames are decoded, whichever is wanted
    except BadVideoError as error:
        return error.reason
    return None


def write_bad(path: Path, bad: dict[str, str]) -> None:
    """The CSV file, sorted by video; complete or not there.

    Raises:
        UserError: it cannot be written.
    """
    rows = [["", "", "", "", video, reason] for video, reason in sorted(bad.items())]
    write_csv("--output", path, [SKIPPED_COLUMNS, *rows])


def write_missing(path: Path, lists: Sequence[VideoList]) -> None:
    """The CSV file that ``--allow_missing`` accepts, sorted within each list; complete or not there.

    Raises:
        UserError: it cannot be written.
    """
    rows = [[listed.name, video_id] for listed in lists for video_id in sorted(listed.missing)]
    write_csv("--missing_list", path, [MISSING_COLUMNS, *rows])


def write_csv(flag: str, path: Path, rows: Sequence[Sequence[str]]) -> None:
    """A CSV file that a flag names; complete or not there.

    Raises:
        UserError: it cannot be written.
    """
    # a name may hold bytes that are not UTF-8
    content = csv_text(rows).encode("utf-8", "backslashreplace")
    try:
        write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be written: {error.strerror}") from error


def table(lists: Sequence[VideoList], good: Collection[Path]) -> str:
    """How many videos each list has, how many of them have a file, and how many can be read; then all lists together.

    Args:
        good: the files that were read.
    """
    if len(lists) > 1:  # a video may be in several
        everything = [frozenset().union(*(getattr(of, name) for of in lists)) for name in ("paths", "missing")]
        lists = [*lists, VideoList("all", *everything)]
    rows = [["list", "listed", "found", "readable"]]
    for listed in lists:
        counts = (len(listed.paths) + len(listed.missing), len(listed.paths), len(listed.paths & frozenset(good)))
        rows.append([listed.name, *(f"{count:,}" for count in counts)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in rows
    )


def say(text: str) -> None:
    """A line above the progress bar."""
    tqdm.write(text.encode("utf-8", "backslashreplace").decode(), file=sys.stdout)


# --- Command line -----------------------------------------------------------------------------------------


def start(argv: Sequence[str] | None) -> tuple[CheckSettings, Plan]:
    """Check everything that can be checked before the first video is read.

    Raises:
        UserError: the check cannot start.
        SystemExit: from argparse.
    """
    datasets = RETRIEVAL | RECOGNITION
    chooser = argparse.ArgumentParser(usage=USAGE, add_help=False, allow_abbrev=False)
    chooser.add_argument("--datatype", choices=list(datasets), help="the dataset; without it, all videos of a folder")
    datatype = chooser.parse_known_args(argv)[0].datatype
    parser = argparse.ArgumentParser(
        usage=USAGE,
        description=__doc__,
        parents=[chooser],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = FolderSettings if datatype is None else datasets[datatype].settings
    add_arguments(parser, CheckSettings, "check")
    add_arguments(parser, data, "videos")
    if datatype in RECOGNITION:
        add_arguments(parser, SplitChoice, "split")
    arguments = parser.parse_args(argv)

    settings, files = from_arguments(CheckSettings, arguments), from_arguments(data, arguments)
    if getattr(files, "packed", None) is not None:
        raise UserError(f"a pack is checked by preprocess/pack_frames.py --verify --output_root {files.packed}")
    prepare_output("--output", settings.output)
    if settings.output.is_file() and has_steps(settings.output):
        raise UserError(
            f"--output {settings.output} is the list of a run, which needs it to be continued: give another file"
        )
    if datatype is not None:
        prepare_output("--missing_list", settings.missing_list)
    if datatype is None:
        return settings, plan_folder(files.features_path)
    if datatype in RETRIEVAL:
        return settings, plan_retrieval(datatype, files)
    choice = from_arguments(SplitChoice, arguments)
    return settings, plan_recognition(datatype, files, choice.split, choice.lists)


def prepare_output(flag: str, path: Path) -> None:
    """Make the folder of a file that a flag names.

    Raises:
        UserError: the file could not be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {path}: its folder cannot be made: {error.strerror}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag} {path} {'is a folder' if path.is_dir() else 'lies in a folder that is read-only'}")


def has_steps(path: Path) -> bool:
    """Whether a file is the list of bad videos that a run keeps."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return any(row.get("step") for row in csv.DictReader(file))


def check(settings: CheckSettings, plan: Plan) -> int:
    """Read the videos, report the bad ones, and return the exit status.

    Raises:
        UserError: the output cannot be written.
    """
    bad = dict(plan.bad)
    for video, reason in islice(bad.items(), MAX_LISTED_PROBLEMS):
        say(f"bad: {video}: {reason}")
    if len(bad) > MAX_LISTED_PROBLEMS:
        say(f"... and {len(bad) - MAX_LISTED_PROBLEMS:,} more, in {settings.output} when this ends")
    if plan.lists:
        write_missing(settings.missing_list, plan.lists)
    done, good = 0, set()
    ending = "interrupted"  # also by an error that is no video's, which is shown behind what was found
    try:
        with Progress(len(plan.paths), "reading", "video", "videos") as progress:
            progress.note(bad=len(bad))
            for path, reason in check_all(plan.paths, settings):
                done += 1
                if reason is not None:
                    bad[str(path)] = reason
                    say(f"bad: {path}: {reason}")
                    progress.note(bad=len(bad))
                else:
                    good.add(path)
                progress.update()
        ending = ""
    except KeyboardInterrupt:
        pass
    finally:
        write_bad(settings.output, bad)
        say(f"{done} of {len(plan.paths)} videos read, {len(bad)} bad or missing: {settings.output}")
        if plan.bad and plan.lists:
            say(f"{len(plan.bad)} have no file: {settings.missing_list}, which --allow_missing of a run takes")
        if plan.lists:
            say(table(plan.lists, good))
        if ending:
            say(f"{ending}: {settings.output} is incomplete")
    return 130 if ending else 1 if bad else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    try:
        return check(*start(argv))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
