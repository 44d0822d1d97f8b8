"""Helpers for tokens on a grid over time: (B, T, P, C), P = G·G patches of T frames."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def real_frames(num_frames: Tensor, length: int) -> Tensor:
    """Which frames are real and which padding: (B,) int → (B, length) bool."""
    return torch.arange(length, device=num_frames.device) < num_frames[:, None]


def merge_pairs(values: Tensor, sizes: Tensor) -> Tensor:
    """Neighbouring frames merged in pairs: the mean weighted by how many frames each stands for [ours].

    Args:
        values: (B, T, …); an odd last frame stays alone.
        sizes: (B, T), 0 for padding; a pair of padding becomes zero.

    Returns:
        (B, ⌈T/2⌉, …).
    """
    first, second = values[:, ::2], values[:, 1::2]
    sizes = sizes.to(values.dtype).view(*sizes.shape, *[1] * (values.ndim - 2))
    weights = sizes[:, ::2].clone()
    pairs = second.shape[1]
    together = weights.clone()
    together[:, :pairs] += sizes[:, 1::2]
    share = weights / together.clamp_min(1)
    merged = first * share
    merged[:, :pairs] += second * (sizes[:, 1::2] / together[:, :pairs].clamp_min(1))
    return merged


def merge_sizes(sizes: Tensor) -> Tensor:
    """How many frames each of the merged ones stands for: (B, T) → (B, ⌈T/2⌉)."""
    return F.pad(sizes, (0, sizes.shape[1] % 2)).unflatten(1, (-1, 2)).sum(2)


def extend_in_time(tokens: Tensor, real: Tensor) -> Tensor:
    """Repeat the first and the last real frame beyond the ends, over any padding.

    Args:
        tokens: (B, T, P, C).
        real: (B, T) bool; the real frames come first, at least one.

    Returns:
        (B, T + 2, P, C): one frame before, the T frames with padding replaced, one behind.
    """
    last = tokens[torch.arange(len(tokens), device=tokens.device), real.sum(1) - 1]  # (B, P, C)
    filled = torch.where(real[:, :, None, None], tokens, last[:, None])
    return torch.cat([filled[:, :1], filled, filled[:, -1:]], dim=1)


def grid_conv3d(conv: nn.Conv3d, tokens: Tensor, grid: int) -> Tensor:
    """Apply a 3D convolution over time and the patch grid.

    The tokens' memory is already in channels-last order, which depthwise convolutions want; only the view changes.

    Args:
        conv: from C to C′ channels, preserving the grid.
        tokens: (B, T, P, C).
        grid: G, with P = G·G.

    Returns:
        (B, T′, P, C′).
    """
    volume = tokens.unflatten(2, (grid, grid)).permute(0, 4, 1, 2, 3)  # (B, C, T, G, G)
    return conv(volume).permute(0, 2, 3, 4, 1).flatten(2, 3)  # (B, T′, P, C′)
