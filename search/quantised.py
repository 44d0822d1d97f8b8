"""Candidates for a query from faiss, for indices of more windows than an exact product can take.

Each window is kept as 4 bits for every two numbers of its randomly rotated embedding (product quantisation, Jégou et
al., TPAMI 2011, in the layout of André et al.'s fast scan), an eighth of what float16 takes. A query is compared with
all of them, and the best of these candidates are compared again exactly. No index that looks only at cells near a query
is used: texts lie apart from videos in CLIP's space, and the cells near a text miss more than those near a window.
docs/search.md has what is lost. faiss is an optional requirement (requirements-scale.txt).
"""

import contextlib
import os
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import sync_folder
from search.store import Rows, Stamp, Store, open_for_writing

LEAST = 1000  # windows, below which the exact product takes no time and a quantiser has nothing to learn from
TAIL = 0.05  # of the windows, which may have come since the file was made: they are compared exactly
TRAINED_ON = 65_536  # windows
NUMBERS = 2  # of an embedding that share 4 bits
AT_ONCE = 65_536  # windows
NEIGHBOURS = 4  # windows to either side of a candidate, which may belong to its moment


def import_faiss() -> ModuleType:
    """The library.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "--index faiss needs faiss: .venv/bin/python -m pip install -r requirements-scale.txt"
        ) from error
    return faiss


@dataclass(frozen=True)
class Quantised:
    """The quantised windows.

    Attributes:
        path, stamp: of the file. index: faiss' own, in which a window has its row's number.
    """

    path: Path
    stamp: Stamp
    index: Any

    def candidates(self, queries: np.ndarray, count: int, rows: Rows, neighbours: int = NEIGHBOURS) -> np.ndarray:
        """Places among the rows that are worth an exact look, increasing.

        Args:
            queries: (Q, E) float32, of any length: what is high for one of them is wanted.
            count: candidates for each query.
            rows: of the index, of which those that the file does not hold are all candidates.
            neighbours: to either side of each that are looked at with it.
        """
        _, found = self.index.search(queries, min(count, self.index.ntotal))  # (Q, count), -1 where there are fewer
        found = np.unique(found)
        places = np.searchsorted(rows.rows, found)
        there = places < len(rows.rows)
        there[there] = rows.rows[places[there]] == found[there]  # not those of videos that are gone
        near = places[there][:, None] + np.arange(-neighbours, neighbours + 1)
        newer = np.arange(np.searchsorted(rows.rows, self.index.ntotal), len(rows.rows))
        return np.unique(np.concatenate([np.clip(near, 0, len(rows.rows) - 1).ravel(), newer]))


def quantise(index_dir: Path) -> str:
    """Quantise the windows of an index, unless that is done but for a few, and say what was done.

    Raises:
        UserError: if faiss is not installed, or another program is writing to the index.
    """
    faiss = import_faiss()
    with open_for_writing(index_dir, {}) as store:
        return _quantise(store, faiss)


def _quantise(store: Store, faiss: ModuleType) -> str:
    embeddings, windows = store.embeddings(), store.rows().rows
    if len(windows) < LEAST:
        return f"{len(windows):,} windows are compared exactly also with --index faiss, which begins with {LEAST:,}"
    path = store.file("quantised")
    with contextlib.suppress(UserError):  # a file that is damaged is made anew
        if (there := read_quantised(store, None)) and there.index.ntotal >= (1 - TAIL) * len(embeddings):
            return f"{path} holds all but the newest windows"
    width = embeddings.shape[1]
    codes = width // gcd(width, NUMBERS)
    index = faiss.index_factory(width, f"RR{width},PQ{codes}x4fs", faiss.METRIC_INNER_PRODUCT)
    chosen = np.random.default_rng(0).choice(windows, min(len(windows), TRAINED_ON), replace=False)
    index.train(embeddings[np.sort(chosen)].astype(np.float32))
    for start in range(0, len(embeddings), AT_ONCE):
        index.add(embeddings[start : start + AT_ONCE].astype(np.float32))
    partial = path.with_suffix(".partial")
    faiss.write_index(index, str(partial))
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)
    return f"{len(embeddings):,} windows are quantised: {path}, {path.stat().st_size / 2**20:.0f} MiB"


def read_quantised(store: Store, before: Quantised | None) -> Quantised | None:
    """The quantised windows of an index; None if they were never made, or not since its files were written anew.

    Args:
        store: the index.
        before: what was read the last time, which is taken again if the file is still the same.

    Raises:
        UserError: if faiss is not installed, or cannot read the file.
    """
    faiss, path = import_faiss(), store.file("quantised")
    try:
        stamp = Stamp.of(path.stat())
        if before is not None and (before.path, before.stamp) == (path, stamp):
            return before
        return Quantised(path, stamp, faiss.read_index(str(path)))
    except FileNotFoundError:
        return None
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read by faiss: index again with --index faiss") from error
