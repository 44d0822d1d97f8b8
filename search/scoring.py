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
from torch.nn import functional

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
        (n, Q) float32, each query's next to each other in memory.
    """
    found = np.empty((len(queries), len(rows)), np.float32)
    weights = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))  # (Q, E)
    room = torch.empty(BLOCK, embeddings.shape[1])  # once, as fresh memory costs time
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        whole = part[-1] - part[0] + 1 == len(part)
        block = embeddings[part[0] : part[-1] + 1] if whole else embeddings[part]
        # of a plain product with two queries torch's matrix product would take eight times as long
        product = functional.linear(room[: len(part)].copy_(torch.from_numpy(block)), weights)
        found[:, start : start + BLOCK] = product.numpy().T
    return found.T


@dataclass(frozen=True)
class Scale:
    """What is usual in an index.

    Attributes:
        mean, spread: (Q,) of its windows' similarities to each query, spread as a standard deviation.
    """

    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, similarities: np.ndarray) -> "Scale":
        """That of (n, Q) similarities, of all windows or of a sample of them."""
        columns = similarities.T  # of which each is summed pairwise, as a sum over the first axis is not
        return cls(np.array([column.mean() for column in columns]), np.array([column.std() for column in columns]))

    def standard(self, similarities: np.ndarray) -> np.ndarray:
        """(n, Q) similarities in standard deviations above the mean; zeros where all are the same."""
        return (similarities - self.mean) * self.weights

    @property
    def weights(self) -> np.ndarray:
        """(Q,) of a query's similarities in a score."""
        return np.divide(1, self.spread, out=np.zeros_like(self.spread), where=self.spread > 0)


def combine(similarities: np.ndarray, wanted: int, scale: Scale) -> np.ndarray:
    """(n,) scores of windows by their (n, Q) similarities, first to the queries that are wanted, then to those not."""
    scores = scale.standard(similarities)
    return scores[:, :wanted].sum(axis=1) - np.maximum(scores[:, wanted:], 0).sum(axis=1)


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
        spans = taken.setdefault(video, [])
        first, last = (_extend(place, step, scores, rows, allowed, spans) for step in (-1, 1))
        spans.append((rows.starts[first], rows.ends[last]))
        moments.append(Moment(first, last, place, float(scores[place])))
    return moments


def _extend(
    place: int,
    step: int,
    scores: np.ndarray,
    rows: Rows,
    allowed: np.ndarray | None,
    taken: Sequence[tuple[float, float]],
) -> int:
    """The last window in one direction that belongs to the moment of a window, and to none whose span is taken."""
    bar = MERGE * scores[place]
    if scores[place] <= 0:  # nothing is near to what is below the mean
        return place
    here = place
    while (
        0 <= here + step < len(scores)
        and rows.videos[here + step] == rows.videos[place]
        and rows.starts[max(here, here + step)] <= rows.ends[min(here, here + step)]  # of candidates there are gaps
        and bar <= scores[here + step] <= scores[place]
        and (allowed is None or allowed[here + step])
        and not any(rows.starts[here + step] < end and rows.ends[here + step] > start for start, end in taken)
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
            embeddings: as for `similarities`. rows: as there, of all windows, or of those that may be the best.
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
