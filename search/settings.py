"""The flags of the commands."""

import os
from dataclasses import dataclass
from pathlib import Path

from common.settings import above, at_least, between, setting

INDEX = Path("runs/search")
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class PlaceSettings:
    """Flags of every command."""

    index_dir: Path = setting(INDEX, "the index folder", metavar="FOLDER")


@dataclass(frozen=True)
class ModelSettings:
    """Flags of the commands that compute embeddings; what an index was made with needs not be given again."""

    run: Path | None = setting(None, "output folder or checkpoint of a training", metavar="FOLDER")
    method: str | None = setting(None, "instead of --run, a method that trains nothing: zero_shot", metavar="NAME")
    pretrained_clip_name: str | None = setting(None, "as in a training; that of the run if not given", metavar="NAME")
    pretrained_dir: Path | None = setting(None, "folder with OpenAI's weight files", metavar="FOLDER")
    trust_weights: bool = setting(False, "accept an OpenAI-form file whose checksum is not a published one")
    max_frames: int | None = setting(None, "T, frames a window; the run's", within=at_least(1), metavar="FRAMES")
    max_words: int | None = setting(None, "tokens a query; the run's", within=at_least(3), metavar="TOKENS")
    precision: str | None = setting(None, "as in a training; the run's where this device has it", metavar="NAME")


@dataclass(frozen=True)
class IndexSettings:
    """Flags of ``index``."""

    window: float = setting(8.0, "of video that a window holds", within=above(0, 86_400), metavar="SECONDS")
    stride: float = setting(
        4.0, "from one window's start to the next one's", within=above(0, 86_400), metavar="SECONDS"
    )
    batch_size: int = setting(32, "windows of a video encoded at a time", within=at_least(1), metavar="WINDOWS")
    video_time_limit: float = setting(
        60.0, "until the next frame that a window needs is decoded", within=above(0, 86_400), metavar="SECONDS"
    )
    bad_videos: Path | None = setting(
        None, "a list that preprocess/check_videos.py wrote: these videos are bad without being read", metavar="FILE"
    )
    retry_bad: bool = setting(False, "read the videos again that were bad, also those that have not changed since")
    forget_empty: bool = setting(False, "a folder without videos is no error: what was indexed of it is forgotten")
    ray: str | None = setting(
        None, "embed on a Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local for one made here", metavar="ADDRESS"
    )
    ray_part: float = setting(
        64.0, "of video files that a worker gets at a time, and loses if it dies", within=above(0, 10**6), metavar="MB"
    )
    ray_workers: int | None = setting(
        None, "at a time; as many as the cluster has room for if not given", within=at_least(1), metavar="WORKERS"
    )
    ray_cpus: int | None = setting(
        None, "and threads of a worker; as many as torch takes here if not given", within=at_least(1), metavar="CORES"
    )
    ray_gpus: float | None = setting(
        None,
        "of a worker, a share where several use one; 1 if this machine has one",
        within=between(0, 1),
        metavar="GPUS",
    )

    def problems(self) -> list[str]:
        """What does not fit together."""
        problems = []
        if self.stride > self.window:
            given = f"--stride {self.stride:g} leaves gaps between windows of {self.window:g} s"
            problems.append(f"{given}: give at most --window")
        of_workers = [name for name in ("ray_workers", "ray_cpus", "ray_gpus") if getattr(self, name) is not None]
        if self.ray is None and of_workers:
            problems.append(f"--{of_workers[0]} is about the workers of a cluster: give --ray ADDRESS as well")
        return problems


@dataclass(frozen=True)
class QuerySettings:
    """Flags of ``search``."""

    like: str | None = setting(None, "a moment to be like, such as holiday.mp4@83.5", metavar="VIDEO@SECONDS")
    folder: str | None = setting(None, "only videos in this folder or below", metavar="FOLDER")
    min_seconds: float | None = setting(None, "only videos that last so long", within=at_least(0), metavar="SECONDS")
    max_seconds: float | None = setting(None, "only videos that last no longer", within=at_least(0), metavar="SECONDS")
    top: int = setting(10, "moments to show at most", within=between(1, 200), metavar="MOMENTS")
    all: bool = setting(False, "show the nearest moments also where nothing stands out")
    json: bool = setting(False, "print JSON, as /api/search has it")


@dataclass(frozen=True)
class MatchingSettings:
    """Flags of how windows are compared with a query."""

    index: str = setting(
        "exact",
        "exact: every window; faiss: the best candidates of a quantised index, for millions of windows",
        ("exact", "faiss"),
    )


@dataclass(frozen=True)
class JudgeSettings:
    """Flags of what judges whether anything stands out."""

    threshold: float = setting(
        1.75,
        "how far the best moment has to lie above what generic texts reach in this index, in their standard deviations",
        within=between(-100, 100),
        metavar="NUMBER",
    )
    generic_texts: Path | None = setting(
        None, "the generic texts, a line each, instead of search/generic.txt", metavar="FILE"
    )


@dataclass(frozen=True)
class ServeSettings:
    """Flags of ``serve``."""

    host: str = setting(LOOPBACK, "address to listen at; any but this machine's own needs a token", metavar="ADDRESS")
    port: int = setting(8011, "0 for any that is free", within=between(0, 65_535), metavar="NUMBER")
    host_name: str | None = setting(
        None, "a name that this machine is also reached by, through a proxy or directly; needs a token", metavar="NAME"
    )
    max_queries: int = setting(
        max(1, (os.cpu_count() or 1) // 2), "queries computed at a time", within=at_least(1), metavar="QUERIES"
    )
    clip_cache: int = setting(1024, "MiB of made clips that are kept", within=at_least(1), metavar="MIB")


@dataclass(frozen=True)
class VerifySettings:
    """Flags of ``verify``."""

    videos: bool = setting(False, "also look whether the videos are still what was indexed")
