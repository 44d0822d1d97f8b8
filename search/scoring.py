"""Scores of windows, the moments that they make, and whether anything stands out.

A window's similarity to a text is the cosine of their embeddings: an exact product, a block of windows at a time. What
a query asks for and what it should not be are put together as standard scores: how many standard deviations a window's
similarity lies above the mean over the index. What should not be counts where it is above that mean only.

Whether anything stands out is judged by the similarity of the best moment. Cosines of one model mean nothing to
another one, and the best of many windows is always high; so it is compared with the best that each of some generic
texts, things that are said of any video, reaches in the same index: how many of their standard deviations above their
mean it lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from search.store import Rows

BLOCK = 2048  # windows multiplied at a time, which as float32 stay in the processor's cache
MERGE = 0.8  # of the best window's score: neighbours above it belong to its moment
CANDIDATES = 50  # windows looked at for each moment that is wanted
MIN_CANDIDATES = 2000


@dataclass(frozen=True)
class Moment:
    """Neighbouring windows of a video.

    Attributes:
        first, last, best: places among the rows.
        score: of the best window.
    """

    first: int
    last: int
    best: int
    score: float


def similarities(embeddings: np.ndarray, rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Cosines of windows and queries, in float32.

    Args:
        embeddings: (N, E) float16, of which only a block at a time is in memory.
        rows: (n,) which of them, increasing.
        queries: (Q, E), unit length.

    Returns:
        (n, Q) float32.
    """
    found = np.empty((len(rows), len(queries)), np.float32)
    weights = torch.from_numpy(np.ascontiguousarray(queries.T, dtype=np.float32))  # (E, Q)
    room = torch.empty(BLOCK, embeddings.shape[1])  # once, as fresh memory costs time
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        whole = part[-1] - part[0] + 1 == len(part)
        block = embeddings[part[0] : part[-1] + 1] if whole else embeddings[part]
        product = room[: len(part)].copy_(torch.from_numpy(np.array(block))) @ weights
        found[start : start + BLOCK] = product.numpy()
    return found


def standard(scores: np.ndarray) -> np.ndarray:
    """(n,) scores in standard deviations above their mean; zeros where all are the same."""
    spread = float(scores.std())
    return (scores - scores.mean()) / spread if spread > 0 else np.zeros_like(scores)


def combine(wanted: Sequence[np.ndarray], unwanted: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) scores of windows by their similarities, each (n,), to what is wanted and to what is not."""
    return sum(map(standard, wanted)) - sum(np.maximum(standard(scores), 0) for scores in unwanted)


def find_moments(scores: np.ndarray, rows: Rows, allowed: np.ndarray | None, top: int) -> list[Moment]:
    """The best moments, best first.

    A moment is a window that is better than those around it, with the neighbours to either side that are nearly as
    good. What overlaps a moment is no moment of its own.

    Args:
        scores: (n,) of the windows.
        rows: of them.
        allowed: (n,) bool, the windows that may be found; None for all.
        top: moments at most.
    """
    places = np.arange(len(scores)) if allowed is None else np.flatnonzero(allowed)
    count = min(len(places), max(CANDIDATES * top, MIN_CANDIDATES))
    if count < len(places):
        places = places[np.argpartition(-scores[places], count - 1)[:count]]
    moments: list[Moment] = []
    taken: dict[int, list[tuple[float, float]]] = {}  # by video
    for place in places[np.lexsort((places, -scores[places]))].tolist():
        if len(moments) == top:
            break
        video, start, end = int(rows.videos[place]), rows.starts[place], rows.ends[place]
        if any(start < other_end and end > other_start for other_start, other_end in taken.get(video, ())):
            continue
        first, last = _extend(place, -1, scores, rows), _extend(place, 1, scores, rows)
        taken.setdefault(video, []).append((rows.starts[first], rows.ends[last]))
        moments.append(Moment(first, last, place, float(scores[place])))
    return moments


def _extend(place: int, step: int, scores: np.ndarray, rows: Rows) -> int:
    """The last window in one direction that belongs to the moment of a window."""
    bar = MERGE * scores[place]
    if scores[place] <= 0:  # nothing is near to what is below the mean
        return place
    here = place
    while (
        0 <= here + step < len(scores)
        and rows.videos[here + step] == rows.videos[place]
        and bar <= scores[here + step] <= scores[place]
    ):
        here += step
    return here


@dataclass(frozen=True)
class Judge:
    """What generic texts reach in an index.

    Attributes:
        mean, spread: of the similarity of each one's best window.
        threshold: standard deviations above the mean from which on something stands out.
    """

    mean: float
    spread: float
    threshold: float

    @classmethod
    def of(cls, embeddings: np.ndarray, rows: np.ndarray, texts: np.ndarray, threshold: float) -> "Judge":
        """Judge by generic texts.

        Args:
            embeddings, rows: as for `similarities`.
            texts: (K, E) unit length, K at least 2.
            threshold: of the result.
        """
        best = np.full(len(texts), -np.inf, np.float32)
        for start in range(0, len(rows), BLOCK):
            part = similarities(embeddings, rows[start : start + BLOCK], texts)
            best = np.maximum(best, part.max(axis=0))
        return cls(float(best.mean()), max(float(best.std()), 1e-6), threshold)

    def excess(self, similarity: float) -> float:
        """Standard deviations by which a similarity lies above the mean of what generic texts reach."""
        return (similarity - self.mean) / self.spread

    def stands_out(self, similarity: float) -> bool:
        """Whether it is more than what generic texts reach."""
        return self.excess(similarity) >= self.threshold
