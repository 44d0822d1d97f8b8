"""Training losses."""

import torch
import torch.nn.functional as F
from torch import Tensor


def symmetric_contrastive_loss(similarity: Tensor, excluded: Tensor | None = None) -> Tensor:
    """Mean of text-to-video and video-to-text cross-entropy, the diagonal as targets.

    Args:
        similarity: (B, B), scaled similarities of captions (rows) and videos (columns).
        excluded: (B, B) bool, pairs that are no negatives; None for none. The diagonal must be False.

    Returns:
        A scalar.
    """
    if excluded is not None:
        similarity = similarity.masked_fill(excluded, float("-inf"))
    targets = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, targets) + F.cross_entropy(similarity.T, targets)) / 2


def same_video_or_caption(videos: Tensor, captions: Tensor) -> Tensor:
    """Pairs off the diagonal that show the same video or say the same [ours].

    Args:
        videos, captions: (B,) int64 each, a number for each video and each caption.

    Returns:
        (B, B) bool, symmetric.
    """
    same = (videos[:, None] == videos) | (captions[:, None] == captions)
    return same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
