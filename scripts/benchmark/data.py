"""What feeds a training and what judges it: frames a second of the training loader, and the time of ranking."""

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

from common.errors import UserError
from dataloaders.batches import GlobalBatches, read_batches, training_loader
from dataloaders.items import TrainingDataset, VideoSettings
from dataloaders.samples import Sample
from dataloaders.video.pack_index import PackIndex
from dataloaders.video.reader import IGNORE, DecodingSettings
from modules.tasks.metrics import retrieval_metrics, retrieval_metrics_of_embeddings
from modules.training.trainer import peak_memory_mb

ROOT = Path(__file__).resolve().parents[2]
ORIGINAL, COMPRESSED, JPEG, RAW = "original", "compressed", "packed_jpeg", "packed_raw"
SOURCES = (ORIGINAL, COMPRESSED, JPEG, RAW)
EMBEDDING = 512  # E of ViT-B/32


@dataclass(frozen=True)
class LoaderSetup:
    """How the loader is measured.

    Attributes:
        num_frames: T. image_size: in pixels.
        num_workers: of the loader.
        batch_size: clips a batch. num_batches: measured, after as many as there are workers.
    """

    num_frames: int
    image_size: int
    num_workers: int
    batch_size: int
    num_batches: int


def make_clips(folder: Path, count: int, seconds: int) -> None:
    """H.264 clips of 320×240 at 30 frames a second: a drifting, grainy texture."""
    folder.mkdir(parents=True)
    for number in range(count):
        draw = np.random.default_rng(number)
        coarse = torch.from_numpy(draw.random((1, 3, 24, 32), dtype=np.float32))
        picture = F.interpolate(coarse, size=(480, 640), mode="bicubic")[0].permute(1, 2, 0).clamp(0, 1).numpy() * 230
        with av.open(str(folder / f"clip{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"crf": "23", "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for index in range(30 * seconds):
                top, left = index * (number + 1) % 240, index * (number + 2) % 320
                grain = draw.integers(0, 12, (240, 320, 1))
                frame = (picture[top : top + 240, left : left + 320] + grain).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())


def prepare(videos: Path, folder: Path) -> None:
    """Compress and pack a folder of videos, as the README says; damaged videos are left out.

    Raises:
        UserError: if a program cannot do its work; the message has its last words.
    """
    for name, program, options in (
        (COMPRESSED, "compress_video.py", []),
        (JPEG, "pack_frames.py", ["--format", "jpeg"]),
        (RAW, "pack_frames.py", ["--format", "raw"]),
    ):
        command = [sys.executable, str(ROOT / "preprocess" / program), "--input_root", str(videos)]
        command += ["--output_root", str(folder / name), "--num_workers", "2", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 1):  # 1: some videos are damaged
            raise UserError(f"{program} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def make_samples(videos: Path, folder: Path, source: str, setup: LoaderSetup) -> tuple[list[Sample], PackIndex | None]:
    """Samples of every good clip with at least T frames at 3 a second, from one of `SOURCES`.

    Raises:
        UserError: if there is no such clip.
    """
    raw = PackIndex.open(folder / RAW)
    names = [name for name, video in sorted(raw.videos.items()) if video.num_frames >= setup.num_frames]
    if not names:
        raise UserError(f"{videos} has no good clip of {setup.num_frames} frames or more at 3 a second")
    pack = None
    if source == ORIGINAL:
        paths = [videos / name for name in names]
    elif source == COMPRESSED:
        paths = [(folder / COMPRESSED / name).with_suffix(".mp4") for name in names]
    else:
        pack = raw if source == RAW else PackIndex.open(folder / source)
        paths = [pack.path / name for name in names]
    needed = setup.batch_size * (setup.num_batches + setup.num_workers)
    repeated = [(place, path) for place in range(-(-needed // len(paths))) for path in paths]
    return [Sample(f"{path.name} {place}", path.name, path, ("",)) for place, path in repeated], pack


def frames_per_second(videos: Path, folder: Path, source: str, setup: LoaderSetup) -> float:
    """Frames a second out of the training loader, without those that are there before the clock starts."""
    samples, pack = make_samples(videos, folder, source, setup)
    lenient = DecodingSettings(decoder_errors=IGNORE)
    settings = VideoSettings(setup.num_frames, setup.image_size, seed=0, decoding=lenient, pack=pack)
    batches = GlobalBatches(len(samples), setup.batch_size, seed=0, rank=0, world_size=1)
    loader = training_loader(TrainingDataset(samples, settings, replace_bad=False), batches, setup.num_workers, False)
    iterator = read_batches(loader)
    for _ in range(setup.num_workers):
        next(iterator)
    start = time.perf_counter()
    frames = sum(int(next(iterator).num_frames.sum()) for _ in range(setup.num_batches))
    return frames / (time.perf_counter() - start)


def make_embeddings(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts and videos whose right pairs are somewhat alike: (count, E) float32 of unit length, twice."""
    draw = np.random.default_rng(0)
    video = draw.standard_normal((count, EMBEDDING), dtype=np.float32)
    text = video + 4 * draw.standard_normal((count, EMBEDDING), dtype=np.float32)
    for rows in (text, video):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return text, video


def ranks_milliseconds(count: int, repeats: int = 21) -> float:
    """Median milliseconds of both directions' ranks on a given similarity matrix of count × count."""
    text, video = make_embeddings(count)
    similarity = text @ video.T
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        retrieval_metrics(similarity)
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def large_ranks(count: int) -> tuple[float, float]:
    """Similarity and ranks of count × count in blocks: seconds, and the process's peak memory in MiB with all it is.

    To be called in a process of its own.
    """
    text, video = make_embeddings(count)
    start = time.perf_counter()
    retrieval_metrics_of_embeddings(text, video)
    return time.perf_counter() - start, peak_memory_mb(torch.device("cpu"))
