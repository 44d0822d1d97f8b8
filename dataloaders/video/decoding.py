"""How videos are decoded.

decord decodes; OpenCV takes over where decord cannot be imported or fails on a file. Both read a clip from
its first frame to its last: what they return is then the same, and a clip that is damaged anywhere is damaged
whichever frames are asked for. Seeking is faster on long clips only, and decord's seek returns other frames
than the ones asked for wherever key frames and presentation order differ (open groups of pictures, MPEG-4
with B-frames, trimmed MP4 files), without an error.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# Read when OpenCV opens its first video: BadVideoError reports a damaged clip, libav need not do so as well.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np

from dataloaders.video.sampling import Sampler, sample_frame_indices

try:
    import decord
except (ImportError, OSError):  # no wheel for this platform, or one that it cannot load
    decord = None
else:
    decord.logging.set_level(decord.logging.QUIET)

# Every worker of a data loader is a process of its own; threads inside them would only compete.
cv2.setNumThreads(0)

Complaints = Callable[[], str]
DECORD, OPENCV = "decord", "OpenCV"

# Containers whose header counts frames. The others know a duration, of their longest track, and a frame rate.
COUNTING_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".3gp", ".avi"})
DURATION_TOLERANCE = 0.05

# What libav calls its levels, in its header log.h
LIBAV_ERROR, LIBAV_INFORMATION, LIBAV_PRINT_LEVEL = 16, 32, 2
HARMLESS_NAMES = frozenset({"warning", "info"})
# "[OPENCV:FFMPEG:16] message" of OpenCV; "[h264 @ 0x55d0] [error] message" of decord, whose addresses differ in every
# run, and which leaves the level out where `listen_to_libraries` could not ask for it
REPORT_LABELS = re.compile(
    r"(?:\[OPENCV:FFMPEG:(?P<number>\d+)\] )?"
    r"(?:\[(?P<source>[^\]]+) @ (?:0x)?[0-9a-f]+\] )*"
    r"(?:\[(?P<name>panic|fatal|error|warning|info)\] )?"
)


def listen_to_libraries() -> None:
    """Let libav report on the standard output and error; to be called before the first video is read.

    It reports all that it takes for information and worse: that it made up part of a picture is no error to it.
    `find_damage` picks out what counts.
    """
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = str(LIBAV_INFORMATION)
    cv2.utils.logging.setLogLevel(0)  # OpenCV's own words tell nothing about a file that its failure does not
    if decord is not None:
        decord.logging.set_level(LIBAV_INFORMATION if _label_reports_of_decord() else LIBAV_ERROR)


def _label_reports_of_decord() -> bool:
    """Let the libav inside decord write "[error]" or "[info]" before what it reports; whether that is possible."""
    libraries = list(Path(decord.__file__).parents[1].glob("decord.libs/libavutil*"))  # of the wheel for Linux
    if len(libraries) != 1:
        return False
    ctypes.CDLL(str(libraries[0])).av_log_set_flags(LIBAV_PRINT_LEVEL)
    return True


def find_damage(lines: Iterable[str]) -> str:
    """The first line, of what `listen_to_libraries` lets out, that tells of damage, without its labels; "" for none.

    These are errors, concealed ones, and what has no level. A line without labels belongs to the one before.
    """
    harmless = False
    for line in filter(None, map(str.strip, lines)):
        labels = REPORT_LABELS.match(line)
        message = line[labels.end() :]
        if labels.end():
            harmless = labels["name"] in HARMLESS_NAMES or int(labels["number"] or 0) > LIBAV_ERROR
        if not harmless or message.startswith("concealing"):
            return f"[{labels['source']}] {message}" if labels["source"] else message
    return ""


class BadVideoError(RuntimeError):
    """A video that cannot be decoded from beginning to end. `path` and `reason` say which and why.

    `remedy` is a sentence of what to do, where that is known.
    """

    # `reason` is optional because a DataLoader raises a worker's error anew with its message alone.
    def __init__(self, path: str | Path, reason: str = "", remedy: str = ""):
        super().__init__(path, reason, remedy)
        self.path = path
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        message = f"{self.path}: {self.reason}" if self.reason else str(self.path)
        return f"{message}\n{self.remedy}" if self.remedy else message


class DecodingError(RuntimeError):
    """One library cannot read a file; another may."""


class Header(NamedTuple):
    """What a file's header announces, by OpenCV's reading; `frames` is not positive where nothing is."""

    frames: int
    fps: float


def read_video(
    path: str | Path, num_frames: int, sample: Sampler = sample_frame_indices, complaints: Complaints | None = None
) -> tuple[np.ndarray, int]:
    """Decodes the sampled frames of a video, turned upright as its rotation tag says.

    sample: (total, num_frames) -> increasing frame indices, at most `num_frames`. It is asked a second time
    where the header proves to have miscounted, or where OpenCV takes over from decord; a sampler that draws
    from a generator should make it anew in each call if its frames are not to depend on that.
    complaints: what the libraries have reported since it was last called, "" for nothing. Frames that a library
    returned with complaints are taken for damaged. Without it they pass: libav patches up a damaged picture from its
    neighbours and only reports that it did.

    Returns frames (num_frames, H, W, 3) uint8 RGB, and how many of them are real; the others are zeros. Only
    sampled frames are kept, so memory does not grow with the clip.

    Raises BadVideoError where the file is missing or neither library decodes it to its end. One frame fewer
    than the header counts is its end too. OpenCV alone cannot tell a losslessly trimmed MP4, whose header
    also counts the hidden frames, from a broken one, and rejects it.
    """
    check_file(Path(path))
    failures = []
    for library, read in _libraries().items():
        try:
            # an absolute path cannot be taken for a protocol ("a:b.mp4")
            clip = _pad(read(os.path.abspath(path), num_frames, sample), num_frames)
            check_heard(path, library, complaints)
            return clip
        except (DecodingError, MemoryError, cv2.error) as error:  # the latter two of frames without room for them
            failures.append(f"{library}: {first_line(error)}")
            if complaints is not None:
                complaints()  # those of this library are not the next one's
    raise BadVideoError(path, "; ".join(failures))


def check_heard(path: str | Path, library: str, complaints: Complaints | None) -> None:
    """Raises DecodingError where a library has reported damage while it read a file to its end."""
    if complaints is not None:
        if library == DECORD and _is_matroska(path):
            _walk_packets(path)
        if complaint := complaints():
            raise DecodingError(complaint)


def check_file(path: Path) -> None:
    """Raises BadVideoError where there is no file to read, or none that the libraries can be told to read."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # OpenCV would crash
        raise BadVideoError(path, "its name is not UTF-8; rename it") from None
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise BadVideoError(path, reason) from error
    if not stat.S_ISREG(mode):
        raise BadVideoError(path, "is a directory" if stat.S_ISDIR(mode) else "is not a regular file")
    if not os.access(path, os.R_OK):
        raise BadVideoError(path, "no permission to read it")
    if path.stat().st_size == 0:
        raise BadVideoError(path, "the file is empty")


def _is_matroska(path: str | Path) -> bool:
    """Matroska and WebM begin with the same four bytes."""
    with open(path, "rb") as file:
        return file.read(4) == b"\x1a\x45\xdf\xa3"


def _walk_packets(path: str | Path) -> None:
    """Reads a file by OpenCV without decoding it: the libav in it is newer, and reports on the container.

    The one in decord skips what it cannot read of a Matroska file, be it half of the frames, and says nothing.
    """
    capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    while capture.grab():
        pass


def _libraries() -> dict[str, Callable[[str | Path, int, Sampler], list[np.ndarray]]]:
    """What reads a file, by name, in the order in which they are tried."""
    with_decord = {} if decord is None else {DECORD: _read_with_decord}
    return with_decord | {OPENCV: _read_with_opencv}


def _read_with_decord(path: str | Path, num_frames: int, sample: Sampler) -> list[np.ndarray]:
    """The sampled frames, each (H, W, 3) uint8 RGB. Raises DecodingError."""
    reader, times = open_with_decord(path)
    return list(frames_with_decord(reader, len(times), set(sample(len(times), num_frames).tolist())))


def open_with_decord(path: str | Path) -> tuple[decord.VideoReader, np.ndarray]:
    """A reader before the first frame, and when each frame is shown: (n,) seconds, increasing. Raises DecodingError."""
    if _is_transport_stream(path):
        raise DecodingError("starts MPEG transport streams at a later frame than the first")
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        times = reader.get_frame_timestamp(range(len(reader)))  # (packets, 2) seconds, in order of presentation
    except Exception as error:  # decord also raises RuntimeError, AssertionError and its own DECORDError
        raise DecodingError(first_line(error)) from error
    starts = times[:, 0]
    # decord finds frames by their times; some files have none (B-frames in AVI).
    if not (np.diff(starts) > 0).all():
        raise DecodingError("has no increasing timestamps for this file")
    check_complete(path, read_header(path), len(starts), starts[-1])
    if Path(path).suffix.lower() in COUNTING_SUFFIXES:
        # A trimmed MP4 begins with packets that are decoded but not shown; their times are negative.
        starts = starts[starts >= 0]
    if len(starts) == 0:
        raise DecodingError("no frame is shown")
    return reader, starts


def frames_with_decord(reader: decord.VideoReader, total: int, wanted: set[int]) -> Iterator[np.ndarray]:
    """The wanted ones of `total` frames, in their order, each (H, W, 3) uint8 RGB. Raises DecodingError."""
    try:
        key_frames = set(reader.get_key_indices())
        for index in range(total):
            if index in wanted:
                yield reader.next().asnumpy()
            elif index + 1 in key_frames:
                reader.next()  # skip_frames would seek to the key frame
            else:
                reader.skip_frames(1)  # decodes without converting
    except Exception as error:  # as above, and ValueError for a frame that did not come
        raise DecodingError(first_line(error)) from error


def _read_with_opencv(path: str | Path, num_frames: int, sample: Sampler) -> list[np.ndarray]:
    """The sampled frames, each (H, W, 3) uint8 RGB. Raises DecodingError."""
    header = read_header(path)
    wanted = sample(header.frames, num_frames).tolist() if header.frames > 0 else []
    times: list[float] = []
    frames = list(frames_with_opencv(path, set(wanted), times))
    if not times:
        raise DecodingError("no frame can be decoded")
    check_complete(path, header, len(times), times[-1])
    if len(times) != header.frames:
        frames = list(frames_with_opencv(path, set(sample(len(times), num_frames).tolist()), []))
    return frames


def frames_with_opencv(path: str | Path, wanted: set[int], times: list[float]) -> Iterator[np.ndarray]:
    """Decodes a whole file: its wanted frames, each (H, W, 3) uint8 RGB. Raises DecodingError.

    times: gets when each frame is shown, in seconds.
    """
    capture = _open_capture(path)
    while capture.grab():
        if len(times) in wanted:
            read, frame = capture.retrieve()
            if not read:
                raise DecodingError(f"frame {len(times)} cannot be converted")
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)


def check_complete(path: str | Path, header: Header, total: int, last: float) -> None:
    """Raises DecodingError where `total` frames, the last at `last` seconds, are fewer than announced.

    Both libraries take the end of a truncated AVI, MKV or WebM for the end of the clip, and OpenCV any
    failure. A count that falls short while the times reach the end is a variable frame rate, or an AVI that
    repeats frames by leaving them out.
    """
    reached = max(total, round(last * header.fps) + 1)
    tolerance = 1
    if Path(path).suffix.lower() not in COUNTING_SUFFIXES:
        tolerance = max(1, round(DURATION_TOLERANCE * header.frames))
    if reached < header.frames - tolerance:
        raise DecodingError(f"breaks off after {total} of {header.frames} frames")


def read_header(path: str | Path) -> Header:
    """What a file announces, by OpenCV's reading."""
    capture = _open_capture(path)
    return Header(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS))


def _open_capture(path: str | Path) -> cv2.VideoCapture:
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


def _is_transport_stream(path: str | Path) -> bool:
    """MPEG-TS is a row of 188-byte packets that each begin with the letter G."""
    with open(path, "rb") as file:
        head = file.read(189)
    return head[:1] == b"G" == head[188:]


def _pad(frames: list[np.ndarray], num_frames: int) -> tuple[np.ndarray, int]:
    """(num_frames, H, W, 3) uint8 with zeros behind the given frames, and their number."""
    shapes = {frame.shape for frame in frames}
    if len(shapes) != 1 or any(frame.dtype != np.uint8 or frame.shape[2:] != (3,) for frame in frames):
        raise DecodingError(f"frames of the shapes {sorted(shapes)}")
    clip = np.zeros((num_frames, *frames[0].shape), dtype=np.uint8)
    clip[: len(frames)] = frames
    return clip, len(frames)


def first_line(error: Exception) -> str:
    """A decoder's message without the source positions before it and the C++ stack trace behind it."""
    lines = re.sub(r"\[\d\d:\d\d:\d\d\] \S+: |OpenCV\(\S+\) \S+ error: ", "", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
