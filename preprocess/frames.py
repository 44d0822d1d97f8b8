"""The frames that are kept of a video, and the pictures that are made of them.

What compress_video.py encodes and pack_frames.py packs is one choice of frames, which the docstring of the first says.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

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


# --- Which frames -----------------------------------------------------------------------------------------


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream to read: the best one that is not a cover picture."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise DamagedVideo("it has no video stream")
    return stream


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
