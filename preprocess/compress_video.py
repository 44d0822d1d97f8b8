"""Compress a folder of videos to the few small frames that training reads.

    python preprocess/compress_video.py --input_root data/MSRVTT/raw --output_root data/MSRVTT/videos_3fps
    python preprocess/compress_video.py --input_root RAW --output_root OUT --fps 3 --size 224 --num_workers 16

Every video under RAW, at any depth, becomes an H.264 MP4 without sound at the same relative path under OUT
(`RAW/class a/v1.avi` -> `OUT/class a/v1.mp4`). Hidden files and folders are left out. OUT also gets the settings
(`compress_video.json`, which trainings and evaluations of these videos name) and the failures
(`failed_videos.csv`: video, reason). The same command continues where it stopped: a video lies under its
final name only when it is complete. With other settings it is refused. One run at a time for one OUT.
No ffmpeg program is needed; the PyAV wheel (17 or newer) carries the libraries.

What a compressed video holds:

- Frames: frame k is the one that the source shows k / fps seconds after its first frame. None is invented: a
  frame that stays on screen longer is written once, so a source slower than fps keeps its frames and times.
  With --max_seconds 30 those of the first 30 seconds alone.
- Size: the short side is --size, the long side keeps the aspect and is even. A video that is smaller already
  keeps its size (made even): enlarging adds no information, and CLIP's preprocessing resizes every frame.
- Orientation: rotation tags are applied to the pixels, as Decord and OpenCV do. The sample aspect ratio is
  ignored, as they ignore it, so that original and compressed videos give the same picture.
- Colour: 8 bit 4:2:0 limited range, with the source's colour matrix.

A video that is damaged (cannot be opened or decoded, has corrupt frames, ends before its header says) is not
compressed but listed with the reason.

Exit code: 0 all videos are there, 1 some failed, 2 the command cannot start or write, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.files import write_whole
from common.progress import Progress
from dataloaders.video.preparation import COMPRESSED_NOTE, COMPRESSED_SUFFIX, preparation_of, read_note
from preprocess.frames import Shrinker, choose_frames, frame_interval, video_stream
from preprocess.jobs import (
    NOT_REACHED,
    WORKER_DIED,
    Job,
    alone_in,
    describe,
    interrupts_ignored,
    plan,
    report,
    start_pool,
    stop_workers,
    to_rate,
)

CODEC = "libx264"
MAX_SECONDS = "max_seconds"  # in the note
PARTIAL_SUFFIX = f"{COMPRESSED_SUFFIX}.partial"


@dataclass(frozen=True)
class CompressSettings:
    """What decides the content of a compressed video.

    Attributes:
        fps: frames per second at most.
        size: short side in pixels at most, even.
        crf: x264's constant rate factor, 0 (lossless) to 51.
        max_seconds: frames shown later than that after the first one are left out; None keeps all.

    Raises:
        ValueError: a value is out of its range.
    """

    fps: Fraction = Fraction(3)
    size: int = 224
    crf: int = 23
    max_seconds: Fraction | None = None

    def __post_init__(self):
        if self.fps <= 0:
            raise ValueError(f"fps must be above 0, not {self.fps}")
        if self.size < 2 or self.size % 2:
            raise ValueError(f"size must be an even number of pixels, not {self.size} (4:2:0 video has even sides)")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf must be 0 to 51, not {self.crf}")
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise ValueError(f"max_seconds must be above 0, not {self.max_seconds}")

    def as_json(self) -> dict:
        cut = None if self.max_seconds is None else str(self.max_seconds)
        return {"fps": str(self.fps), "size": self.size, "crf": self.crf, MAX_SECONDS: cut}


# --- One video --------------------------------------------------------------------------------------------


def compress(source: Path, target: Path, settings: CompressSettings) -> None:
    """Compress one video; `target` appears only when it is complete.

    Raises:
        DamagedVideo: the source is no video or cannot be read to its end.
        OSError: a file cannot be read or written (PyAV's errors are OSErrors or ValueErrors).
    """
    partial = partial_path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.touch()
        # An absolute path cannot be taken for a protocol ("a:b.mp4"); titles in old AVIs may not be UTF-8.
        with av.open(os.path.abspath(source), metadata_errors="ignore") as container:
            write_compressed(container, partial, settings)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def partial_path(target: Path) -> Path:
    """What this process alone writes until it is complete and becomes `target`."""
    return target.with_name(f".{target.stem}.{os.getpid()}{PARTIAL_SUFFIX}")


def target_of(partial: Path) -> Path:
    """What a `partial_path`, of whichever process, would have become."""
    stem, _, _ = partial.name.removeprefix(".").removesuffix(PARTIAL_SUFFIX).rpartition(".")
    return partial.with_name(f"{stem}{COMPRESSED_SUFFIX}")


def write_compressed(container: av.container.InputContainer, path: Path, settings: CompressSettings) -> None:
    """Encode the chosen frames of an opened video to `path`."""
    stream = video_stream(container)
    interval = frame_interval(stream, settings.fps)
    chosen = choose_frames(container, stream, settings.fps)
    if settings.max_seconds is not None:  # read to the end all the same: what is damaged there is a damaged video
        chosen = (kept for kept in chosen if kept[1] < settings.max_seconds)
    if interval >= 1 / settings.fps:  # the source is the slower one: its own clock
        rate, time_base = 1 / interval, stream.time_base
        stamped = ((round(time / time_base), round(interval / time_base), frame) for _, time, frame in chosen)
    else:
        rate, time_base = settings.fps, 1 / settings.fps
        stamped = ((slot, 1, frame) for slot, _, frame in chosen)
    encode(stamped, path, rate, time_base, settings)


def encode(
    stamped: Iterable[tuple[int, int, av.VideoFrame]],
    path: Path,
    rate: Fraction,
    time_base: Fraction,
    settings: CompressSettings,
) -> None:
    """Write (timestamp, duration, frame) as MP4; both times are in units of `time_base` seconds."""
    shrinker, stream = None, None
    options = {"movflags": "+faststart"}
    with av.open(os.path.abspath(path), "w", format="mp4", container_options=options) as output:
        for timestamp, duration, frame in stamped:
            if stream is None:
                shrinker = Shrinker(frame, settings.size)
            picture = shrinker(frame)
            if stream is None:
                stream = add_stream(output, picture, rate, time_base, settings.crf)
            picture.pts, picture.time_base, picture.duration = timestamp, time_base, duration
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))


def add_stream(output, picture: av.VideoFrame, rate: Fraction, time_base: Fraction, crf: int) -> av.VideoStream:
    """An H.264 stream for pictures like `picture`."""
    stream = output.add_stream(CODEC, rate=rate, options={"crf": str(crf)})
    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, picture.format.name
    context = stream.codec_context
    context.thread_count = 1
    context.time_base = time_base
    context.colorspace, context.color_range = picture.colorspace, picture.color_range
    context.color_primaries, context.color_trc = picture.color_primaries, picture.color_trc
    return stream


# --- A folder of videos -----------------------------------------------------------------------------------


def note_of(jobs: list[Job], settings: CompressSettings) -> dict[str, Any]:
    """How videos are made: also by which PyAV, and how the sources had been prepared themselves.

    Raises:
        UserError: the note of compressed sources cannot be read.
    """
    made_by = {"codec": CODEC, "pyav": av.__version__}
    return settings.as_json() | made_by | {"of": preparation_of(job.source for job in jobs)}


def claim_output(output_root: Path, jobs: list[Job], wanted: dict[str, Any]) -> None:
    """Record in the output folder how its videos are made, and remove what a killed run left.

    Args:
        wanted: of `note_of`.

    Raises:
        ValueError: the folder holds videos made with other settings, of sources prepared in another way, or with
            settings that nobody recorded or nobody can read.
        OSError: it cannot be written to.
    """
    path = output_root / COMPRESSED_NOTE
    if path.exists():
        found = {MAX_SECONDS: None} | read_note(path)  # notes older than the setting: of whole videos
        compared = [name for name in wanted if name in found and name != "pyav"]  # older notes lack some
        before, now = ({name: note[name] for name in compared} for note in (found, wanted))
        if before != now:
            raise ValueError(f"'{path}' says {json.dumps(before)}, not {json.dumps(now)}: take another --output_root")
    else:
        present = next((job.target for job in jobs if job.target.exists()), None)
        if present:
            raise ValueError(f"'{present}' is there, but no '{path}' says with which settings it was made")
        write_whole(path, lambda file: file.write(json.dumps(wanted).encode()))
    remove_partials(output_root)


def remove_partials(output_root: Path) -> None:
    """Remove what workers that were killed left; also while one of a run that was killed is about to end."""
    for partial in output_root.rglob(f".*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)


def failure_reason(job: Job, settings: CompressSettings) -> str | None:
    """Compress one video; None, or why it failed."""
    try:
        compress(job.source, job.target, settings)
    except Exception as error:  # one video's failure, of whatever kind, must not end the run for the others
        return describe(error)
    return None


def compress_all(jobs: list[Job], settings: CompressSettings, num_workers: int) -> Iterator[tuple[Job, str | None]]:
    """Yield (job, None or why it failed) as they finish, in `num_workers` processes (1: in this one)."""
    if num_workers == 1:
        yield from ((job, failure_reason(job, settings)) for job in jobs)
        return
    if not jobs:
        return
    broken: list[Job] = []
    with start_pool(min(num_workers, len(jobs))) as pool:
        with interrupts_ignored():  # the workers, started here, inherit it: Ctrl-C is for the parent alone
            futures = {pool.submit(failure_reason, job, settings): job for job in jobs}
        try:
            for future in as_completed(futures):
                job = futures[future]
                try:
                    yield job, future.result()
                except BrokenProcessPool:
                    broken.append(job)
        except BaseException:
            stop_workers(pool)
            raise
    yield from reasons_of_broken_pool(broken)  # here all workers have ended


def reasons_of_broken_pool(jobs: list[Job]) -> Iterator[tuple[Job, str]]:
    """Yield (job, why it failed): a worker that was killed leaves the temporary file of its video behind."""
    folders = {job.target.parent for job in jobs}
    under_way = {target_of(partial) for folder in folders for partial in folder.glob(f".*{PARTIAL_SUFFIX}")}
    yield from ((job, WORKER_DIED if job.target in under_way else NOT_REACHED) for job in jobs)


# --- Command line -----------------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--input_root", type=Path, required=True, help="folder of the raw videos")
    parser.add_argument("--output_root", type=Path, required=True, help="folder of the compressed videos")
    parser.add_argument("--fps", type=to_rate, default=Fraction(3), help="frames a second: 3, 0.5 or 30000/1001 (3)")
    parser.add_argument("--size", type=int, default=224, help="short side in pixels, even (224)")
    parser.add_argument("--crf", type=int, default=23, help="x264 quality: 0 best, 51 worst (23)")
    parser.add_argument("--max_seconds", type=to_rate, help="keep the beginning of each video alone (all of it)")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    return parser, parser.parse_args(argv)


def start(arguments: argparse.Namespace) -> tuple[CompressSettings, list[Job], dict[str, Any]]:
    """Check everything that can be checked before the output folder is touched; also the note that it is to have.

    Raises:
        ValueError, OSError: the run cannot start.
    """
    settings = CompressSettings(arguments.fps, arguments.size, arguments.crf, arguments.max_seconds)
    if arguments.num_workers < 1:
        raise ValueError(f"num_workers must be 1 or more, not {arguments.num_workers}")
    if not arguments.input_root.is_dir():
        raise ValueError(f"'{arguments.input_root}' is not a folder")
    if arguments.output_root.resolve().is_relative_to(arguments.input_root.resolve()):
        raise ValueError("--output_root lies in --input_root: its videos would be compressed again")
    if arguments.input_root.resolve().is_relative_to(arguments.output_root.resolve()):
        raise ValueError("--input_root lies in --output_root: its videos would be taken for compressed ones")
    jobs = plan(arguments.input_root, arguments.output_root)
    note = note_of(jobs, settings)
    arguments.output_root.mkdir(parents=True, exist_ok=True)
    return settings, jobs, note


def compress_missing(jobs: list[Job], settings: CompressSettings, output_root: Path, num_workers: int) -> int:
    """Compress what is not there yet, report, and return the exit code.

    Raises:
        UserError: the report cannot be written.
        OSError: what is left of videos that are not complete cannot be removed.
    """
    todo = [job for job in jobs if not job.target.exists()]
    counts = Counter({"compressed": 0, "already there": len(jobs) - len(todo), "failed": 0})
    failures: dict[str, str] = {}
    interrupted = False
    try:
        with Progress(len(todo), "compressing", "video", "videos") as progress:
            for job, reason in compress_all(todo, settings, num_workers):
                if reason is not None:
                    failures[job.name] = reason
                counts["compressed" if reason is None else "not reached" if reason == NOT_REACHED else "failed"] += 1
                progress.update()
    except KeyboardInterrupt:
        interrupted = True
        counts["not reached"] = len(todo) - counts["compressed"] - counts["failed"]
    report(failures, counts, output_root)
    remove_partials(output_root)  # of this run's workers, and of what those of a killed one began as this one did
    if interrupted:
        print("interrupted; the same command continues")
        return 130
    return 1 if failures else 0


def main(argv: list[str] | None = None) -> int:
    parser, arguments = parse_arguments(argv)
    path = arguments.output_root
    try:
        settings, jobs, note = start(arguments)
        with alone_in(path, "compressing"):
            claim_output(path, jobs, note)
            return compress_missing(jobs, settings, path, arguments.num_workers)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
