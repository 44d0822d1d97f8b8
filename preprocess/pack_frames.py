"""Decode a folder of videos once, to the frames that training samples from, packed in a few large files.

    python preprocess/pack_frames.py --input_root data/msrvtt/videos_3fps --output_root data/msrvtt/frames_3fps
    python preprocess/pack_frames.py --input_root RAW --output_root OUT --format raw --num_workers 16
    python preprocess/pack_frames.py --verify --output_root OUT

Training then reads `--packed OUT` in place of `--features_path`, and decodes no video. Every video under RAW, at any
depth, is packed; hidden files are not videos. OUT gets tar archives of about --shard_mb (`frames-00000.tar`, …; any tar
program unpacks them), the index of their frames (`index.jsonl`), the settings (`pack_frames.json`) and the failures
(`failed_videos.csv`: video, reason). The same command continues where it stopped, also after `kill -9`: what lies in
an archive behind its last indexed video is cut off. Archives are the same bytes whatever the number of processes, and
whether or not the packing was interrupted. One run at a time for one OUT. Where OUT was packed with other settings, or
of files that have changed, the command says so and stops; with --overwrite it packs all of it anew.

What is packed:

- Frames and size: those that compress_video.py would write with the same --fps and --size, turned upright, each once.
  Frame k is what the video shows k / fps seconds after its first frame; nothing is enlarged. Of a video that
  compress_video.py made, these are all of its frames.
- Format jpeg: JPEG files of --quality with 4:2:0 chroma, which is what nearly all videos have. Format raw: NumPy files
  of the pixels, to the bit what training would decode; some 14 times as large.
- Checksums: CRC-32 of every frame, which is checked whenever it is read, and SHA-256 of all frames of a video.

A video that is damaged (cannot be opened or decoded, has corrupt frames, ends before its header says) is not packed but
listed with the reason. A video's frames are in memory until they are written.

--verify reads everything that is packed and says what is not as it was written.

Exit code: 0 all videos are there, 1 some failed or are damaged, 2 the command cannot start or write, 130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import sys
import tarfile
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError
from common.files import lock_folder, sync_folder, write_whole
from common.progress import Progress
from dataloaders.video.pack_index import (
    CHANNELS,
    FORMATS,
    INDEX_FILE,
    JPEG,
    RAW,
    SETTINGS_FILE,
    SHARD_NAME,
    TAR_BLOCK,
    PackedVideo,
    PackIndex,
    PackSettings,
    check_shards,
    read_index,
    read_settings,
)
from preprocess.compress_video import (
    FAILURES_FILE,
    Job,
    Shrinker,
    choose_frames,
    describe,
    interrupts_ignored,
    plan,
    report,
    stop_workers,
    video_stream,
)

MEGABYTE = 2**20
AHEAD = 2  # videos that each worker may be ahead of the one that is written
WORKER_DIED = "a worker process died while this video was under way (out of memory?)"


@dataclass(frozen=True)
class EncodedVideo:
    """A video's frames as they are stored.

    Attributes:
        source_bytes, source_mtime_ns: of the source file.
        height, width: in pixels, of every frame.
        frames: JPEG files, or the pixels of (H, W, 3) uint8 RGB.
    """

    source_bytes: int
    source_mtime_ns: int
    height: int
    width: int
    frames: list[bytes]


# --- One video --------------------------------------------------------------------------------------------


def encode_video(source: Path, settings: PackSettings) -> EncodedVideo:
    """The frames to pack of a video.

    Raises:
        DamagedVideo: the source is no video or cannot be read to its end.
        OSError: it cannot be read (PyAV's errors are OSErrors or ValueErrors).
    """
    state = source.stat()
    frames, shape = [], None
    # An absolute path cannot be taken for a protocol ("a:b.mp4"); titles in old AVIs may not be UTF-8.
    with av.open(os.path.abspath(source), metadata_errors="ignore") as container:
        for picture in upright_pictures(container, settings):
            shape = picture.shape
            frames.append(encode_frame(picture, settings))
    return EncodedVideo(state.st_size, state.st_mtime_ns, *shape[:2], frames)


def upright_pictures(container: av.container.InputContainer, settings: PackSettings) -> Iterator[np.ndarray]:
    """The chosen frames of an opened video, each (H, W, 3) uint8 RGB of one size.

    They become the 4:2:0 pictures that compress_video.py encodes, and RGB as the decoders of training make it of those,
    to the bit.
    """
    stream = video_stream(container)
    shrinker, to_rgb = None, VideoReformatter()
    for _, _, frame in choose_frames(container, stream, settings.fps):
        shrinker = shrinker or Shrinker(frame, settings.size)
        yield to_rgb.reformat(shrinker(frame), format="rgb24", threads=1).to_ndarray()


def encode_frame(picture: np.ndarray, settings: PackSettings) -> bytes:
    """A (H, W, 3) uint8 RGB frame as it is stored."""
    if settings.format == RAW:
        return picture.tobytes()
    options = {
        cv2.IMWRITE_JPEG_QUALITY: settings.quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
        cv2.IMWRITE_JPEG_OPTIMIZE: 1,  # 4 % smaller, and no slower to decode
    }
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [v for o in options.items() for v in o])
    if not done:
        raise ValueError(f"a frame of {picture.shape[1]}×{picture.shape[0]} pixels cannot be written as JPEG")
    return data.tobytes()


def attempt(job: Job, settings: PackSettings) -> EncodedVideo | str:
    """The frames of one video, or why it failed."""
    try:
        return encode_video(job.source, settings)
    except Exception as error:  # one video's failure, of whatever kind, must not end the run for the others
        return describe(error)


# --- A folder of videos -----------------------------------------------------------------------------------


def encode_all(
    jobs: Sequence[Job], settings: PackSettings, num_workers: int
) -> Iterator[tuple[Job, EncodedVideo | str]]:
    """Yield (job, its frames or why it failed) in the order of the jobs, by `num_workers` processes (1: this one).

    Where a worker dies, the first video that it may have been at is tried again in a process of its own.
    """
    if num_workers == 1:
        yield from ((job, attempt(job, settings)) for job in jobs)
        return
    remaining, waiting = iter(jobs), deque()
    num_workers = min(num_workers, max(1, len(jobs)))
    pool = start_pool(num_workers)
    try:
        while True:
            for job in islice(remaining, AHEAD * num_workers - len(waiting)):
                waiting.append((job, submit(pool, job, settings)))
            if not waiting:
                return
            job, future = waiting.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                stop_workers(pool)
                result = attempt_alone(job, settings)
                pool = start_pool(num_workers)
                waiting = deque((job, submit(pool, job, settings)) for job, _ in waiting)
            yield job, result
    finally:
        stop_workers(pool)


def attempt_alone(job: Job, settings: PackSettings) -> EncodedVideo | str:
    """`attempt` in a process that does nothing else."""
    pool = start_pool(1)
    try:
        return submit(pool, job, settings).result()
    except BrokenProcessPool:
        return WORKER_DIED
    finally:
        stop_workers(pool)


def start_pool(num_workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=end_with_parent)


def submit(pool: ProcessPoolExecutor, job: Job, settings: PackSettings) -> Future:
    """The future result of a job; of a pool that is broken already, one that says so."""
    with interrupts_ignored():  # a worker started here inherits it: Ctrl-C is for the parent alone
        try:
            return pool.submit(attempt, job, settings)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
            return future


def end_with_parent() -> None:
    """Let a worker end when its parent is killed; it would wait for work forever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


# --- The pack ---------------------------------------------------------------------------------------------


class PackWriter:
    """Appends videos to the shards and the index of a pack.

    A video is in the index only when its frames are on the disk; what else is in the shards is cut off when the
    writer is made. Leaving it as a context manager ends the last archive properly.
    """

    def __init__(self, path: Path, settings: PackSettings, videos: dict[str, PackedVideo], shard_bytes: int):
        """videos: those that are packed. shard_bytes: a video that would make a shard longer begins a new one."""
        self.path = path
        self.settings = settings
        self.videos = videos
        self.shard_bytes = shard_bytes
        for stale in find_shards(path) - {video.shard for video in videos.values()}:
            (path / stale).unlink()
        self._shard = max((video.shard for video in videos.values()), key=shard_number, default=shard_name(0))
        self._index = (path / INDEX_FILE).open("ab")
        self._open(max((video.end for video in videos.values() if video.shard == self._shard), default=0))

    def add(self, job: Job, encoded: EncodedVideo) -> None:
        """Write a video; it is on the disk when this returns.

        Raises:
            UserError: it cannot be written.
        """
        with self._no_room():
            if self._end and self._end + sum(map(len, encoded.frames)) > self.shard_bytes:
                self._close()
                self._shard = shard_name(shard_number(self._shard) + 1)
                self._open(0)
            self._write(job, encoded)

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, kind, *error) -> None:
        if kind is None:
            with self._no_room():
                self._close()
        for file in (self._index, self._file):
            with suppress(OSError):  # of a full disk: what they hold back is in no index
                file.close()

    @contextmanager
    def _no_room(self) -> Iterator[None]:
        """Around writing: say what it means that this failed."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path / self._shard} cannot be written: {error.strerror}. Make room on the disk or mend it; "
                "the same command continues"
            ) from error

    def _open(self, end: int) -> None:
        """Continue the shard behind so many bytes."""
        path = self.path / self._shard
        self._file = path.open("r+b" if end else "wb")
        self._end = end
        sync_folder(self.path)

    def _close(self) -> None:
        """End the archive behind its last video, whatever an interruption left there."""
        with self._file:
            self._go_to_end()
            with tarfile.open(fileobj=self._file, mode="w"):
                pass
            self._file.flush()
            os.fsync(self._file.fileno())

    def _go_to_end(self) -> None:
        self._file.seek(self._end)
        self._file.truncate()

    def _write(self, job: Job, encoded: EncodedVideo) -> None:
        self._go_to_end()
        offsets = self._add_members(job.target.as_posix(), encoded)
        self._file.flush()
        os.fsync(self._file.fileno())
        digest = hashlib.sha256()
        for frame in encoded.frames:
            digest.update(frame)
        video = PackedVideo(
            job.name,
            encoded.source_bytes,
            encoded.source_mtime_ns,
            self._shard,
            encoded.height,
            encoded.width,
            np.array(offsets, dtype=np.int64),
            np.array([len(frame) for frame in encoded.frames], dtype=np.int64),
            np.array([zlib.crc32(frame) for frame in encoded.frames], dtype=np.uint32),
            digest.hexdigest(),
        )
        self._end = video.end
        self._index.write(video.to_line().encode("ascii") + b"\n")
        self._index.flush()
        os.fsync(self._index.fileno())
        self.videos[video.video] = video

    def _add_members(self, name: str, encoded: EncodedVideo) -> list[int]:
        """Add a video's frames to the archive and return the offset of each, in bytes."""
        if self.settings.format == JPEG:
            return [self._add_member(f"{name}/{k:06d}.jpg", [frame]) for k, frame in enumerate(encoded.frames)]
        header = npy_header((len(encoded.frames), encoded.height, encoded.width, CHANNELS))
        first = self._add_member(f"{name}.npy", [header, *encoded.frames]) + len(header)
        return [first + k * len(frame) for k, frame in enumerate(encoded.frames)]

    def _add_member(self, name: str, parts: Sequence[bytes]) -> int:
        """Add a file to the archive and return the offset of its data, in bytes."""
        # Nothing of the source's goes into the member, so that equal frames make equal archives.
        member = tarfile.TarInfo(name)
        member.size = sum(map(len, parts))
        self._file.write(member.tobuf(tarfile.PAX_FORMAT))
        offset = self._file.tell()
        for part in parts:
            self._file.write(part)
        self._file.write(bytes(-member.size % TAR_BLOCK))
        return offset


def npy_header(shape: tuple[int, ...]) -> bytes:
    """What a NumPy file of uint8 has before its values."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def find_shards(path: Path) -> set[str]:
    return {file.name for file in path.iterdir() if SHARD_NAME.fullmatch(file.name)}


def shard_name(number: int) -> str:
    return f"frames-{number:05d}.tar"


def shard_number(name: str) -> int:
    return int(name.removeprefix("frames-").removesuffix(".tar"))


def claim_output(path: Path, jobs: Sequence[Job], settings: PackSettings) -> dict[str, PackedVideo]:
    """Record the settings in the output folder, cut off an unfinished line of its index, and return what is packed.

    Raises:
        UserError: the folder holds frames with other settings, of other sources, or that nobody recorded.
    """
    file, wanted = path / SETTINGS_FILE, settings.as_json()
    if not file.exists():
        if found := [*find_shards(path), *(name for name in [INDEX_FILE] if (path / name).exists())]:
            raise UserError(
                f"{path} holds {found[0]}, but no {SETTINGS_FILE} says how it was made: give another --output_root"
            )
        write_whole(file, lambda opened: opened.write(json.dumps(wanted).encode()))
    elif (found := read_settings(path).as_json()) != wanted:
        difference = f"{json.dumps(found)}, not {json.dumps(wanted)}"
        raise UserError(f"{file} says {difference}: give the same settings or another --output_root")
    if not (path / INDEX_FILE).exists():
        if shards := find_shards(path):
            raise UserError(
                f"{path} holds {len(shards)} archives without their {INDEX_FILE}: copy it again, or remove them"
            )
        return {}
    videos, rest = read_index(path, settings.format)
    check_shards(path, videos.values())
    check_sources(path, jobs, videos)
    if rest:
        with (path / INDEX_FILE).open("r+b") as index:
            index.truncate(index.seek(0, os.SEEK_END) - rest)
    return videos


def remove_pack(path: Path) -> None:
    """Remove what packing leaves in a folder; other files stay."""
    # the settings last: without them nobody could say what the rest is
    for name in (*find_shards(path), INDEX_FILE, FAILURES_FILE, SETTINGS_FILE):
        (path / name).unlink(missing_ok=True)


def check_sources(path: Path, jobs: Sequence[Job], videos: dict[str, PackedVideo]) -> None:
    """See that what is packed was packed from the files that are there; files may have gone since.

    Raises:
        UserError: one is another file than when it was packed, or would have the name of one that is packed.
    """
    targets = {Path(name).with_suffix("").as_posix(): name for name in videos}
    for job in jobs:
        before = targets.get(job.target.as_posix())
        if before is None:
            continue
        remedy = f"to pack it again, remove its line from {path / INDEX_FILE}; or give another --output_root"
        if before != job.name:
            raise UserError(f"{job.source} would be packed as {job.target}, which {before} is already: {remedy}")
        state, packed = job.source.stat(), videos[before]
        if (state.st_size, state.st_mtime_ns) != (packed.source_bytes, packed.source_mtime_ns):
            raise UserError(f"{job.source} has changed since it was packed (its size or time differs): {remedy}")


# --- Command line -----------------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    defaults = PackSettings()
    parser.add_argument("--input_root", type=Path, help="folder of the videos, compressed or not")
    parser.add_argument("--output_root", type=Path, required=True, help="folder of the packed frames")
    parser.add_argument("--fps", type=Fraction, default=defaults.fps, help="frames a second: 3, 0.5 or 30000/1001 (3)")
    parser.add_argument("--size", type=int, default=defaults.size, help="short side in pixels, even (224)")
    parser.add_argument("--format", choices=FORMATS, default=defaults.format, help="how frames are stored (jpeg)")
    parser.add_argument("--quality", type=int, default=defaults.quality, help="of JPEG: 1 worst, 100 best (90)")
    parser.add_argument("--shard_mb", type=int, default=1024, help="MiB of a tar archive; no video is divided (1024)")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    parser.add_argument("--overwrite", action="store_true", help="pack anew what other settings or other files made")
    parser.add_argument("--verify", action="store_true", help="check what is packed instead of packing")
    return parser, parser.parse_args(argv)


def start(arguments: argparse.Namespace) -> tuple[PackSettings, list[Job]]:
    """Check everything that can be checked before the output folder is touched.

    Raises:
        ValueError, OSError: the run cannot start.
    """
    settings = PackSettings(arguments.fps, arguments.size, arguments.format, arguments.quality)
    for name in ("num_workers", "shard_mb"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} must be 1 or more, not {getattr(arguments, name)}")
    if arguments.input_root is None:
        raise ValueError("give --input_root, the folder of the videos, or --verify to check what is packed")
    if not arguments.input_root.is_dir():
        raise ValueError(f"'{arguments.input_root}' is not a folder")
    jobs = plan(arguments.input_root, Path(), suffix="")
    arguments.output_root.mkdir(parents=True, exist_ok=True)
    return settings, jobs


def pack(writer: PackWriter, jobs: Sequence[Job], num_workers: int) -> int:
    """Pack what is not packed yet, report, and return the exit code."""
    todo = [job for job in jobs if job.name not in writer.videos]
    counts = Counter({"packed": 0, "already there": len(jobs) - len(todo), "failed": 0})
    failures: dict[str, str] = {}
    frames, began = 0, time.perf_counter()
    interrupted = False
    try:
        with Progress(len(todo), "packing", "video", "videos") as progress:
            for job, result in encode_all(todo, writer.settings, num_workers):
                if isinstance(result, str):
                    failures[job.name] = result
                else:
                    writer.add(job, result)
                    frames += len(result.frames)
                counts["failed" if isinstance(result, str) else "packed"] += 1
                progress.update()
    except KeyboardInterrupt:
        interrupted = True
        counts["not reached"] = len(todo) - counts["packed"] - counts["failed"]
    seconds = time.perf_counter() - began
    report(failures, counts, writer.path)
    print(summarize(writer))
    if frames:
        print(f"{frames} frames in {seconds:.1f} s: {frames / seconds:.1f} frames a second")
    if interrupted:
        print("interrupted; the same command continues")
        return 130
    return 1 if failures else 0


def summarize(writer: PackWriter) -> str:
    """What the pack holds."""
    videos = writer.videos.values()
    frames, size = sum(video.num_frames for video in videos), sum(int(video.sizes.sum()) for video in videos)
    stored = sum((writer.path / shard).stat().st_size for shard in find_shards(writer.path))
    mean = f", {size / frames:.0f} bytes a frame" if frames else ""
    return f"{len(videos)} videos, {frames} frames{mean}; {stored / MEGABYTE:.1f} MiB of archives"


def verify(path: Path) -> int:
    """Read everything that is packed, say what is damaged, and return the exit code.

    Raises:
        UserError: the index cannot be used, or a shard is missing or cut off.
    """
    from dataloaders.video.packed import PackReader  # imports the decoders of video, which workers have no use for

    index = PackIndex.open(path)
    reader, damaged = PackReader(index), 0
    with Progress(len(index.videos), "reading", "video", "videos") as progress:
        for video in index.videos.values():
            if reason := reader.check(video):
                damaged += 1
                print(f"damaged: {video.video}: {reason}".encode("utf-8", "backslashreplace").decode())
            progress.update()
    reader.close()
    print(f"{len(index.videos)} videos read, {damaged} damaged")
    if damaged:
        print(f"To pack them again, remove their lines from {path / INDEX_FILE} and give the packing command again.")
    return 1 if damaged else 0


def main(argv: list[str] | None = None) -> int:
    parser, arguments = parse_arguments(argv)
    path = arguments.output_root
    try:
        if arguments.verify:
            return verify(path)
        settings, jobs = start(arguments)
        with ExitStack() as stack:
            try:
                stack.enter_context(lock_folder(path))
            except BlockingIOError:
                raise UserError(f"another run is packing to {path}: wait for it, or give another folder") from None
            try:
                videos = claim_output(path, jobs, settings)
            except UserError:
                if not arguments.overwrite:
                    raise
                remove_pack(path)
                videos = claim_output(path, jobs, settings)
            writer = stack.enter_context(PackWriter(path, settings, videos, arguments.shard_mb * MEGABYTE))
            return pack(writer, jobs, arguments.num_workers)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
