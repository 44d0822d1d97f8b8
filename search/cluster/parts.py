"""Parts of the list of videos, and the files of those that are finished."""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.files import write_whole
from search.store import DTYPE, Part, Stamp

PARTS = "parts"  # folder of an index
MEGA = 10**6


class Listed(NamedTuple):
    """A video of the list."""

    path: str
    stamp: Stamp


def is_there(video: Listed) -> bool:
    """Whether a machine has a file of a video's size; times of change may differ where a disk is mounted."""
    try:
        return os.stat(video.path).st_size == video.stamp.size
    except OSError:
        return False


@dataclass(frozen=True, eq=False)
class ListPart:
    """A part of the list of videos; equal to itself alone."""

    videos: tuple[Listed, ...]

    def name(self, identity: dict[str, Any]) -> str:
        """By which its files are known."""
        return hashlib.sha256(json.dumps([identity, self.videos], sort_keys=True).encode()).hexdigest()[:24]

    @property
    def kilobytes(self) -> int:
        """Of its videos."""
        return sum(video.stamp.kilobytes for video in self.videos)


def cut(videos: Sequence[Listed], megabytes: float) -> list[ListPart]:
    """Cut a list into parts: each takes the next videos, in order, while they have no more than `megabytes` together.

    A video that has more is a part of its own.
    """
    parts: list[list[Listed]] = []
    size = 0.0
    for video in videos:
        size += video.stamp.size
        if not parts or size > megabytes * MEGA:
            parts.append([])
            size = video.stamp.size
        parts[-1].append(video)
    return [ListPart(tuple(part)) for part in parts]


class PartFiles:
    """The finished parts in an index folder that were made under one identity; see `Recipe.identity`."""

    def __init__(self, index_dir: Path, identity: dict[str, Any]):
        self._folder, self._identity = index_dir / PARTS, identity

    def finished(self) -> Iterator[tuple[ListPart, dict[str, str]]]:
        """The parts, each with its bad videos: path and reason."""
        for path, part, failures in records(self._folder):
            embeddings_file, failures_file = self._files(part)
            if path == failures_file and embeddings_file.is_file():
                yield part, failures

    def write(self, part: ListPart, results: Sequence[Part | str]) -> None:
        """Keep what came of a part's videos, in their order."""
        self._folder.mkdir(exist_ok=True)
        good = [result for result in results if isinstance(result, Part)]
        pictures = [picture for result in good for picture in result.pictures]
        arrays = {
            "seconds": np.array([result.seconds for result in good], dtype=np.float64),
            "windows": np.array([len(result.pictures) for result in good], dtype=np.int64),
            "bounds": np.array([span for result in good for span in result.bounds], dtype=np.float64).reshape(-1, 2),
            "embeddings": np.concatenate([np.zeros((0, 0))] if not good else [result.embeddings for result in good]),
            "picture_sizes": np.array([len(picture) for picture in pictures], dtype=np.int64),
            "pictures": np.frombuffer(b"".join(pictures), dtype=np.uint8),
        }
        arrays["embeddings"] = arrays["embeddings"].astype(DTYPE)  # as the index has them
        paired = zip(part.videos, results, strict=True)
        failures = {video.path: result for video, result in paired if isinstance(result, str)}
        record = json.dumps({"videos": part.videos, "failures": failures}, indent=1, ensure_ascii=False)
        embeddings_file, failures_file = self._files(part)
        write_whole(embeddings_file, lambda file: np.savez(file, **arrays))
        write_whole(failures_file, lambda file: file.write(record.encode()))

    def read(self, part: ListPart) -> dict[Listed, Part | str]:
        """What came of the videos of a finished part.

        Raises:
            UserError: if its files are damaged.
        """
        embeddings_file, failures_file = self._files(part)
        try:
            failures = json.loads(failures_file.read_text(encoding="utf-8"))["failures"]
            with np.load(embeddings_file, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            folder = self._folder
            raise UserError(f"{embeddings_file} is not whole: {error}; delete {folder} and index again") from error
        ends = np.cumsum(arrays["picture_sizes"]).tolist()
        data = arrays["pictures"].tobytes()
        pictures = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        bounds = [tuple(span) for span in arrays["bounds"].tolist()]
        results, at, place = {}, 0, 0
        for video in part.videos:
            if video.path in failures:
                results[video] = failures[video.path]
                continue
            rows = slice(at, at := at + int(arrays["windows"][place]))
            seconds = float(arrays["seconds"][place])
            results[video] = Part(seconds, bounds[rows], arrays["embeddings"][rows], pictures[rows])
            place += 1
        return results

    def remove(self, part: ListPart) -> None:
        """Forget a finished part."""
        for path in reversed(self._files(part)):
            path.unlink(missing_ok=True)

    def _files(self, part: ListPart) -> tuple[Path, Path]:
        name = part.name(self._identity)
        return self._folder / f"{name}.npz", self._folder / f"{name}.failures.json"


def records(folder: Path) -> Iterator[tuple[Path, ListPart, dict[str, str]]]:
    """Of a folder of finished parts, under whatever identity: each one's second file and what it says."""
    for path in sorted(folder.glob("*.failures.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no part of ours
            record = json.loads(path.read_text(encoding="utf-8"))
            part = ListPart(tuple(Listed(name, Stamp(*stamp)) for name, stamp in record["videos"]))
            yield path, part, record["failures"]


def remove_parts(index_dir: Path, needed: Callable[[Listed], bool]) -> None:
    """Remove the finished parts in an index folder, under whatever identity, no video of which is needed any more."""
    folder = index_dir / PARTS
    if folder.is_dir():
        kept = {path.name.split(".")[0] for path, part, _ in records(folder) if any(map(needed, part.videos))}
        for path in folder.iterdir():
            if path.name.split(".")[0] not in kept:
                path.unlink()
        if not kept:
            folder.rmdir()
