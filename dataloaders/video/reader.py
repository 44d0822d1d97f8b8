"""Decoding in a process of its own, so that no video can hang, crash or fill the process that asks for it.

The libraries that decode are written in C and read files from anywhere: some files make them loop, crash, or leak.
`VideoReader` keeps a child that decodes one video after the other, ends it when a video takes too long, and starts a
new one. The child also listens to what libav reports: where it patches up a damaged picture, it says so to nobody but
the standard error, and returns the picture as if it were whole.

Child and parent talk through pipes, in lines of JSON and raw frames: nothing that a video could make of the child runs
in the parent.
"""

from __future__ import annotations

import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.errors import UserError
from common.settings import above, range_problems, setting
from dataloaders.video.decoding import BadVideoError, find_damage, listen_to_libraries, read_video
from dataloaders.video.sampling import FrameSampler
from dataloaders.video.windows import Cutting, Plan, Span, read_windows

ROOT = Path(__file__).resolve().parents[2]
DECODER_ERRORS = REJECT, IGNORE = ("reject", "ignore")
START_LIMIT = 60.0  # seconds for the child to import the libraries
MEMORY_LIMIT = 16 * 2**30  # bytes of address space: a header may announce frames of any size
CLIP_LIMIT = 2 * 2**30  # bytes of the frames of a video; 64 of 3840×2160 pixels take 1.5 GiB
# Of one child; then a new one takes over, whatever the libraries have left behind. Measured with clips of 24 frames of
# 128×64 (tests/soak/soak_videos.py, measure_leak) in 1,000 decodes: decord leaves 0.4 MB of good clips and 1.2 MB of
# bad ones, OpenCV 0.5 and 0.3 MB. A child of 2,000 stays within 3 MB, and starting one takes as long as some 50
# decodes.
MAX_DECODES = 2_000
PIPE_SIZE = 2**20
F_SETPIPE_SZ = 1031  # of Linux; the fcntl module names it from Python 3.10.9 on
COMMAND = (sys.executable, "-c", "from dataloaders.video.reader import serve; serve()")


@dataclass(frozen=True)
class DecodingSettings:
    """Flags of decoding: when a video is a bad one.

    Raises:
        UserError: a value is none that its flag takes.
    """

    video_time_limit: float = setting(
        60.0, "that decoding a video may take", affects_results=False, within=above(0, 86_400), metavar="SECONDS"
    )
    decoder_errors: str = setting(
        REJECT,
        "a video where the decoder reports errors but returns patched-up frames: a bad video, or as good as any",
        DECODER_ERRORS,
    )

    def __post_init__(self):
        problems = range_problems(self)
        if self.decoder_errors not in DECODER_ERRORS:
            problems.append(f"--decoder_errors must be {' or '.join(DECODER_ERRORS)}, found {self.decoder_errors}")
        if problems:
            raise UserError("\n".join(problems))


class _ChildDied(Exception):
    """A signal ended the child before it had answered; the message says which."""


class VideoReader:
    """Reads videos through a child process, which is started when it is first needed.

    May be handed to data loader workers, by fork or pickling: each process that reads has a child of its own.
    """

    def __init__(self, settings: DecodingSettings, command: tuple[str, ...] = COMMAND):
        """Start nothing yet. command: what runs `serve`."""
        self.settings = settings
        self.command = command
        self._child: _Child | None = None

    def read(self, path: str | Path, num_frames: int, sampler: FrameSampler) -> np.ndarray:
        """The sampled frames of a video, upright: (n, H, W, 3) uint8 RGB, n at most `num_frames`.

        Raises BadVideoError where `read_video` does, where the decoder reports damage or takes too long, and where it
        crashes twice in a row (once may be the machine's doing). Raises RuntimeError where no child can be started or
        one does not end as `serve` does: no video is to blame for that.
        """
        crash = ""
        for _ in range(2):
            try:
                return self._ask(path, num_frames, sampler)
            except _ChildDied as death:
                self.close()
                crash = str(death)
            except BadVideoError:
                raise  # an answer like any other, and the whole of it; the child reads on
            except BaseException:  # an interruption too: half an answer must not be taken for the next one's beginning
                self.close()
                raise
        raise BadVideoError(path, f"the decoder crashed: {crash}")

    def read_windows(self, path: str | Path, cutting: Cutting) -> Iterator[Plan | np.ndarray]:
        """What `windows.read_windows` yields: a plan, then its frames, each (H, W, 3) uint8 RGB.

        A new plan makes all that came before it void, and so does an error. The time limit is that of a part: until the
        plan, and from each frame to the next.

        Raises as `read` does.
        """
        crash = ""
        for _ in range(2):
            try:
                yield from self._ask_for_windows(path, cutting)
                return
            except _ChildDied as death:
                self.close()
                crash = str(death)
            except BadVideoError:
                raise
            except BaseException:  # also where nobody wants the rest
                self.close()
                raise
        raise BadVideoError(path, f"the decoder crashed: {crash}")

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_child": None}

    def _ask(self, path: str | Path, num_frames: int, sampler: FrameSampler) -> np.ndarray:
        child = self._get_child()
        request = {"path": os.path.abspath(path), "num_frames": num_frames, "sampler": asdict(sampler)}
        try:
            child.send(request)
            header = child.receive_line(self.settings.video_time_limit)
            if "shape" in header and math.prod(header["shape"]) > CLIP_LIMIT:
                self.close()
                raise BadVideoError(path, f"its frames {header['shape']} take more than {CLIP_LIMIT / 2**30:g} GiB")
            frames = child.receive_array(header["shape"]) if "shape" in header else None
        except TimeoutError:
            self.close()
            raise BadVideoError(path, f"not decoded within {self.settings.video_time_limit:g} seconds") from None
        if child.decodes >= MAX_DECODES:
            self.close()
        if frames is not None:
            return frames
        raise _failure(path, header)

    def _ask_for_windows(self, path: str | Path, cutting: Cutting) -> Iterator[Plan | np.ndarray]:
        child = self._get_child()
        child.send({"path": os.path.abspath(path), "cutting": asdict(cutting)})
        while True:
            try:
                header = child.receive_line(self.settings.video_time_limit)
                if "shape" in header and math.prod(header["shape"]) > CLIP_LIMIT:
                    self.close()
                    raise BadVideoError(path, f"a frame {header['shape']} takes more than {CLIP_LIMIT / 2**30:g} GiB")
                frame = child.receive_array(header["shape"]) if "shape" in header else None
            except TimeoutError:
                self.close()
                limit = self.settings.video_time_limit
                raise BadVideoError(path, f"a part was not decoded within {limit:g} seconds") from None
            if frame is not None:
                yield frame
            elif "spans" in header:
                yield Plan(header["seconds"], tuple(Span(start, end, tuple(f)) for start, end, f in header["spans"]))
            else:
                break
        if child.decodes >= MAX_DECODES:
            self.close()
        if "done" not in header:
            raise _failure(path, header)

    def _get_child(self) -> _Child:
        # after a fork the parent's child is still the parent's
        if self._child is None or self._child.owner != os.getpid():
            self._child = _Child(self.command, self.settings)
        return self._child


def _failure(path: str | Path, header: dict) -> Exception:
    """What the child's answer about a video is raised as."""
    if "bad" in header:
        return BadVideoError(path, header["bad"])
    return RuntimeError(f"reading {path} failed in the decoding process:\n{header['mistake']}")


class _Child:
    """The parent's end of a decoding process."""

    def __init__(self, command: tuple[str, ...], settings: DecodingSettings):
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.owner = os.getpid()
        self.decodes = 0
        self._buffer = b""
        self._process = subprocess.Popen(
            [*command, str(math.ceil(settings.video_time_limit)), settings.decoder_errors],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the parent to handle
        )
        self._output = self._process.stdout.fileno()
        self._finalizer = weakref.finalize(self, _end, self._process, self.owner)
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.fcntl(self._output, F_SETPIPE_SZ, PIPE_SIZE)
        self._deadline = time.monotonic() + START_LIMIT
        try:
            self._read_line()
        except (_ChildDied, TimeoutError) as error:
            self.close()
            reason = str(error) or f"it was not ready within {START_LIMIT:g} seconds"
            raise RuntimeError(f"the decoding process did not start: {reason}") from error

    def send(self, request: dict) -> None:
        self.decodes += 1
        with suppress(BrokenPipeError):  # the answer says how it ended
            self._process.stdin.write(json.dumps(request).encode() + b"\n")

    def receive_line(self, time_limit: float) -> dict:
        """The child's next line; TimeoutError where it has not come in time."""
        self._deadline = time.monotonic() + time_limit
        return json.loads(self._read_line())

    def receive_array(self, shape: list[int]) -> np.ndarray:
        """The frames behind a line, in what is left of its time."""
        frames = np.empty(shape, dtype=np.uint8)
        view = memoryview(frames).cast("B")
        filled = min(len(self._buffer), len(view))
        view[:filled] = self._buffer[:filled]
        self._buffer = self._buffer[filled:]
        while filled < len(view):
            self._wait()
            count = os.readv(self._output, [view[filled:]])
            if count == 0:
                raise _ChildDied(self._ending())
            filled += count
        return frames

    def close(self) -> None:
        self._finalizer()

    def _read_line(self) -> bytes:
        while b"\n" not in self._buffer:
            self._wait()
            part = os.read(self._output, 65536)
            if not part:
                raise _ChildDied(self._ending())
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        if not poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000):
            raise TimeoutError

    def _ending(self) -> str:
        code = self._process.wait()
        if code >= 0:  # not the video's doing: `serve` answers whatever happens
            raise RuntimeError(f"the decoding process ended by itself, with exit code {code}")
        return f"killed by {signal.Signals(-code).name}"


def _end(process: subprocess.Popen, owner: int) -> None:
    if os.getpid() != owner:  # a fork of the owner cleans up after itself only
        return
    process.kill()
    with suppress(subprocess.TimeoutExpired):  # one that waits for a disk ends when the disk answers
        process.wait(timeout=5)
    process.stdin.close()
    process.stdout.close()


def serve() -> None:
    """Be the child: answer requests on the standard input until it ends."""
    time_limit, decoder_errors = int(sys.argv[1]), sys.argv[2]
    # those who stop a run end its processes all at once; this one goes when its parent does
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT if hard < 0 else min(MEMORY_LIMIT, hard), hard))
    answers = os.fdopen(os.dup(1), "wb")
    listen_to_libraries()
    complaints = _capture_output()
    _answer(answers, {"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # the parent keeps the time; this is for a child that hangs when its parent is gone
        signal.alarm(time_limit + 5)
        try:
            heard = complaints if decoder_errors == REJECT else None
            if "cutting" in request:
                for part in read_windows(request["path"], Cutting(**request["cutting"]), heard):
                    signal.alarm(0)  # the parent may take its time over what it has got
                    if isinstance(part, Plan):
                        _answer(answers, part._asdict())
                    else:
                        _answer(answers, {"shape": part.shape}, np.ascontiguousarray(part))
                    signal.alarm(time_limit + 5)
                header, frames = {"done": True}, None
            else:
                sampler = FrameSampler(**request["sampler"])
                frames, count = read_video(request["path"], request["num_frames"], sampler, heard)
                header, frames = {"shape": [count, *frames.shape[1:]]}, frames[:count]
        except BadVideoError as error:
            _answer(answers, {"bad": error.reason})
        except Exception:
            _answer(answers, {"mistake": traceback.format_exc()})
        else:
            _answer(answers, header, frames)
        signal.alarm(0)
        complaints()  # of a video that was refused all the same


def _answer(answers: BinaryIO, header: dict, frames: np.ndarray | None = None) -> None:
    answers.write(json.dumps(header).encode() + b"\n")
    if frames is not None:
        answers.write(memoryview(frames).cast("B"))
    answers.flush()


def _capture_output() -> Callable[[], str]:
    """Send this process's output to a file, and return a function that empties it and tells of damage, "" for none."""
    file = os.memfd_create("output") if hasattr(os, "memfd_create") else _temporary_file()
    for stream in (1, 2):
        os.dup2(file, stream)
    reader = os.fdopen(os.dup(file), encoding="utf-8", errors="replace")

    def take() -> str:
        reader.seek(0)
        damage = find_damage(reader)
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        return damage

    return take


def _temporary_file() -> int:
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
