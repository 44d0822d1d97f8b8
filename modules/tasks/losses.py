"""Training losses."""

from collections.abc import Sequence

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


def same_video_or_caption(video_ids: Sequence[str], captions: Sequence[str]) -> Tensor:
    """Pairs off the diagonal that show the same video or say the same: (B, B) bool, symmetric [ours]."""
    return _equal_pairs(video_ids) | _equal_pairs(captions)


def _equal_pairs(names: Sequence[str]) -> Tensor:
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    ids = torch.tensor([numbers[name] for name in names])
    return (ids[:, None] == ids) & ~torch.eye(len(ids), dtype=torch.bool)
