"""A long video as overlapping windows: where they lie, which frames each has, and the frames in one pass over the file.

A video is decoded once, from its first frame to its last, whatever the number of windows: that finds damage anywhere in
it, as `decoding.py` has it, and no library has to be trusted to seek.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dataloaders.video.decoding import (
    DECORD,
    OPENCV,
    BadVideoError,
    Complaints,
    DecodingError,
    check_complete,
    check_file,
    check_heard,
    decord,
    first_line,
    frames_with_decord,
    frames_with_opencv,
    open_with_decord,
    read_header,
)
from dataloaders.video.sampling import sample_frame_indices

TIME_ROUNDING = 1e-3  # seconds; containers round the times of frames


@dataclass(frozen=True)
class Cutting:
    """How videos are cut into windows.

    Attributes:
        window: seconds of a window. stride: seconds from one's start to the next one's.
        num_frames: T, of a window.
    """

    window: float
    stride: float
    num_frames: int


class Span(NamedTuple):
    """A window: from and to in seconds from the video's first frame, and its frames, increasing."""

    start: float
    end: float
    frames: tuple[int, ...]


class Plan(NamedTuple):
    """What comes next of a video: its windows in order, and their frames, each once and in order.

    Attributes:
        seconds: of the video.
        spans: at least one.
    """

    seconds: float
    spans: tuple[Span, ...]

    @property
    def wanted(self) -> list[int]:
        """The frames of all windows, each once, increasing."""
        return sorted({frame for span in self.spans for frame in span.frames})


def plan_windows(times: np.ndarray, interval: float, cutting: Cutting) -> Plan:
    """Cut a video.

    A video that is no longer than a window is one, of all its frames. Of a longer one the last window ends where the
    video does, wherever the stride has led. A window's frames are sampled as those of a clip are; one within which no
    frame begins has the one that it finds on screen.

    Args:
        times: (n,) seconds at which each frame is shown, increasing.
        interval: seconds that the last frame is on screen.
    """
    times = times - times[0]
    seconds = float(times[-1] + interval)
    if seconds <= cutting.window + TIME_ROUNDING:
        bounds = [(0.0, seconds)]
    else:
        count = int((seconds - cutting.window + TIME_ROUNDING) // cutting.stride) + 1
        bounds = [(k * cutting.stride, k * cutting.stride + cutting.window) for k in range(count)]
        if seconds - bounds[-1][1] > TIME_ROUNDING:
            bounds.append((seconds - cutting.window, seconds))
    spans = []
    for start, end in bounds:
        # a frame that is shown at a bound belongs to the window that begins there
        first, after = np.searchsorted(times, (start - TIME_ROUNDING, end - TIME_ROUNDING))
        if len(bounds) == 1:
            after = len(times)
        first = min(first, after - 1)
        frames = first + sample_frame_indices(int(after - first), cutting.num_frames)
        spans.append(Span(round(start, 3), round(end, 3), tuple(frames.tolist())))
    return Plan(round(seconds, 3), tuple(spans))


def read_windows(
    path: str | Path, cutting: Cutting, complaints: Complaints | None = None
) -> Iterator[Plan | np.ndarray]:
    """Yield a plan, then its wanted frames one by one, each (H, W, 3) uint8 RGB, upright.

    Where a library gives up midway, the other one begins anew with a plan of its own, and what came before is void; as
    it is where this ends with an error.

    Args:
        path: of the video.
        cutting: the windows.
        complaints: as for `decoding.read_video`.

    Raises:
        BadVideoError: as `decoding.read_video`, which may be after all frames.
    """
    check_file(Path(path))
    failures = []
    for library, read in {DECORD: _with_decord, OPENCV: _with_opencv}.items():
        if library == DECORD and decord is None:
            continue
        try:
            yield from read(os.path.abspath(path), cutting)  # an absolute path cannot be taken for a protocol
            check_heard(path, library, complaints)
            return
        except (DecodingError, MemoryError, cv2.error) as error:
            failures.append(f"{library}: {first_line(error)}")
            if complaints is not None:
                complaints()  # those of this library are not the next one's
    raise BadVideoError(path, "; ".join(failures))


def _with_decord(path: str, cutting: Cutting) -> Iterator[Plan | np.ndarray]:
    reader, times = open_with_decord(path)
    plan = plan_windows(times, _interval(path, times), cutting)
    yield plan
    yield from frames_with_decord(reader, len(times), set(plan.wanted))


def _with_opencv(path: str, cutting: Cutting) -> Iterator[Plan | np.ndarray]:
    """In two passes, since no header can be trusted to tell how many frames there are, and when."""
    header, listed = read_header(path), []
    for _ in frames_with_opencv(path, set(), listed):
        pass
    if not listed:
        raise DecodingError("no frame can be decoded")
    check_complete(path, header, len(listed), listed[-1])
    times = np.array(listed)
    if not (np.diff(times) > 0).all():  # B-frames in AVI have none
        times = np.arange(len(times)) / (header.fps if header.fps > 0 else 25)
    plan = plan_windows(times, _interval(path, times), cutting)
    yield plan
    yield from frames_with_opencv(path, set(plan.wanted), [])


def _interval(path: str, times: np.ndarray) -> float:
    """Seconds that the last frame is taken to be on screen."""
    if len(times) > 1:
        return float(np.median(np.diff(times)))
    fps = read_header(path).fps
    return 1 / fps if fps > 0 else 1 / 25
