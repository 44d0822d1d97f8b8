"""Compress a folder of videos to the few small frames that training reads.

    python preprocess/compress_video.py --input_root data/MSRVTT/raw --output_root data/MSRVTT/videos_3fps
    python preprocess/compress_video.py --input_root RAW --output_root OUT --fps 3 --size 224 --num_workers 16

Every video under RAW, at any depth, becomes an H.264 MP4 without sound at the same relative path under OUT
(`RAW/class a/v1.avi` -> `OUT/class a/v1.mp4`). Hidden files are not videos. OUT also gets the settings
(`compress_video.json`) and the failures (`failed_videos.csv`: video, reason). The same command continues
where it stopped: a video lies under its final name only when it is complete. One run at a time for one OUT.
No ffmpeg program is needed; the PyAV wheel (17 or newer) carries the libraries.

What a compressed video holds:

- Frames: frame k is the one that the source shows k / fps seconds after its first frame. None is invented: a
  frame that stays on screen longer is written once, so a source slower than fps keeps its frames and times.
- Size: the short side is --size, the long side keeps the aspect and is even. A video that is smaller already
  keeps its size (made even): enlarging adds no information, and CLIP's preprocessing resizes every frame.
- Orientation: rotation tags are applied to the pixels, as Decord and OpenCV do. The sample aspect ratio is
  ignored, as they ignore it, so that original and compressed videos give the same picture.
- Colour: 8 bit 4:2:0 limited range, with the source's colour matrix.

A video that is damaged (cannot be opened or decoded, has corrupt frames, ends before its header says) is not
compressed but listed with the reason.

Exit code: 0 all videos are there, 1 some failed, 2 the command cannot start, 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import math
import multiprocessing
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.progress import Progress
from dataloaders.video_files import VIDEO_SUFFIXES

SETTINGS_FILE = "compress_video.json"
FAILURES_FILE = "failed_videos.csv"
PARTIAL_SUFFIX = ".mp4.partial"
NOT_REACHED = "not reached: a worker process died before this video's turn"

# Frames whose timestamps may be out of order among each other (AVI with packed B-frames swaps neighbours).
REORDER_FRAMES = 4
# A timestamp this far back (seconds) is a clock that starts again, not a reordered frame.
CLOCK_RESET = Fraction(1)
# How much earlier (seconds) than its header says a file may end: headers round, audio is padded.
MISSING_SECONDS = Fraction(1, 2)
# Timestamps of millisecond containers are rounded by up to this much (seconds).
TIMESTAMP_ROUNDING = Fraction(1, 2000)
# AVColorSpace values that name a matrix of YUV video: BT.709, FCC, BT.470BG, SMPTE 170M, SMPTE 240M, BT.2020.
YUV_MATRICES = frozenset({1, 4, 5, 6, 7, 9, 10})
UNSPECIFIED_MATRIX = 2


class DamagedVideo(ValueError):
    """The source cannot be read from its first to its last frame."""


@dataclass(frozen=True)
class CompressSettings:
    """What decides the content of a compressed video.

    Attributes:
        fps: frames per second at most.
        size: short side in pixels at most, even.
        crf: x264's constant rate factor, 0 (lossless) to 51.

    Raises:
        ValueError: a value is out of its range.
    """

    fps: Fraction = Fraction(3)
    size: int = 224
    crf: int = 23

    def __post_init__(self):
        if self.fps <= 0:
            raise ValueError(f"fps must be above 0, not {self.fps}")
        if self.size < 2 or self.size % 2:
            raise ValueError(f"size must be an even number of pixels, not {self.size} (4:2:0 video has even sides)")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf must be 0 to 51, not {self.crf}")

    def as_json(self) -> dict:
        return {"fps": str(self.fps), "size": self.size, "crf": self.crf}


@dataclass(frozen=True)
class Job:
    """One video to compress; `name` is its path relative to the input root."""

    name: str
    source: Path
    target: Path


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
    return target.with_name(f".{target.stem}{PARTIAL_SUFFIX}")


def write_compressed(container: av.container.InputContainer, path: Path, settings: CompressSettings) -> None:
    """Encode the chosen frames of an opened video to `path`."""
    stream = video_stream(container)
    interval = frame_interval(stream, settings.fps)
    chosen = choose_frames(container, stream, settings.fps)
    if interval >= 1 / settings.fps:  # the source is the slower one: its own clock
        rate, time_base = 1 / interval, stream.time_base
        stamped = ((round(time / time_base), round(interval / time_base), frame) for _, time, frame in chosen)
    else:
        rate, time_base = settings.fps, 1 / settings.fps
        stamped = ((slot, 1, frame) for slot, _, frame in chosen)
    encode(stamped, path, rate, time_base, settings)


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream to read: the best one that is not a cover picture."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise DamagedVideo("it has no video stream")
    return stream


# --- Which frames -----------------------------------------------------------------------------------------


def choose_frames(
    container: av.container.InputContainer, stream: av.VideoStream, fps: Fraction
) -> Iterator[tuple[int, Fraction, av.VideoFrame]]:
    """Decode a video and yield (slot, seconds, frame) as `one_per_slot` does.

    Raises:
        DamagedVideo: as `intact_frames`.
    """
    # One thread a process: the videos are what runs in parallel.
    stream.codec_context.thread_count = 1
    interval = frame_interval(stream, fps)
    rounding = min(stream.time_base / 2, TIMESTAMP_ROUNDING)
    timed_frames = presentation_times(intact_frames(container, stream), interval)
    return one_per_slot(timed_frames, fps, interval, rounding)


def frame_interval(stream: av.VideoStream, fps: Fraction) -> Fraction:
    """Seconds a frame by the header; of `fps` where it does not say."""
    return 1 / (stream.average_rate or stream.guessed_rate or fps)


def intact_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Yield the decoded frames in presentation order.

    Raises:
        DamagedVideo: a packet or frame is damaged, or the file ends before its header says.
    """
    end_of_file, end_of_video = Fraction(0), Fraction(0)  # seconds
    packets = frames = 0
    started = False
    for packet in container.demux():
        end = packet_end(packet)
        end_of_file = max(end_of_file, end)
        if packet.stream.index != stream.index:
            continue
        end_of_video = max(end_of_video, end)
        is_last = packet.size == 0 and packet.dts is None
        packets += not is_last
        if packet.size == 0 and not is_last:
            continue  # "show the last frame again", which a decoder would take for the end
        if packet.is_corrupt:
            raise DamagedVideo(f"damaged data after {frames} frames ({seconds(end)})")
        started = started or packet.is_keyframe
        for frame in decode(packet, started, frames):
            if frame.is_corrupt:
                raise DamagedVideo(f"frame {frames} is damaged ({seconds(end)})")
            started = True
            frames += 1
            yield frame
    if frames == 0:
        raise DamagedVideo("it has no frame that can be decoded")
    check_end(container, stream, packets, end_of_video, end_of_file)


def decode(packet: av.Packet, started: bool, frames: int) -> list[av.VideoFrame]:
    """A packet's frames; none for what fails before the first key frame (a stream cut from a longer one)."""
    try:
        return packet.decode()
    except av.error.FFmpegError as error:
        if started:
            raise DamagedVideo(f"decoding breaks off after {frames} frames: {error.strerror}") from error
        return []


def packet_end(packet: av.Packet) -> Fraction:
    """When (seconds on the file's clock) what a packet carries is over; 0 if it does not say."""
    start = packet.pts if packet.pts is not None else packet.dts
    if start is None or packet.time_base is None:
        return Fraction(0)
    return (start + (packet.duration or 0)) * packet.time_base


def seconds(time: Fraction) -> str:
    return f"{float(time):.2f} s"


def check_end(container, stream, packets: int, end_of_video: Fraction, end_of_file: Fraction) -> None:
    """Raise DamagedVideo if the file stops before its header says.

    A header's frame count may include frames that an edit list hides, and its duration may be the audio's, so
    the video stream must miss both frames and time, or all streams together must miss time. An AVI's header
    counts the dropped frames at its end, which it stores as nothing; a cut AVI shows by its last packet.
    """
    if container.format.name == "avi":
        return
    if stream.frames > packets and stream.duration:
        duration = ((stream.start_time or 0) + stream.duration) * stream.time_base
        if duration - end_of_video > 2 * stream.duration * stream.time_base / stream.frames:
            frames = f"{packets} of {stream.frames} frames"
            raise DamagedVideo(f"it ends after {frames} ({seconds(end_of_video)} of {seconds(duration)})")
    if container.duration:
        duration = Fraction(container.duration, av.time_base)
        if duration - end_of_file > MISSING_SECONDS:
            raise DamagedVideo(f"it ends after {seconds(end_of_file)} of {seconds(duration)}")


def presentation_times(frames: Iterable[av.VideoFrame], interval: Fraction) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Yield (time in seconds, frame) with times that never go back.

    A decoder gives its frames in presentation order, but their times are swapped among neighbours where the
    container has no presentation timestamps (AVI with packed B-frames); so the n-th frame gets the n-th time.
    A clock that starts again (joined recordings) goes on from where it was.

    Args:
        frames: decoded frames in presentation order.
        interval: seconds a frame, for frames without a time.
    """
    waiting: deque[av.VideoFrame] = deque()
    times: list[Fraction] = []  # a heap
    latest, shift = -interval, Fraction(0)
    for index, frame in enumerate(frames):
        time = latest + interval if frame.pts is None else frame.pts * frame.time_base + shift
        if index and time < latest - CLOCK_RESET:
            shift += latest + interval - time
            time = latest + interval
        latest = max(latest, time) if index else time
        heapq.heappush(times, time)
        waiting.append(frame)
        if len(waiting) > REORDER_FRAMES:
            yield heapq.heappop(times), waiting.popleft()
    while waiting:
        yield heapq.heappop(times), waiting.popleft()


def one_per_slot(
    timed_frames: Iterable[tuple[Fraction, object]], fps: Fraction, interval: Fraction, rounding: Fraction
) -> Iterator[tuple[int, Fraction, object]]:
    """Choose the frame that is on screen k / fps seconds after the first one, for k = 0, 1, ...; each once.

    Args:
        timed_frames: (seconds, frame) in order.
        fps: slots a second.
        interval: seconds that the last frame is on screen.
        rounding: a frame counts as shown this many seconds before its timestamp.

    Yields:
        (first slot k of the frame, its own time in seconds from the first frame, frame).
    """
    slot, origin, shown = 0, None, None
    for time, frame in timed_frames:
        origin = time if origin is None else origin
        next_slot = max(0, math.ceil((time - origin - rounding) * fps))  # the first slot that shows this frame
        if next_slot > slot:
            yield slot, *shown
            slot = next_slot
        shown = (time - origin, frame)
    if shown is not None and slot / fps < shown[0] + interval - rounding:
        yield slot, *shown


# --- Pixels -----------------------------------------------------------------------------------------------


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
    stream = output.add_stream("libx264", rate=rate, options={"crf": str(crf)})
    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, picture.format.name
    context = stream.codec_context
    context.thread_count = 1
    context.time_base = time_base
    context.colorspace, context.color_range = picture.colorspace, picture.color_range
    context.color_primaries, context.color_trc = picture.color_primaries, picture.color_trc
    return stream


class Shrinker:
    """Makes every frame of a video a yuv420p picture of one size, upright."""

    def __init__(self, first: av.VideoFrame, size: int):
        self.turns = quarter_turns(first)
        sides = (first.height, first.width) if self.turns % 2 else (first.width, first.height)
        self.size = target_size(*sides, size)
        self.reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        turns = quarter_turns(frame)
        width, height = self.size[::-1] if turns % 2 else self.size
        if frame.colorspace not in YUV_MATRICES:  # RGB, or a value that libswscale refuses
            frame.colorspace = 0 if frame.format.is_rgb else UNSPECIFIED_MATRIX
        picture = self.reformatter.reformat(
            frame,
            width,
            height,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU601 if frame.format.is_rgb else None,
            interpolation=Interpolation.BICUBIC,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        return turn(picture, turns)


def quarter_turns(frame: av.VideoFrame) -> int:
    """The counter-clockwise quarter turns, 0 to 3, that the rotation tag asks for; 0 for any other angle."""
    turns, rest = divmod(frame.rotation, 90)
    return 0 if rest else turns % 4


def target_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height, both even, with a short side of at most `size` and the nearest aspect."""
    short = min(width, height)
    if short <= size:
        return max(2, width // 2 * 2), max(2, height // 2 * 2)
    return nearest_even(Fraction(width * size, short)), nearest_even(Fraction(height * size, short))


def nearest_even(length: Fraction) -> int:
    return 2 * math.floor(length / 2 + Fraction(1, 2))


def turn(picture: av.VideoFrame, turns: int) -> av.VideoFrame:
    """A yuv420p picture with even sides, turned counter-clockwise by quarter turns."""
    if turns == 0:
        return picture
    height, width = picture.height, picture.width
    samples = picture.to_ndarray().reshape(-1)  # (H*3/2, W) -> (H*W*3/2,): all of Y, then U, then V
    luma, blue, red = np.split(samples, [height * width, height * width * 5 // 4])
    planes = [
        luma.reshape(height, width),  # (H*W,) -> (H, W)
        blue.reshape(height // 2, width // 2),  # (H*W/4,) -> (H/2, W/2)
        red.reshape(height // 2, width // 2),
    ]
    turned = np.concatenate([np.rot90(plane, turns).reshape(-1) for plane in planes])
    width = height if turns % 2 else width
    upright = av.VideoFrame.from_ndarray(turned.reshape(-1, width), format="yuv420p")  # (H'*3/2, W')
    for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
        setattr(upright, name, getattr(picture, name))
    return upright


# --- A folder of videos -----------------------------------------------------------------------------------


def plan(input_root: Path, output_root: Path, suffix: str = ".mp4") -> list[Job]:
    """All videos under `input_root` with where they go, sorted by name.

    Args:
        suffix: what the target has in place of the source's own.

    Raises:
        ValueError: two videos have the same target, or there is none.
    """
    jobs: dict[Path, Job] = {}
    for source in find_videos(input_root):
        name = source.relative_to(input_root)
        job = Job(name.as_posix(), source, output_root / name.with_suffix(suffix))
        other = jobs.setdefault(job.target, job)
        if other is not job:
            raise ValueError(f"'{other.name}' and '{job.name}' would both become '{name.with_suffix(suffix)}'")
    if not jobs:
        raise ValueError(f"no videos under '{input_root}' ({' '.join(sorted(VIDEO_SUFFIXES))})")
    return sorted(jobs.values(), key=lambda job: job.name)


def find_videos(root: Path) -> Iterator[Path]:
    """Everything named like a video, also in linked folders; a folder named like one is reported later."""
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder).resolve()
        folders[:] = [name for name in folders if not here.is_relative_to((here / name).resolve())]  # no link loops
        for name in sorted(folders + files):
            if Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
                yield Path(folder, name)


def claim_output(output_root: Path, jobs: list[Job], settings: CompressSettings) -> None:
    """Record the settings in the output folder and remove what a killed run left.

    Raises:
        ValueError: the folder holds videos with other settings, or with settings that nobody recorded.
    """
    path = output_root / SETTINGS_FILE
    if path.exists():
        found = path.read_text(encoding="utf-8")
        if found != json.dumps(settings.as_json()):
            raise ValueError(f"'{path}' says {found}, not {json.dumps(settings.as_json())}: take another --output_root")
    else:
        present = next((job.target for job in jobs if job.target.exists()), None)
        if present:
            raise ValueError(f"'{present}' is there, but no '{path}' says with which settings it was made")
        output_root.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings.as_json()), encoding="utf-8")
    for stale in output_root.rglob(f".*{PARTIAL_SUFFIX}"):
        stale.unlink()


def failure_reason(job: Job, settings: CompressSettings) -> str | None:
    """Compress one video; None, or why it failed."""
    try:
        compress(job.source, job.target, settings)
    except Exception as error:  # one video's failure, of whatever kind, must not end the run for the others
        return describe(error)
    return None


def describe(error: Exception) -> str:
    """Why a video failed, in one line."""
    if isinstance(error, DamagedVideo):
        return str(error)
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"


def compress_all(jobs: list[Job], settings: CompressSettings, num_workers: int) -> Iterator[tuple[Job, str | None]]:
    """Yield (job, None or why it failed) as they finish, in `num_workers` processes (1: in this one)."""
    if num_workers == 1:
        yield from ((job, failure_reason(job, settings)) for job in jobs)
        return
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(jobs)), context) as pool:
        with interrupts_ignored():  # the workers, started here, inherit it: Ctrl-C is for the parent alone
            futures = {pool.submit(failure_reason, job, settings): job for job in jobs}
        try:
            for future in as_completed(futures):
                job = futures[future]
                try:
                    yield job, future.result()
                except BrokenProcessPool:
                    yield job, reason_of_broken_pool(job)
        except BaseException:
            stop_workers(pool)
            raise


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def reason_of_broken_pool(job: Job) -> str:
    """A worker that was killed leaves the temporary file of its video behind."""
    partial = partial_path(job.target)
    if not partial.exists():
        return NOT_REACHED
    partial.unlink(missing_ok=True)
    return "a worker process died while this video was under way (out of memory?)"


def stop_workers(pool: ProcessPoolExecutor) -> None:
    """End the workers at once: what they have not finished has a temporary name."""
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in multiprocessing.active_children():
        worker.terminate()
        worker.join()


# --- Command line -----------------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--input_root", type=Path, required=True, help="folder of the raw videos")
    parser.add_argument("--output_root", type=Path, required=True, help="folder of the compressed videos")
    parser.add_argument("--fps", type=Fraction, default=Fraction(3), help="frames a second: 3, 0.5 or 30000/1001 (3)")
    parser.add_argument("--size", type=int, default=224, help="short side in pixels, even (224)")
    parser.add_argument("--crf", type=int, default=23, help="x264 quality: 0 best, 51 worst (23)")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    return parser, parser.parse_args(argv)


def start(arguments: argparse.Namespace) -> tuple[CompressSettings, list[Job]]:
    """Check everything that can be checked before the first video is compressed.

    Raises:
        ValueError: the run cannot start.
    """
    settings = CompressSettings(arguments.fps, arguments.size, arguments.crf)
    if arguments.num_workers < 1:
        raise ValueError(f"num_workers must be 1 or more, not {arguments.num_workers}")
    if not arguments.input_root.is_dir():
        raise ValueError(f"'{arguments.input_root}' is not a folder")
    if arguments.output_root.resolve().is_relative_to(arguments.input_root.resolve()):
        raise ValueError("--output_root lies in --input_root: its videos would be compressed again")
    jobs = plan(arguments.input_root, arguments.output_root)
    claim_output(arguments.output_root, jobs, settings)
    return settings, jobs


def report(failures: dict[str, str], counts: Counter, output_root: Path) -> None:
    """Write the failures to the output folder and print them after the counts."""
    # A name may hold bytes that are not UTF-8.
    rows = [
        [text.encode("utf-8", "backslashreplace").decode() for text in row]
        for row in sorted(failures.items())
        if row[1] != NOT_REACHED
    ]
    with open(output_root / FAILURES_FILE, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["video", "reason"], *rows])
    print(", ".join(f"{number} {what}" for what, number in counts.items()))
    for name, reason in rows:
        print(f"failed: {name}: {reason}")


def main(argv: list[str] | None = None) -> int:
    parser, arguments = parse_arguments(argv)
    try:
        settings, jobs = start(arguments)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    todo = [job for job in jobs if not job.target.exists()]
    counts = Counter({"compressed": 0, "already there": len(jobs) - len(todo), "failed": 0})
    failures: dict[str, str] = {}
    interrupted = False
    try:
        with Progress(len(todo), "compressing", "video", "videos") as progress:
            for job, reason in compress_all(todo, settings, arguments.num_workers):
                if reason is not None:
                    failures[job.name] = reason
                counts["compressed" if reason is None else "not reached" if reason == NOT_REACHED else "failed"] += 1
                progress.update()
    except KeyboardInterrupt:
        interrupted = True
        counts["not reached"] = len(todo) - counts["compressed"] - counts["failed"]
    report(failures, counts, arguments.output_root)
    if interrupted:
        print("interrupted; the same command continues")
        return 130
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
