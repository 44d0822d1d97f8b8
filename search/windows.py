"""A video's windows as the model takes them, and what embedding them gives."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dataloaders.video.decoding import BadVideoError
from dataloaders.video.preprocessing import resize_and_crop
from dataloaders.video.reader import DecodingSettings, VideoReader
from dataloaders.video.windows import Cutting, Plan
from modules.program.loading import Run
from search.store import Part

PICTURE_QUALITY = 80  # of JPEG
AHEAD = 64  # windows decoded ahead of the model
LEAVE = 5.0  # seconds that the thread that decodes is waited for


@dataclass(frozen=True)
class VideoWindow:
    """A window with its frames.

    Attributes:
        number: in the video, from 0. start, end: seconds from its first frame. seconds: of the video.
        frames: (T, 3, S, S) uint8, real frames first, zeros behind. num_frames: how many are real.
    """

    number: int
    start: float
    end: float
    seconds: float
    frames: Tensor
    num_frames: int


def windows_of(reader: VideoReader, path: Path, cutting: Cutting, image_size: int) -> Iterator[VideoWindow]:
    """Yield a video's windows in order, its frames prepared as an evaluation's are and held while windows need them.

    Where number 0 comes again the decoder has begun anew, and what came before is void.

    Raises:
        BadVideoError: if the video cannot be read to its end, which may be after its last window.
    """
    plan, wanted, held, number = None, iter(()), {}, 0
    for part in reader.read_windows(path, cutting):
        if isinstance(part, Plan):
            plan, wanted, held, number = part, iter(part.wanted), {}, 0
            continue
        index = next(wanted)
        held[index] = resize_and_crop(part[None], image_size)[0]  # (3, S, S)
        while number < len(plan.spans) and plan.spans[number].frames[-1] <= index:
            span = plan.spans[number]
            frames = torch.zeros(cutting.num_frames, 3, image_size, image_size, dtype=torch.uint8)
            frames[: len(span.frames)] = torch.stack([held[frame] for frame in span.frames])
            yield VideoWindow(number, span.start, span.end, plan.seconds, frames, len(span.frames))
            number += 1
            needed = plan.spans[number].frames[0] if number < len(plan.spans) else index + 1
            held = {frame: pixels for frame, pixels in held.items() if frame >= needed}


@torch.no_grad()
def embed(run: Run, windows: list[VideoWindow]) -> np.ndarray:
    """Embed windows: (n, E) float32, unit length."""
    frames = torch.stack([window.frames for window in windows]).to(run.compute.processes.device)
    with run.compute.precision.autocast():
        output = run.model.encode_video(frames, torch.tensor([window.num_frames for window in windows]))
    return output["embedding"].float().cpu().numpy()


def picture_of(window: VideoWindow) -> bytes:
    """A window's middle frame as JPEG, as the model sees it."""
    return encode_picture(window.frames[window.num_frames // 2].permute(1, 2, 0).numpy())


def encode_picture(pixels: np.ndarray) -> bytes:
    """(S, S, 3) uint8 RGB as JPEG."""
    done, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, PICTURE_QUALITY])
    if not done:
        raise RuntimeError("OpenCV cannot write JPEG")
    return data.tobytes()


class PartMaker:
    """Embeds the windows of one video as they come, a batch at a time.

    Batches hold windows of one video only, so that an embedding does not depend on which videos stand beside it, to
    the bit.
    """

    def __init__(self, run: Run, batch_size: int):
        self._run, self._batch_size = run, batch_size
        self._begin()

    def _begin(self) -> None:
        self._waiting: list[VideoWindow] = []
        self._embeddings: list[np.ndarray] = []
        self._bounds: list[tuple[float, float]] = []
        self._pictures: list[bytes] = []

    def add(self, window: VideoWindow) -> None:
        """Take a window; number 0 begins anew."""
        if window.number == 0:
            self._begin()
        self._waiting.append(window)
        self._bounds.append((window.start, window.end))
        self._pictures.append(picture_of(window))
        self._seconds = window.seconds
        if len(self._waiting) == self._batch_size:
            self._embed()

    def part(self) -> Part:
        """What the windows gave."""
        self._embed()
        return Part(self._seconds, self._bounds, np.concatenate(self._embeddings), self._pictures)

    def _embed(self) -> None:
        if self._waiting:
            self._embeddings.append(embed(self._run, self._waiting))
            self._waiting = []


def embed_video(run: Run, reader: VideoReader, path: Path, cutting: Cutting, batch_size: int) -> Part:
    """Cut a video into windows and embed them: a function of the run, the file and these settings alone.

    Raises:
        BadVideoError: if it cannot be read to its end.
    """
    maker = PartMaker(run, batch_size)
    for window in windows_of(reader, path, cutting, run.clip.image_size):
        maker.add(window)
    return maker.part()


def embed_videos(
    run: Run,
    paths: Sequence[Path],
    cutting: Cutting,
    decoding: DecodingSettings,
    batch_size: int,
    seen: Callable[[int, float], None] = lambda place, share: None,
) -> Iterator[Part | str]:
    """Embed videos one after the other, the next one being decoded meanwhile; one machine and a cluster both do this.

    Args:
        run, cutting, decoding, batch_size: as for `embed_video`.
        paths: of the videos.
        seen: is told, of each window that was taken, the video's place and the share of it that lies before its end.

    Yields:
        What came of each video, in order: what `embed_video` gives, or why it is a bad one.
    """
    maker = PartMaker(run, batch_size)
    with _Reading(decoding, paths, cutting, run.clip.image_size) as reading:
        for place, window in reading:
            if isinstance(window, VideoWindow):
                maker.add(window)
                seen(place, window.end / window.seconds)
            else:
                yield maker.part() if window is None else window


class _Reading:
    """Decodes videos in a thread, some windows ahead of who takes them; to be entered.

    Iterating yields (place of the video, window), and after a video's last window (place, None), or (place, reason) as
    soon as it proves to be bad.
    """

    def __init__(self, decoding: DecodingSettings, paths: Sequence[Path], cutting: Cutting, image_size: int):
        self._reader = VideoReader(decoding)
        self._paths, self._cutting, self._image_size = paths, cutting, image_size
        self._queue: queue.Queue = queue.Queue(AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "_Reading":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=LEAVE)  # a daemon, which holds up nobody for longer
        if not self._thread.is_alive():
            self._reader.close()

    def __iter__(self) -> Iterator[tuple[int, VideoWindow | str | None]]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def _work(self) -> None:
        try:
            for place, path in enumerate(self._paths):
                try:
                    for window in windows_of(self._reader, path, self._cutting, self._image_size):
                        if not self._put((place, window)):
                            return
                except BadVideoError as error:
                    self._put((place, error.reason))
                else:
                    self._put((place, None))
            self._put(None)
        except Exception as error:  # no video's doing; raised where the results are taken
            self._put(error)

    def _put(self, item: object) -> bool:
        """Whether it was wanted."""
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.5)
                return True
            except queue.Full:
                continue
        return False
