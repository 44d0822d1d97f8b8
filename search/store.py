"""What an index folder holds, and how it stays whole whatever happens to the program that writes it.

- ``index.sqlite``: the settings, a row a video and a row a window.
- ``embeddings-N.f16``: (rows, E) float16, unit length, little endian; a window's row is in its table.
- ``pictures-N.bin``: the middle frames as JPEG, one behind the other.
- ``quantised-N.faiss``: the embeddings' file as faiss quantised it, where that was asked for; may be deleted.
- ``clips/``: what the page's server made for browsers; may be deleted at any time.
- ``parts/``: what a cluster has finished and is not in the tables yet (`search.cluster`); then it is removed.

A video is added in two steps. Its embeddings and pictures are appended to the two files and flushed to the disk; then
one transaction adds its rows and notes where the files end now: no reader looks behind that, and a writer that is
started again cuts off what lies there. What is removed stays in the files, which a reader may have mapped, until it is
a quarter of them; then they are written anew under the next number N, which one transaction makes the current one.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.files import lock_folder, sync_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DATABASE = "index.sqlite"
VERSION = 1
DTYPE = np.dtype("<f2")
ENDINGS = {"embeddings": ".f16", "pictures": ".bin", "quantised": ".faiss"}  # of the files, by kind
MAX_REMOVED = 0.25  # of the rows in the files
ROWS_AT_ONCE = 8192
UNIT = 0.01  # that a row's length may be off 1 in float16
PATIENCE = 2.0  # seconds for another program to leave the folder
WAIT = 30.0  # seconds for another program's transaction to end, which a reader of millions of rows makes long
SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE folders (id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT UNIQUE NOT NULL);
CREATE TABLE videos (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT UNIQUE NOT NULL, name TEXT NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, seconds REAL, problem TEXT
);
CREATE TABLE windows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, video INTEGER NOT NULL REFERENCES videos, row INTEGER UNIQUE NOT NULL,
    start REAL NOT NULL, end REAL NOT NULL, picture_at INTEGER NOT NULL, picture_size INTEGER NOT NULL
);
CREATE INDEX windows_of_video ON windows (video, row);
"""


class Stamp(NamedTuple):
    """By which a file that has changed is known: its size in bytes and its time of change in nanoseconds."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        """That of a file's status."""
        return cls(status.st_size, status.st_mtime_ns)

    @property
    def kilobytes(self) -> int:
        """The size, rounded up, of an empty file as well; in it progress is counted."""
        return max(1, -(-self.size // 1000))


@dataclass(frozen=True)
class Video:
    """A video of an index.

    Attributes:
        id: its number, never given again.
        path: absolute. name: from the folder that was indexed on, which is the name's first part.
        stamp: of the file that was indexed.
        seconds: None of a bad one. problem: why it is one; None of a good one.
    """

    id: int
    path: str
    name: str
    stamp: Stamp
    seconds: float | None
    problem: str | None


@dataclass(frozen=True)
class Window:
    """A window of an index.

    Attributes:
        id: its number, never given again. video: that of its video.
        row: of the embeddings; changes when the files are written anew.
        start, end: seconds from the video's first frame.
        picture_at, picture_size: bytes of the pictures' file.
    """

    id: int
    video: int
    row: int
    start: float
    end: float
    picture_at: int
    picture_size: int


@dataclass(frozen=True)
class Part:
    """What embedding a video gives.

    Attributes:
        seconds: of the video.
        bounds: (start, end) of its windows in seconds, in order.
        embeddings: (windows, E) float32, unit length.
        pictures: each window's middle frame as JPEG.
    """

    seconds: float
    bounds: Sequence[tuple[float, float]]
    embeddings: np.ndarray
    pictures: Sequence[bytes]


@dataclass(frozen=True)
class Rows:
    """All windows that can be found, in the order of their rows; those of a video follow each other.

    Attributes:
        rows: (n,) places in the embeddings' file, increasing.
        windows, videos: (n,) numbers.
        starts, ends: (n,) seconds.
    """

    rows: np.ndarray
    windows: np.ndarray
    videos: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def take(self, places: np.ndarray) -> "Rows":
        """Some of them, increasing."""
        return Rows(*(getattr(self, field.name)[places] for field in fields(self)))


class Store:
    """An index folder, opened for reading, or with `writing` for adding and removing."""

    def __init__(self, folder: Path, connection: sqlite3.Connection):
        self.folder = folder
        self._connection = connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """All that is read within is of one moment, also the files, while another program changes the index."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("COMMIT")

    # --- settings and tables --------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, str]:
        """What the index was made with, as texts."""
        return dict(self._connection.execute("SELECT name, value FROM settings"))

    @property
    def width(self) -> int:
        """E."""
        return int(self.settings["width"])

    @property
    def change(self) -> int:
        """A number that grows with every change."""
        return int(self.settings["change"])

    def folders(self) -> list[str]:
        """The folders that were indexed."""
        return [path for (path,) in self._connection.execute("SELECT path FROM folders ORDER BY path")]

    def videos(self) -> list[Video]:
        """All videos, also the bad ones."""
        query = "SELECT id, path, name, size, mtime_ns, seconds, problem FROM videos ORDER BY path"
        return [_video(row) for row in self._connection.execute(query)]

    def video(self, number: int) -> Video | None:
        """A video by its number."""
        query = "SELECT id, path, name, size, mtime_ns, seconds, problem FROM videos WHERE id = ?"
        row = self._connection.execute(query, (number,)).fetchone()
        return row and _video(row)

    def window(self, number: int) -> Window | None:
        """A window by its number."""
        query = "SELECT id, video, row, start, end, picture_at, picture_size FROM windows WHERE id = ?"
        row = self._connection.execute(query, (number,)).fetchone()
        return row and Window(*row)

    def window_at(self, video: int, seconds: float) -> Window | None:
        """The window of a video whose middle is nearest to a time; None if it has none."""
        query = (
            "SELECT id, video, row, start, end, picture_at, picture_size FROM windows WHERE video = ? "
            "ORDER BY abs((start + end) / 2 - ?), start LIMIT 1"
        )
        row = self._connection.execute(query, (video, seconds)).fetchone()
        return row and Window(*row)

    def rows(self) -> Rows:
        """All windows."""
        found = self._connection.execute("SELECT row, id, video, start, end FROM windows ORDER BY row")
        parts = [np.empty((0, 5))]
        while part := found.fetchmany(ROWS_AT_ONCE):  # a million rows of Python's numbers would take 300 MB
            parts.append(np.array(part, dtype=np.float64))
        table = np.concatenate(parts)
        rows, windows, videos = table[:, :3].T.astype(np.int64)
        return Rows(rows, windows, videos, table[:, 3].copy(), table[:, 4].copy())

    # --- files ----------------------------------------------------------------------------------------------

    def embeddings(self) -> np.ndarray:
        """(rows, E) float16, mapped from the file; those of removed videos are among them.

        Raises:
            UserError: if the file is gone or too short.
        """
        rows, _ = self.ends()
        if not rows:
            return np.zeros((0, self.width), DTYPE)
        path = self.file("embeddings")
        try:
            # the file is never written to this way; torch warns of arrays that nobody may write to
            return np.memmap(path, DTYPE, mode="c", shape=(rows, self.width))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not whole: {error}; delete {self.folder} and index again") from error

    def picture(self, window: Window) -> bytes:
        """A window's middle frame, JPEG.

        Raises:
            OSError: if the file is shorter.
        """
        with self.file("pictures").open("rb") as file:
            data = os.pread(file.fileno(), window.picture_size, window.picture_at)
        if len(data) < window.picture_size:
            raise OSError(f"{file.name} ends before the picture of window {window.id}")
        return data

    def ends(self) -> tuple[int, int]:
        """Rows of the embeddings' file and bytes of the pictures' that count."""
        settings = self.settings
        return int(settings["rows"]), int(settings["picture_bytes"])

    def file(self, kind: str) -> Path:
        """The present file of a kind: "embeddings", "pictures" or "quantised"."""
        return self.folder / f"{kind}-{self.settings['files']}{ENDINGS[kind]}"

    def is_growing(self) -> bool:
        """Whether a program is adding to the index now."""
        if fcntl is None:
            return False
        try:
            with (self.folder / ".lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # nobody has ever held it, or the file system has no locks
            return False
        return False

    def progress(self) -> tuple[int, int]:
        """Of the last run over the folders, or of one at work: videos done, and all of them."""
        settings = self.settings
        return int(settings.get("done", 0)), int(settings.get("total", 0))

    def problems(self) -> list[str]:
        """What is wrong with the index, a line each: in the database, and in the files that it counts on."""
        found = [
            f"{DATABASE}: {text}" for (text,) in self._connection.execute("PRAGMA integrity_check") if text != "ok"
        ]
        rows, picture_bytes = self.ends()
        table = self.rows()
        if len(table.rows) and table.rows[-1] >= rows:
            found.append(f"{DATABASE}: row {table.rows[-1]} of {rows}")
        for path, size in (
            (self.file("embeddings"), rows * self.width * DTYPE.itemsize),
            (self.file("pictures"), picture_bytes),
        ):
            there = path.stat().st_size if path.is_file() else 0
            if there < size:
                found.append(f"{path} has {there} bytes of {size}")
        if found:
            return [*found, f"delete {self.folder} and index again"]
        embeddings = self.embeddings()
        bad = {"rows of embeddings that are not of unit length": 0, "pictures that are no JPEG": 0}
        for start in range(0, len(table.rows), ROWS_AT_ONCE):
            block = embeddings[table.rows[start : start + ROWS_AT_ONCE]].astype(np.float32)
            bad["rows of embeddings that are not of unit length"] += int(
                (~(np.abs(np.linalg.norm(block, axis=1) - 1) < UNIT)).sum()
            )
        for at, size in self._connection.execute("SELECT picture_at, picture_size FROM windows"):
            bad["pictures that are no JPEG"] += not self._is_jpeg(at, size)
        return [f"{number:,} {what}: delete {self.folder} and index again" for what, number in bad.items() if number]

    def _is_jpeg(self, at: int, size: int) -> bool:
        with self.file("pictures").open("rb") as file:
            file.seek(at)
            data = file.read(size)
        return data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9"

    # --- writing --------------------------------------------------------------------------------------------

    def set(self, **values: object) -> None:
        """Note settings."""
        with self._transaction():
            self._note(values)

    def add_folder(self, path: str) -> None:
        """Remember a folder as indexed."""
        with self._transaction():
            self._connection.execute("INSERT OR IGNORE INTO folders (path) VALUES (?)", (path,))

    def add(self, path: str, name: str, stamp: Stamp, part: Part | str, **values: object) -> None:
        """Add a video, in place of what the index had of that path, with what embedding it gave or why it is bad.

        values: settings to note in the same transaction.
        """
        if isinstance(part, str):
            with self._transaction():
                self._remove([path])
                self._insert(path, name, stamp, None, part)
                self._note(values)
            return
        first, at = self.ends()
        _append(self.file("embeddings"), first * self.width * DTYPE.itemsize, part.embeddings.astype(DTYPE).tobytes())
        _append(self.file("pictures"), at, b"".join(part.pictures))
        with self._transaction():
            self._remove([path])
            video = self._insert(path, name, stamp, part.seconds, None)
            rows = []
            for place, ((start, end), picture) in enumerate(zip(part.bounds, part.pictures, strict=True)):
                rows.append((video, first + place, start, end, at, len(picture)))
                at += len(picture)
            self._connection.executemany(
                "INSERT INTO windows (video, row, start, end, picture_at, picture_size) VALUES (?, ?, ?, ?, ?, ?)", rows
            )
            self._note({"rows": first + len(rows), "picture_bytes": at, **values})

    def rename(self, names: Mapping[str, str]) -> None:
        """Give videos other names, by path."""
        if names:
            with self._transaction():
                pairs = [(name, path) for path, name in names.items()]
                self._connection.executemany("UPDATE videos SET name = ? WHERE path = ?", pairs)

    def remove(self, paths: Sequence[str]) -> None:
        """Forget videos."""
        if paths:
            with self._transaction():
                self._remove(paths)

    def tidy(self) -> None:
        """Write the files anew where much of them is of videos that are gone."""
        (count,) = self._connection.execute("SELECT count(*) FROM windows").fetchone()
        total, _ = self.ends()
        if total - count <= MAX_REMOVED * total:
            return
        before = [self.file(kind) for kind in ENDINGS]
        number = int(self.settings["files"]) + 1
        after = [self.folder / f"{kind}-{number}{ENDINGS[kind]}" for kind in ("embeddings", "pictures")]
        embeddings, changes, at = self.embeddings(), [], 0
        query = "SELECT id, video, row, start, end, picture_at, picture_size FROM windows ORDER BY row"
        with after[0].open("wb") as vectors, after[1].open("wb") as pictures:
            for row, found in enumerate(self._connection.execute(query).fetchall()):
                window = Window(*found)
                vectors.write(embeddings[window.row].tobytes())
                pictures.write(self.picture(window))
                changes.append((row, at, window.id))
                at += window.picture_size
            for file in (vectors, pictures):
                file.flush()
                os.fsync(file.fileno())
        sync_folder(self.folder)
        with self._transaction():
            # rows only become smaller, in order: none takes the place of one that is still to be moved
            self._connection.executemany("UPDATE windows SET row = ?, picture_at = ? WHERE id = ?", changes)
            self._note({"files": number, "rows": count, "picture_bytes": at})
        for path in before:  # a reader that has mapped one keeps it
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def _insert(self, path: str, name: str, stamp: Stamp, seconds: float | None, problem: str | None) -> int:
        return self._connection.execute(
            "INSERT INTO videos (path, name, size, mtime_ns, seconds, problem) VALUES (?, ?, ?, ?, ?, ?)",
            (path, name, *stamp, seconds, problem),
        ).lastrowid

    def _remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            self._connection.execute(
                "DELETE FROM windows WHERE video IN (SELECT id FROM videos WHERE path = ?)", (path,)
            )
            self._connection.execute("DELETE FROM videos WHERE path = ?", (path,))

    def _note(self, values: Mapping[str, object]) -> None:
        rows = [(name, str(value)) for name, value in values.items()]
        self._connection.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All that is done within, or nothing of it."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("UPDATE settings SET value = value + 1 WHERE name = 'change'")
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise


def read_store(folder: Path) -> Store:
    """Open an index for reading: no statement can write to it.

    Raises:
        UserError: if there is none.
    """
    if not (folder / DATABASE).is_file():
        raise UserError(f"{folder} holds no index; make one: bash scripts/search.sh index FOLDER --index_dir {folder}")
    store = Store(folder, _connect(folder))
    store._connection.execute("PRAGMA query_only = ON")
    _check_version(store)
    return store


@contextlib.contextmanager
def open_for_writing(folder: Path, settings: Mapping[str, Any]) -> Iterator[Store]:
    """Open an index for writing, or make one; one program at a time.

    Args:
        folder: of the index; made if it is not there.
        settings: of a new index, `width` among them. They are not compared with those of an old one.

    Raises:
        UserError: if another program is writing to it, or there is no room or right to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # a reader that asks whether somebody writes holds the lock for a moment
        with lock_folder(folder, patience=PATIENCE):
            connection = _connect(folder)
            store = Store(folder, connection)
            try:
                if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    for path in folder.glob("quantised-*"):  # of an index whose database is gone
                        path.unlink()
                    _create(connection, settings)
                _check_version(store)
                _cut_off(store)
                yield store
            finally:
                store.close()
    except BlockingIOError as error:
        raise UserError(f"another program is writing to the index {folder}: wait until it has ended") from error


def _create(connection: sqlite3.Connection, settings: Mapping[str, Any]) -> None:
    values = {"version": VERSION, "change": 0, "files": 0, "rows": 0, "picture_bytes": 0, **settings}
    rows = "".join(f"INSERT INTO settings VALUES ({_quoted(k)}, {_quoted(v)});" for k, v in values.items())
    connection.executescript(f"BEGIN IMMEDIATE;{SCHEMA}{rows}COMMIT;")


def _quoted(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def _connect(folder: Path) -> sqlite3.Connection:
    # what threads share is guarded by their owner
    connection = sqlite3.connect(folder / DATABASE, timeout=WAIT, isolation_level=None, check_same_thread=False)
    with _said_of(folder):
        connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextlib.contextmanager
def _said_of(folder: Path) -> Iterator[None]:
    """Raises UserError where the database cannot be read."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise UserError(f"{folder / DATABASE} is held by another program: try again") from error
        raise UserError(f"{folder / DATABASE} is no index: {error}; delete {folder} and index again") from error


def _check_version(store: Store) -> None:
    with _said_of(store.folder):
        version = store.settings.get("version")
    if version != str(VERSION):
        raise UserError(f"{store.folder} holds an index of version {version}, not {VERSION}: delete it and index again")


def _cut_off(store: Store) -> None:
    """Remove what a writer that was killed has left in the files and beside them."""
    rows, picture_bytes = store.ends()
    ends = {store.file("embeddings"): rows * store.width * DTYPE.itemsize, store.file("pictures"): picture_bytes}
    for path, end in ends.items():
        size = path.stat().st_size if path.exists() else 0
        if size < end:
            raise UserError(f"{path} has {size} bytes of {end}: delete {store.folder} and index again")
        with path.open("ab") as file:
            file.truncate(end)
    kept = {store.file(kind) for kind in ENDINGS}
    for kind in ENDINGS:
        for path in store.folder.glob(f"{kind}-*.*"):
            if path not in kept:
                path.unlink()


def _append(path: Path, at: int, data: bytes) -> None:
    """Write behind what counts of a file, and wait until it is on the disk."""
    with path.open("r+b") as file:
        file.truncate(at)
        file.seek(at)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _video(row: tuple) -> Video:
    number, path, name, size, mtime_ns, seconds, problem = row
    return Video(number, path, name, Stamp(size, mtime_ns), seconds, problem)
