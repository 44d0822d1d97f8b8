"""Retrieval metrics: R@K, median and mean rank in both directions, ties by average rank.

They come from a similarity matrix or, in blocks and without ever holding that matrix, from embeddings. Two products of
the same embeddings may differ in the last bit, and even one product may give equal embeddings unequal similarities,
by where in the matrix they stand. So a right answer is compared only with similarities out of its own product, and
those of a repeated embedding are copied from its first occurrence.

Where a video has several captions, each of them looks for the video. In the other direction a video's similarity to
another is the maximum over that one's captions, and it is ranked among videos, as CLIP4Clip evaluates; or, by choice,
its best caption is ranked among the captions of others. A rank of 1 is the same in both.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean

import numpy as np

from common.progress import Progress

logger = logging.getLogger("stop")

RECALL_AT = (1, 5, 10)
BLOCK_BYTES = 2**28  # of similarities held at a time; smaller ones make the matrix product slower
COMPARED_AT_ONCE = 2**20  # similarities, so that what the comparisons leave stays in the processor's cache
PROGRESS_DELAY = 5.0  # seconds
V2T_RANKS = ("videos", "captions")  # among what a video that looks for its captions is ranked
DECIMALS = 4  # of percentages and ranks in files

LEGEND = (
    "R1, R5, R10: percent of queries with the right answer among the first 1, 5, 10; "
    "MdR, MnR: median and mean rank of the right answer, 1 is best; "
    "t2v: texts look for their video, v2t: videos look for one of their texts"
)


def percent(hits: np.ndarray) -> float:
    """How many of (n,) bool are true, in percent, n at least 1.

    From integers: 100 times a mean is off by a bit, and 81.4 becomes 81.39999999999999.
    """
    return 100 * int(hits.sum()) / len(hits)


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as files hold them; decisions are made on the exact ones."""
    return {name: round(value, DECIMALS) for name, value in metrics.items()}


def mean_metrics(of_sets: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over sets of each metric; the sets, at least one, count alike."""
    return {name: fmean(metrics[name] for metrics in of_sets) for name in of_sets[0]}


@dataclass(frozen=True)
class Ranking:
    """What the queries of one direction found, (Q,) each, in the order of the queries.

    Attributes:
        ranks: float, of the right answer from 1: 1 + the strictly better candidates + half of the equal ones.
        right: int, the right candidate; of several the best, of equally good ones the first.
        first: int, the candidate that is found first; `right` where its rank is 1, of equals the first.
        right_similarity, first_similarity: theirs.
    """

    ranks: np.ndarray
    right: np.ndarray
    first: np.ndarray
    right_similarity: np.ndarray
    first_similarity: np.ndarray

    @classmethod
    def join(cls, parts: Sequence["Ranking"]) -> "Ranking":
        """The queries of several, one behind the other."""
        columns = ([getattr(part, column.name) for part in parts] for column in fields(cls))
        return cls(*map(np.concatenate, columns))

    def rows(self) -> Iterator[tuple[float, int, int, float, float]]:
        """The attributes of each query, as numbers of Python."""
        return zip(*(getattr(self, column.name).tolist() for column in fields(self)), strict=True)


def retrieval_metrics(
    similarity: np.ndarray, text_to_video: np.ndarray | None = None, v2t_ranks: str = "videos"
) -> dict[str, float]:
    """The `summary` of what `rank` finds."""
    return summary(rank(similarity, text_to_video, v2t_ranks))


def retrieval_metrics_of_embeddings(
    text: np.ndarray,
    video: np.ndarray,
    text_to_video: np.ndarray | None = None,
    block_bytes: int = BLOCK_BYTES,
    v2t_ranks: str = "videos",
) -> dict[str, float]:
    """The `summary` of what `rank_embeddings` finds."""
    return summary(rank_embeddings(text, video, text_to_video, block_bytes, v2t_ranks))


def summary(found: Mapping[str, Ranking]) -> dict[str, float]:
    """Metrics of rankings, by the name of their direction.

    Returns:
        For each direction, ``t2v`` for one: ``t2v_R1``, ``t2v_R5``, ``t2v_R10`` in percent, and the median ``t2v_MdR``
        and the mean ``t2v_MnR`` of its ranks.
    """
    metrics = {}
    for direction, ranking in found.items():
        metrics |= {f"{direction}_R{k}": percent(ranking.ranks <= k) for k in RECALL_AT}
        metrics |= {
            f"{direction}_MdR": float(np.median(ranking.ranks)),
            f"{direction}_MnR": float(ranking.ranks.mean()),
        }
    return metrics


def rank(
    similarity: np.ndarray, text_to_video: np.ndarray | None = None, v2t_ranks: str = "videos"
) -> dict[str, Ranking]:
    """Rankings of both directions.

    Args:
        similarity: (N, M), captions by videos.
        text_to_video: (N,) int, the column of each caption's video; None for the diagonal of a square matrix.
        v2t_ranks: one of `V2T_RANKS`, which differ where a video has several captions.

    Returns:
        ``t2v``, in which N captions look for their video among M, and ``v2t``, in which M videos look among N captions
        for one of theirs. A video's rank is that of its best caption: among the best ones of each other video, or with
        ``captions`` among all captions of other videos. Candidates of ``v2t`` are captions with both.

    Raises:
        ValueError: if the shapes do not fit, a video has no caption, or there is no such choice.
        FloatingPointError: if a similarity is not a number.
    """
    text_to_video = _checked(text_to_video, *similarity.shape)
    by_video = _answers_of_videos(text_to_video, similarity.shape[1])
    return {
        "t2v": _rank(similarity, np.arange(len(similarity)), text_to_video),
        "v2t": _rank(similarity.T, *by_video, _groups(by_video, similarity.shape[1], v2t_ranks)),
    }


def rank_embeddings(
    text: np.ndarray,
    video: np.ndarray,
    text_to_video: np.ndarray | None = None,
    block_bytes: int = BLOCK_BYTES,
    v2t_ranks: str = "videos",
    progress: bool = False,
) -> dict[str, Ranking]:
    """Rankings of both directions from embeddings, whose dot products are the similarities.

    Equal embeddings (to the last bit) tie exactly. A set whose similarities fit in a block takes one matrix product;
    a larger one takes two, captions by videos and videos by captions, in blocks of whole rows.

    Args:
        text: (N, E) float32 or float64. video: (M, E), the same.
        text_to_video: (N,) int, the row of each caption's video; None if they correspond one to one.
        block_bytes: of similarities to hold at a time; at least one row of them is. Repeated embeddings may take as
            much again.
        v2t_ranks: as of `rank`.
        progress: show how far it is if it takes longer than a few seconds.

    Returns:
        What `rank` does.

    Raises:
        ValueError: as of `rank`.
        FloatingPointError: if a similarity is not a number.
    """
    if text.ndim != 2 or video.ndim != 2 or text.shape[1] != video.shape[1]:
        raise ValueError(f"embeddings must be (N, E) and (M, E), found {text.shape} and {video.shape}")
    text_to_video = _checked(text_to_video, len(text), len(video))
    by_video = _answers_of_videos(text_to_video, len(video))  # before the long part, as it may refuse
    groups = _groups(by_video, len(video), v2t_ranks)
    row_bytes = len(video) * np.result_type(text, video).itemsize
    if len(text) * row_bytes <= block_bytes:
        similarity = text @ video.T
        _copy_repeated(similarity, _repeated_rows(video))
        _copy_repeated(similarity.T, _repeated_rows(text))
        return rank(similarity, text_to_video, v2t_ranks)
    total = len(text) + len(video)
    with Progress(
        total, "ranking", "row", "rows", say=logger.info, shown=progress, leave=False, delay=PROGRESS_DELAY
    ) as counter:
        t2v = _rank_in_blocks(text, video, (np.arange(len(text)), text_to_video), block_bytes, counter)
        v2t = _rank_in_blocks(video, text, by_video, block_bytes, counter, groups)
    return {"t2v": t2v, "v2t": v2t}


def _checked(text_to_video: np.ndarray | None, num_texts: int, num_videos: int) -> np.ndarray:
    """The video of each caption, (num_texts,) int.

    Raises:
        ValueError: if it is not that.
    """
    if text_to_video is None:
        if num_texts != num_videos:
            raise ValueError(
                f"without text_to_video the matrix must be square, found {num_texts} captions and {num_videos} videos"
            )
        return np.arange(num_texts)
    text_to_video = np.asarray(text_to_video)
    if text_to_video.shape != (num_texts,):
        raise ValueError(f"text_to_video must name a video for {num_texts} captions, found {text_to_video.shape}")
    if ((text_to_video < 0) | (text_to_video >= num_videos)).any():
        raise ValueError(f"text_to_video names videos that are not among the {num_videos}")
    return text_to_video


def _answers_of_videos(text_to_video: np.ndarray, num_videos: int) -> tuple[np.ndarray, np.ndarray]:
    """Videos, rising, and their captions: (N,) int each.

    Raises:
        ValueError: if a video has no caption.
    """
    if len(missing := np.setdiff1d(np.arange(num_videos), text_to_video)):
        raise ValueError(f"{len(missing)} videos have no caption, the first is number {missing[0]}")
    order = np.argsort(text_to_video, kind="stable")
    return text_to_video[order], order


def _groups(
    by_video: tuple[np.ndarray, np.ndarray], num_videos: int, v2t_ranks: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """The groups of `_rank`, of captions: those of a video, of which the best counts; None where each one counts.

    Args:
        by_video: as of `_answers_of_videos`.

    Raises:
        ValueError: if `v2t_ranks` is none of `V2T_RANKS`.
    """
    if v2t_ranks not in V2T_RANKS:
        raise ValueError(f"v2t_ranks must be one of {', '.join(V2T_RANKS)}, found {v2t_ranks!r}")
    videos, captions = by_video
    if v2t_ranks == "captions" or len(captions) == num_videos:
        return None
    return captions, np.searchsorted(videos, np.arange(num_videos))


def _rank_in_blocks(
    queries: np.ndarray,
    candidates: np.ndarray,
    answers: tuple[np.ndarray, np.ndarray],
    block_bytes: int,
    progress: Progress,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> Ranking:
    """As `_rank`, each query compared within one product of a block of queries and all candidates.

    Args:
        queries: (Q, E). candidates: (C, E).
        answers: queries, rising, and their right candidates, (P,) int each.
        block_bytes: of similarities to hold at a time.
        progress: counts the queries.
        groups: as of `_rank`.
    """
    rows, columns = answers
    repeated = _repeated_rows(candidates)
    dtype = np.result_type(queries, candidates)
    size = max(1, block_bytes // (dtype.itemsize * len(candidates)))
    product = np.empty((min(size, len(queries)), len(candidates)), dtype)  # once, as fresh memory costs time
    parts = []
    for start in range(0, len(queries), size):
        block = queries[start : start + size]
        similarity = np.matmul(block, candidates.T, out=product[: len(block)])
        _copy_repeated(similarity, repeated)
        low, high = np.searchsorted(rows, (start, start + len(block)))
        parts.append(_rank(similarity, rows[low:high] - start, columns[low:high], groups))
        progress.update(len(block))
    return Ranking.join(parts)


def _repeated_rows(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows equal to an earlier one, and the first of these: two int arrays of one length."""
    _, kind, counts = np.unique(embeddings[:, 0], return_inverse=True, return_counts=True)
    suspects = np.flatnonzero(counts[kind] > 1)  # the first number of a row tells most of them apart, and fast
    seen: dict[bytes, int] = {}
    firsts = np.array([seen.setdefault(embeddings[row].tobytes(), row) for row in suspects.tolist()], dtype=int)
    repeated = firsts != suspects
    return suspects[repeated], firsts[repeated]


def _copy_repeated(similarity: np.ndarray, repeated: tuple[np.ndarray, np.ndarray]) -> None:
    """Give the columns of repeated embeddings, as of `_repeated_rows`, the similarities of their first, in place."""
    columns, firsts = repeated
    if len(columns):
        similarity[:, columns] = similarity[:, firsts]


def _rank(
    similarity: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> Ranking:
    """Rank of each query's best right answer among the candidates that are not right, ties by average rank.

    Args:
        similarity: (Q, C), queries by candidates.
        rows, columns: (P,) int, where the right answers stand, by rising row, at least one in each.
        groups: candidates of which the best alone counts, of each group: all candidates, (C,) int, those of a group
            next to each other, and where each group begins, (G,) int. The right answers of a query are one group. None
            where each candidate counts.

    Raises:
        FloatingPointError: if a similarity is not a number.
    """
    queries = np.arange(len(similarity))
    answers = similarity[rows, columns]
    starts = np.searchsorted(rows, queries)
    best = np.maximum.reduceat(answers, starts)
    is_best = answers == best[rows]
    equal_right = np.add.reduceat(is_best, starts, dtype=np.int64)  # no right answer is better
    ranks, first, first_similarity = np.empty(len(similarity)), np.empty(len(similarity), int), best.copy()
    if groups is not None:
        equal_right = np.ones_like(equal_right)
    size = max(1, COMPARED_AT_ONCE // max(1, similarity.shape[1]))
    for start in range(0, len(similarity), size):
        part = slice(start, start + size)
        values, threshold = similarity[part], best[part, None]
        if np.isnan(values.max()):  # without a temporary of the block's size
            raise FloatingPointError("the similarity matrix holds values that are not numbers (NaN)")
        counted = values if groups is None else np.maximum.reduceat(values[:, groups[0]], groups[1], axis=1)
        better = (counted > threshold).sum(1, dtype=np.int32)  # half the time of int64
        equal = (counted == threshold).sum(1, dtype=np.int32) - equal_right[part]
        ranks[part] = 1 + better + equal / 2
        others = np.flatnonzero(ranks[part] > 1)  # of the rest it is the right one
        first[start + others] = values[others].argmax(1)
        first_similarity[start + others] = values[others, first[start + others]]
    at_best = np.flatnonzero(is_best)
    right = columns[at_best[np.searchsorted(rows[at_best], queries)]]
    return Ranking(ranks, right, np.where(ranks > 1, first, right), best, first_similarity)
