"""Frames from a pack: what `VideoReader` does for video files, without decoding any video."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from dataloaders.video.decoding import BadVideoError
from dataloaders.video.pack_index import CHANNELS, RAW, PackedVideo, PackIndex
from dataloaders.video.sampling import FrameSampler


class PackReader:
    """Reads the sampled frames of packed videos; each is found at its offset and no other is touched.

    May be handed to data loader workers, by fork or pickling. Shards are opened when they are first needed and read by
    `os.pread`: forked processes share no position in them, and a shard that is cut off or lies on a failing disk is an
    error of that video, where a memory map would end the process by a signal. What is in the page cache costs a copy
    either way.
    """

    def __init__(self, index: PackIndex):
        self.index = index
        self._shards: dict[str, BinaryIO] = {}

    def read(self, path: str | Path, num_frames: int, sampler: FrameSampler) -> np.ndarray:
        """The sampled frames of a video: (n, H, W, 3) uint8 RGB, n at most `num_frames`.

        path: the pack's folder joined with the video's name in the index.

        Raises BadVideoError, with shard and frame, where the video is not in the pack or a frame is not what was
        packed.
        """
        video = self.index.find(path)
        if video is None:
            raise BadVideoError(path, f"it is not in the pack {self.index}")
        chosen = sampler(video.num_frames, num_frames)
        frames = np.empty((len(chosen), video.height, video.width, CHANNELS), dtype=np.uint8)
        for place, number in enumerate(chosen.tolist()):
            try:
                self._read_frame(video, number, frames[place])
            except ValueError as error:
                raise BadVideoError(path, str(error)) from error
        return frames

    def check(self, video: PackedVideo) -> str | None:
        """What is wrong with the stored bytes of a video, None for nothing."""
        digest = hashlib.sha256()
        try:
            for number in range(video.num_frames):
                digest.update(self._stored(video, number))
        except ValueError as error:
            return str(error)
        return None if digest.hexdigest() == video.sha256 else f"{video.shard}: its SHA-256 is not that in the index"

    def close(self) -> None:
        """Close the shards."""
        for file in self._shards.values():
            file.close()
        self._shards = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_shards": {}}

    def _read_frame(self, video: PackedVideo, number: int, into: np.ndarray) -> None:
        """A frame's pixels, into (H, W, 3) uint8; ValueError where they are not what was packed."""
        data = self._stored(video, number)
        if self.index.settings.format == RAW:
            into[:] = np.frombuffer(data, dtype=np.uint8).reshape(into.shape)
            return
        # frames of 298×224 and 398×224 a second on one CPU core: OpenCV 3,087, torchvision 3,064, Pillow 2,127
        try:
            decoded = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
        except cv2.error as error:
            raise ValueError(f"{place_of(video, number)}: its JPEG cannot be decoded: {error.err}") from error
        if decoded is None or decoded.shape != into.shape:
            found = "cannot be decoded" if decoded is None else f"has {decoded.shape[1]}×{decoded.shape[0]} pixels"
            raise ValueError(f"{place_of(video, number)}: its JPEG {found}")
        into[:] = decoded

    def _stored(self, video: PackedVideo, number: int) -> bytes:
        """A frame's bytes; ValueError where they are not those that were packed."""
        size, offset = int(video.sizes[number]), int(video.offsets[number])
        try:
            data = os.pread(self._open(video.shard), size, offset)
        except OSError as error:
            raise ValueError(f"{place_of(video, number)}: {error.strerror}") from error
        if len(data) < size:
            raise ValueError(f"{place_of(video, number)}: the shard ends before it")
        if zlib.crc32(data) != video.crc32[number]:
            raise ValueError(f"{place_of(video, number)}: its checksum is not that in the index")
        return data

    def _open(self, shard: str) -> int:
        """The descriptor of a shard, opened if it is not."""
        if shard not in self._shards:
            self._shards[shard] = (self.index.path / shard).open("rb", buffering=0)
        return self._shards[shard].fileno()


def place_of(video: PackedVideo, number: int) -> str:
    """Where a frame lies, for messages."""
    return f"{video.shard}: frame {number} of {video.num_frames} at byte {video.offsets[number]}"
