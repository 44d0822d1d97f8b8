"""Retrieval metrics: R@K, median and mean rank in both directions, ties by average rank."""

import numpy as np

RECALL_AT = (1, 5, 10)


def retrieval_metrics(similarity: np.ndarray, text_to_video: np.ndarray | None = None) -> dict[str, float]:
    """Metrics of both directions.

    Args:
        similarity: (N, M), captions by videos.
        text_to_video: (N,) int, the column of each caption's video; None for the diagonal of a square matrix.

    Returns:
        ``t2v_R1``, ``t2v_R5``, ``t2v_R10`` in percent, ``t2v_MdR`` and ``t2v_MnR`` as ranks from 1, and the same with
        ``v2t_``. A video with several captions counts by its best one.

    Raises:
        ValueError: if the shapes do not fit or a video has no caption.
        FloatingPointError: if a similarity is not a number.
    """
    if text_to_video is None:
        if similarity.shape[0] != similarity.shape[1]:
            raise ValueError(f"without text_to_video the matrix must be square, found {similarity.shape}")
        text_to_video = np.arange(len(similarity))
    if np.isnan(similarity).any():
        raise FloatingPointError("the similarity matrix holds values that are not numbers (NaN)")
    return {
        **_summary("t2v", text_to_video_ranks(similarity, text_to_video)),
        **_summary("v2t", video_to_text_ranks(similarity, text_to_video)),
    }


def text_to_video_ranks(similarity: np.ndarray, text_to_video: np.ndarray) -> np.ndarray:
    """Rank of each caption's video: 1 + the strictly better videos + half of the equal ones, (N,) float."""
    right = similarity[np.arange(len(similarity)), text_to_video][:, None]
    return 1 + (similarity > right).sum(1) + ((similarity == right).sum(1) - 1) / 2


def video_to_text_ranks(similarity: np.ndarray, text_to_video: np.ndarray) -> np.ndarray:
    """Rank of each video's best caption among the captions of other videos, ties as above: (M,) float.

    Raises:
        ValueError: if a video has no caption.
    """
    num_videos = similarity.shape[1]
    best = np.full(num_videos, -np.inf)
    np.maximum.at(best, text_to_video, similarity[np.arange(len(similarity)), text_to_video])
    if len(missing := np.setdiff1d(np.arange(num_videos), text_to_video)):
        raise ValueError(f"{len(missing)} videos have no caption, the first is number {missing[0]}")
    others = text_to_video[:, None] != np.arange(num_videos)  # (N, M)
    return 1 + (others & (similarity > best)).sum(0) + (others & (similarity == best)).sum(0) / 2


def _summary(direction: str, ranks: np.ndarray) -> dict[str, float]:
    recalls = {f"{direction}_R{k}": float((ranks <= k).mean() * 100) for k in RECALL_AT}
    return recalls | {f"{direction}_MdR": float(np.median(ranks)), f"{direction}_MnR": float(ranks.mean())}
