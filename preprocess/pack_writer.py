"""Writing a pack of frames: its shards, its index, and what may be continued or written over.

`dataloaders/video/pack_index.py` says what a pack is.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import sync_folder, write_whole
from dataloaders.video.pack_index import (
    CHANNELS,
    FAILURES_FILE,
    INDEX_FILE,
    JPEG,
    SETTINGS_FILE,
    SHARD_NAME,
    TAR_BLOCK,
    PackedVideo,
    PackSettings,
    check_shards,
    read_index,
    read_settings,
)
from preprocess.jobs import Job


class OtherPack(UserError):
    """A pack of other settings, or of other files, than are to be packed: to have these, it is packed anew."""


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
        OtherPack: the folder holds frames with other settings or of other sources.
        UserError: it holds frames that nobody recorded, or what is damaged or cannot be read.
    """
    file, wanted = path / SETTINGS_FILE, settings.as_json()
    if not file.exists():
        if found := [*find_shards(path), *(name for name in [INDEX_FILE] if (path / name).exists())]:
            raise UserError(
                f"{path} holds {found[0]}, but no {SETTINGS_FILE} says how it was made: give another --output_root"
            )
        write_whole(file, lambda opened: opened.write(json.dumps(wanted).encode()))
    else:
        found = read_settings(path).as_json()
        wanted = {name: value for name, value in wanted.items() if name != "of" or name in found}  # older packs lack it
        if found != wanted:
            difference = f"{json.dumps(found)}, not {json.dumps(wanted)}"
            raise OtherPack(
                f"{file} says {difference}: give the same settings, for videos prepared in the same way, or another "
                "--output_root"
            )
    if not (path / INDEX_FILE).exists():
        if shards := find_shards(path):
            raise UserError(
                f"{path} holds {len(shards)} archives without their {INDEX_FILE}: copy it again, or remove them"
            )
        return {}
    videos, rest = read_index(path, settings.format)
    check_sources(path, jobs, videos)  # first: of a pack whose removal was interrupted, shards are missing
    check_shards(path, videos.values())
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
        OtherPack: one is another file than when it was packed, or would have the name of one that is packed.
    """
    targets = {Path(name).with_suffix("").as_posix(): name for name in videos}
    for job in jobs:
        before = targets.get(job.target.as_posix())
        if before is None:
            continue
        remedy = f"to pack it again, remove its line from {path / INDEX_FILE}; or give another --output_root"
        if before != job.name:
            raise OtherPack(f"{job.source} would be packed as {job.target}, which {before} is already: {remedy}")
        state, packed = job.source.stat(), videos[before]
        if (state.st_size, state.st_mtime_ns) != (packed.source_bytes, packed.source_mtime_ns):
            raise OtherPack(f"{job.source} has changed since it was packed (its size or time differs): {remedy}")
