"""Decode a folder of videos once, to the frames that training samples from, packed in a few large files.

    python preprocess/pack_frames.py --input_root data/msrvtt/videos_3fps --output_root data/msrvtt/frames_3fps
    python preprocess/pack_frames.py --input_root RAW --output_root OUT --format raw --num_workers 16
    python preprocess/pack_frames.py --verify --output_root OUT

Training then reads `--packed OUT` in place of `--features_path`, and decodes no video. Every video under RAW, at any
depth, is packed; hidden files and folders are left out. OUT gets tar archives of about --shard_mb (`frames-00000.tar`,
…; any tar program unpacks them), the index of their frames (`index.jsonl`), the settings and how the videos had been
prepared (`pack_frames.json`) and the failures (`failed_videos.csv`: video, reason). The same command continues where it
stopped, also after `kill -9`: what lies in an archive behind its last indexed video is cut off. Archives are the same
bytes whatever the number of processes, and whether or not the packing was interrupted. One run at a time for one OUT.
Where OUT was packed with other settings, of videos prepared in another way, or of files that have changed, the command
says so and stops; with --overwrite it packs all of it anew. A pack that is damaged or cannot be read is left as it is.

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
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.progress import Progress
from dataloaders.video.pack_index import FORMATS, INDEX_FILE, RAW, PackIndex, PackSettings
from dataloaders.video.preparation import preparation_of
from preprocess.frames import Shrinker, choose_frames, video_stream
from preprocess.jobs import (
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
from preprocess.pack_writer import EncodedVideo, OtherPack, PackWriter, claim_output, find_shards, remove_pack

MEGABYTE = 2**20
AHEAD = 2  # videos that each worker may be ahead of the one that is written


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


def submit(pool: ProcessPoolExecutor, job: Job, settings: PackSettings) -> Future:
    """The future result of a job; of a pool that is broken already, one that says so."""
    with interrupts_ignored():  # a worker started here inherits it: Ctrl-C is for the parent alone
        try:
            return pool.submit(attempt, job, settings)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
            return future


# --- Command line -----------------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    defaults = PackSettings()
    parser.add_argument("--input_root", type=Path, help="folder of the videos, compressed or not")
    parser.add_argument("--output_root", type=Path, required=True, help="folder of the packed frames")
    parser.add_argument("--fps", type=to_rate, default=defaults.fps, help="frames a second: 3, 0.5 or 30000/1001 (3)")
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
    settings = replace(settings, of=preparation_of(job.source for job in jobs))
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
        with alone_in(path, "packing"):
            try:
                videos = claim_output(path, jobs, settings)
            except OtherPack:
                if not arguments.overwrite:
                    raise
                remove_pack(path)
                videos = claim_output(path, jobs, settings)
            with PackWriter(path, settings, videos, arguments.shard_mb * MEGABYTE) as writer:
                return pack(writer, jobs, arguments.num_workers)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
