"""Short H.264 clips of videos that a browser cannot play, made once and kept.

    python -m search.playing VIDEO START SECONDS OUTPUT

A clip is made in a process of its own, which gets no more memory and time than a clip needs: the libraries that decode
are written in C, and a file may make them crash or hang.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av

ROOT = Path(__file__).resolve().parents[1]
CLIP_SECONDS = 30.0  # of video in a clip at most
CLIP_SIZE = 480  # short side in pixels at most
TIME_LIMIT = 60.0  # seconds that making one may take
STALE = 2 * TIME_LIMIT  # seconds after which nobody is making a clip any more
# FFmpeg's names of the containers that files with the names of videos may be: no playlists, which name other files
CONTAINERS = "mov,mp4,matroska,avi,mpeg,mpegvideo,mpegts,flv,asf,ogg"
CLOCK = Fraction(1, 90_000)  # seconds, of a clip's timestamps
MEMORY_LIMIT = 8 * 2**30  # bytes of address space


class ClipError(RuntimeError):
    """No clip can be made; the message says why."""


class Clips:
    """A folder of clips, each named by its window and the video's time of change."""

    def __init__(self, folder: Path, limit: int):
        """limit: bytes of the folder; the clips that were longest unused go first."""
        self.folder, self.limit = folder, limit
        self._making: dict[str, threading.Lock] = {}  # by the name of a clip
        self._room = threading.Lock()  # of what is there and who makes what

    def open(self, video: Path, mtime_ns: int, window: int, start: float, seconds: float) -> int:
        """A descriptor of the clip of a video from a time on, which is made if it is not there.

        Args:
            video: the file. mtime_ns: its time of change.
            window: number of the window that begins there.
            start: in seconds. seconds: of the video from there on; a clip has `CLIP_SECONDS` of them at most.

        Raises:
            ClipError: if it cannot be made.
        """
        path = self.folder / f"{window}-{mtime_ns}.mp4"
        with self._room:
            making = self._making.setdefault(path.name, threading.Lock())
        with making:  # who comes second finds it made
            while True:
                if not path.is_file():
                    self.folder.mkdir(exist_ok=True)
                    self._make(video, start, min(seconds, CLIP_SECONDS), path)
                with self._room, contextlib.suppress(FileNotFoundError):  # it may just have made room for another
                    file = os.open(path, os.O_RDONLY)
                    os.utime(path)  # used now
                    self._make_room(path)
                    return file

    def _make(self, video: Path, start: float, seconds: float, path: Path) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        command = [sys.executable, "-m", "search.playing", str(video), str(start), str(seconds), str(partial)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines()
                crash = f"the decoder ended with {done.returncode}"
                raise ClipError(lines[-1] if lines and done.returncode > 0 else crash)
            os.replace(partial, path)
        except subprocess.TimeoutExpired:
            raise ClipError(f"not made within {TIME_LIMIT:g} seconds") from None
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, newest: Path) -> None:
        for path in self.folder.glob(".*.partial"):  # of a server that was killed
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - STALE:
                    path.unlink()
        clips = {path: path.stat() for path in self.folder.glob("*.mp4")}
        used = sum(status.st_size for status in clips.values())
        for path in sorted(clips, key=lambda path: clips[path].st_mtime_ns):
            if used <= self.limit or path == newest:
                break
            path.unlink(missing_ok=True)
            used -= clips[path].st_size


def make_clip(video: Path, start: float, seconds: float, output: Path) -> None:
    """Write a part of a video as H.264, without sound, upright.

    Args:
        video: the file.
        start: from its first frame, in seconds. seconds: how many of them.
        output: the file to write, MP4 whatever its name.

    Raises:
        ValueError, OSError: if it cannot be read or written, or has no frame there.
    """
    import av

    from preprocess.compress_video import CompressSettings, encode
    from preprocess.frames import frame_interval, presentation_times, video_stream

    settings = CompressSettings(fps=Fraction(30), size=CLIP_SIZE)
    options = {"format_whitelist": CONTAINERS}
    with av.open(os.path.abspath(video), options=options, metadata_errors="ignore") as container:
        stream = video_stream(container)
        stream.codec_context.thread_count = 1
        begin = (stream.start_time or 0) * stream.time_base
        interval = frame_interval(stream, settings.fps)
        if start > 0:
            container.seek(int((begin + Fraction(start)) / stream.time_base), stream=stream)  # the key frame before
        timed = presentation_times(container.decode(stream), interval)
        after = ((time - begin, frame) for time, frame in timed if time - begin > start - interval)
        chosen = thinned(itertools.takewhile(lambda shown: shown[0] < start + seconds, after), 1 / settings.fps)
        first = next(chosen, None)
        if first is None:
            raise ValueError("it has no frame there")
        length = max(interval, 1 / settings.fps)
        stamped = (
            (round((time - first[0]) / CLOCK), round(length / CLOCK), frame)
            for time, frame in itertools.chain([first], chosen)
        )
        encode(stamped, output, 1 / length, CLOCK, settings)


def thinned(
    timed: Iterable[tuple[Fraction, av.VideoFrame]], apart: Fraction
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Frames with their times, without those that come sooner after the one before than `apart`, or with it."""
    last = None
    for at, frame in timed:
        if last is None or at - last > apart * Fraction(9, 10):
            last = at
            yield at, frame


def main() -> int:
    """Make a clip as the command line says; 1 and a line on stderr where that fails."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT if hard < 0 else min(MEMORY_LIMIT, hard), hard))
    video, start, seconds, output = sys.argv[1:]
    try:
        make_clip(Path(video), float(start), float(seconds), Path(output))
    except (ValueError, OSError, MemoryError) as error:
        print(getattr(error, "strerror", None) or error or type(error).__name__, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
