"""What a pack of frames holds and where: the index that `preprocess/pack_frames.py` writes and training reads.

A pack is a folder:

- ``frames-00000.tar``, …: the shards, plain tar archives. In format jpeg a video is a folder of JPEG files
  (``<video>/000000.jpg``), in format raw a NumPy file (``<video>.npy``: (n, H, W, 3) uint8 RGB).
- ``index.jsonl``: a line of JSON a video, which says where in which shard each of its frames lies, so that no archive
  has to be searched, and with which checksum.
- ``pack_frames.json``: the settings that decide what the frames are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from common.errors import UserError

INDEX_FILE, SETTINGS_FILE, FAILURES_FILE = "index.jsonl", "pack_frames.json", "failed_videos.csv"
SHARD_NAME = re.compile(r"frames-\d{5,}\.tar")
FORMATS = JPEG, RAW = ("jpeg", "raw")
VERSION = 1
TAR_BLOCK = 512  # bytes; every member begins at a multiple
CHANNELS = 3
PACK_AGAIN = "give the command of preprocess/pack_frames.py again, which packs what is missing"


@dataclass(frozen=True)
class PackSettings:
    """What decides the frames of a pack.

    Attributes:
        fps: frames per second at most.
        size: short side in pixels at most, even.
        format: "jpeg", or "raw" for pixels as they are.
        quality: of JPEG, 1 to 100; has no meaning for raw.
        of: how the videos that were packed had been prepared (`dataloaders/video/preparation.py`); None where nobody
            recorded it.

    Raises:
        ValueError: a value is out of its range.
    """

    fps: Fraction = Fraction(3)
    size: int = 224
    format: str = JPEG
    quality: int = 90
    of: Mapping[str, Any] | None = None

    def __post_init__(self):
        if self.fps <= 0:
            raise ValueError(f"fps must be above 0, not {self.fps}")
        if self.size < 2 or self.size % 2:
            raise ValueError(f"size must be an even number of pixels, not {self.size}")
        if self.of is not None and not isinstance(self.of, Mapping):
            raise ValueError(f"of must say how videos were prepared, not {self.of!r:.80}")
        if self.format not in FORMATS:
            raise ValueError(f"format must be {' or '.join(FORMATS)}, not {self.format!r}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be 1 to 100, not {self.quality}")

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads; of raw frames without a quality, which they do not depend on."""
        quality = {"quality": self.quality} if self.format == JPEG else {}
        of = {} if self.of is None else {"of": dict(self.of)}
        return {"version": VERSION, "fps": str(self.fps), "size": self.size, "format": self.format, **quality, **of}

    @classmethod
    def from_json(cls, content: Any) -> PackSettings:
        """The settings that `as_json` gave.

        Raises:
            ValueError, KeyError, TypeError, ArithmeticError: it is something else.
        """
        values = dict(content)
        if values.pop("version") != VERSION:
            raise ValueError(f"made by another version of this code, not {VERSION}")
        return cls(**values | {"fps": Fraction(values["fps"])})


@dataclass(frozen=True, eq=False)
class PackedVideo:
    """Where a video's frames are.

    Attributes:
        video: path of its source file from the folder that was packed, with slashes: "class a/v1.avi".
        source_bytes, source_mtime_ns: of the source file when it was packed.
        shard: file name.
        height, width: in pixels, of every frame.
        offsets, sizes: (n,) int64, bytes from the shard's beginning and bytes of each frame.
        crc32: (n,) uint32, `zlib.crc32` of each frame's bytes.
        sha256: of the bytes of all frames, one after the other; hexadecimal.
    """

    video: str
    source_bytes: int
    source_mtime_ns: int
    shard: str
    height: int
    width: int
    offsets: np.ndarray
    sizes: np.ndarray
    crc32: np.ndarray
    sha256: str

    @property
    def num_frames(self) -> int:
        """n, frames that are packed."""
        return len(self.offsets)

    @property
    def end(self) -> int:
        """Bytes that a shard has at least, in whole blocks."""
        return -(-int(self.offsets[-1] + self.sizes[-1]) // TAR_BLOCK) * TAR_BLOCK

    def to_line(self) -> str:
        """A line of the index, without its end; names that are not UTF-8 are escaped."""
        return json.dumps(
            {
                "video": self.video,
                "source_bytes": self.source_bytes,
                "source_mtime_ns": self.source_mtime_ns,
                "shard": self.shard,
                "num_frames": self.num_frames,
                "height": self.height,
                "width": self.width,
                "sha256": self.sha256,
                "offsets": self.offsets.tolist(),
                "sizes": self.sizes.tolist(),
                "crc32": self.crc32.tolist(),
            }
        )

    @classmethod
    def from_line(cls, line: str, format: str) -> PackedVideo:
        """The video that a line of the index describes.

        Raises:
            ValueError: the line is damaged; the message says in what.
        """
        try:
            entry = json.loads(line)
            num_frames = entry.pop("num_frames")
            arrays = {name: _whole_numbers(name, entry.pop(name)) for name in ("offsets", "sizes", "crc32")}
            video = cls(**entry, **arrays)
        except json.JSONDecodeError as error:
            raise ValueError(f"cannot be read as JSON: {error.msg}") from error
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"not a line of this index: {error}") from error
        video._check(num_frames, format)
        return video

    def _check(self, num_frames: Any, format: str) -> None:
        texts, numbers = (self.video, self.shard, self.sha256), (self.source_bytes, self.source_mtime_ns)
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, int) for n in numbers):
            raise ValueError("a text or a number is missing")
        if not all(isinstance(side, int) and 0 < side < 2**16 for side in (self.height, self.width)):
            raise ValueError(f"frames of {self.width}×{self.height} pixels")
        parts = PurePosixPath(self.video).parts
        if not parts or ".." in parts or self.video.startswith("/") or "\0" in self.video:
            raise ValueError(f"{self.video!r:.80} is not a path inside a folder")
        if not SHARD_NAME.fullmatch(self.shard):
            raise ValueError(f"{self.shard!r:.80} is not the name of a shard")
        lengths = {len(self.offsets), len(self.sizes), len(self.crc32)}
        if lengths != {num_frames} or num_frames < 1:
            raise ValueError(f"{num_frames} frames, but lists of {sorted(lengths)}")
        if (self.sizes < 1).any() or (self.offsets[1:] < (self.offsets + self.sizes)[:-1]).any():
            raise ValueError("frames that overlap")
        if format == RAW and (self.sizes != self.height * self.width * CHANNELS).any():
            raise ValueError(f"raw frames of other sizes than {self.width}×{self.height} pixels have")


class PackIndex(os.PathLike):
    """An opened pack. A path of its videos is that of the pack joined with `PackedVideo.video`.

    Attributes:
        path: the pack's folder, which this object also stands for where a path is wanted.
        settings: what decided the frames.
        videos: by `PackedVideo.video`, in the order in which they were packed.
    """

    def __init__(self, path: Path, settings: PackSettings, videos: Mapping[str, PackedVideo]):
        self.path = path
        self.settings = settings
        self.videos = videos

    @classmethod
    def open(cls, path: str | Path) -> PackIndex:
        """Read the index of a pack, and check that its shards are there in full length.

        Raises:
            UserError: something is missing or damaged; the message names the file and says what to do.
        """
        path = Path(path)
        settings = read_settings(path)
        videos, rest = read_index(path, settings.format)
        if rest:
            raise UserError(
                f"{path / INDEX_FILE}: the last line is incomplete, so packing was interrupted: {PACK_AGAIN}"
            )
        if not videos:
            raise UserError(f"{path / INDEX_FILE} lists no video: {PACK_AGAIN}")
        check_shards(path, videos.values())
        return cls(path, settings, videos)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def find(self, path: str | Path) -> PackedVideo | None:
        """The video with such a path."""
        try:
            return self.videos.get(Path(path).relative_to(self.path).as_posix())
        except ValueError:
            return None

    def fingerprint(self, paths: Iterable[Path]) -> str:
        """A digest of the frames of some videos, in order; the same wherever in whichever shards they lie."""
        digest = hashlib.sha256()
        for path in paths:
            digest.update(self.find(path).sha256.encode())
        return f"{self.settings.format}, {digest.hexdigest()[:16]}"


def read_settings(path: Path) -> PackSettings:
    """The settings of a pack.

    Raises:
        UserError: they are missing or damaged.
    """
    file = path / SETTINGS_FILE
    try:
        return PackSettings.from_json(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{path} is not a pack of frames: it holds no {SETTINGS_FILE}. preprocess/pack_frames.py makes one"
        ) from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise UserError(
            f"{file} does not hold the settings of a pack ({error}): pack the videos anew to another folder"
        ) from error


def read_index(path: Path, format: str) -> tuple[dict[str, PackedVideo], int]:
    """The videos of a pack by their names, and the bytes of an incomplete line behind the last, 0 for none.

    Raises:
        UserError: the index is missing or a line is damaged.
    """
    file = path / INDEX_FILE
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is not a pack of frames: it holds no {INDEX_FILE}: {PACK_AGAIN}") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    videos: dict[str, PackedVideo] = {}
    *lines, rest = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            video = PackedVideo.from_line(line.decode("ascii"), format)
            if video.video in videos:
                raise ValueError(f"{video.video!r:.80} is there before")
        except ValueError as error:
            raise UserError(
                f"line {number} of {file} is damaged: {error}. Remove the line; to have its video again, {PACK_AGAIN}"
            ) from error
        videos[video.video] = video
    return videos, len(rest)


def check_shards(path: Path, videos: Iterable[PackedVideo]) -> None:
    """See that the shards are there, as long as the index says.

    Raises:
        UserError: one is not.
    """
    ends: dict[str, int] = {}
    for video in videos:
        ends[video.shard] = max(video.end, ends.get(video.shard, 0))
    for shard, end in ends.items():
        file = path / shard
        remedy = f"Copy it again, or remove the lines with {shard} from {INDEX_FILE} and {PACK_AGAIN}."
        try:
            found = file.stat().st_size
        except OSError as error:
            raise UserError(f"{file}, a shard of this pack, cannot be read: {error.strerror}. {remedy}") from error
        if found < end:
            raise UserError(f"{file} has {found} bytes, the index needs {end}: it is cut off. {remedy}")


def _whole_numbers(name: str, values: Any) -> np.ndarray:
    """A list of whole numbers as (n,) int64, or uint32 for checksums.

    Raises:
        ValueError: it is something else.
    """
    kind, limit = (np.uint32, 2**32) if name == "crc32" else (np.int64, 2**60)
    try:
        numbers = np.array(values if values else [0])
    except ValueError:  # lists of other lengths in it
        numbers = np.array(None)
    if not isinstance(values, list) or numbers.ndim != 1 or numbers.dtype.kind != "i":
        raise ValueError(f"{name} is not a list of numbers")
    if numbers.min() < 0 or numbers.max() >= limit:
        raise ValueError(f"{name} has numbers out of range")
    return numbers[: len(values)].astype(kind)
