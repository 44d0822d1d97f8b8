"""Files that are written whole or not at all, and folders that one program at a time writes to."""

import contextlib
import csv
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file that is complete and on the disk before it takes the place of the one before.

    Raises:
        OSError: if that fails; the one before is unchanged.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # it takes up what little room there is
        raise


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, without which a new or renamed file may be gone when the machine is."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def csv_text(rows: Iterable[Sequence]) -> str:
    """Rows as CSV, a line each but where a cell has several."""
    lines = []
    for row in rows:
        buffer = io.StringIO(newline="")
        csv.writer(buffer).writerow(row)  # which ends with both, so that cells with either are quoted
        lines.append(buffer.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


@contextlib.contextmanager
def lock_folder(folder: Path, patience: float = 0.0, name: str = ".lock") -> Iterator[bool]:
    """Keep other programs that ask for the same from a folder; ends with the process, however that ends.

    Args:
        folder: gets a file of that name.
        patience: seconds to wait for another one to end.
        name: programs that ask for different ones are not kept from each other.

    Yields:
        False where the file system has no locks.

    Raises:
        BlockingIOError: another one holds it still.
    """
    if fcntl is None:
        yield False
        return
    with (folder / name).open("w") as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(min(0.5, patience))
            except OSError:  # a file system without locks
                locked = False
                break
        yield locked
