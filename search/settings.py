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

    def problems(self) -> list[str]:
        """What does not fit together."""
        if self.stride > self.window:
            return [f"--stride {self.stride:g} leaves gaps between windows of {self.window:g} s: give at most --window"]
        return []


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
