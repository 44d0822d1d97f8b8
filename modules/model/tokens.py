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


def extended_frames(real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which frames stand where in videos that are extended in time.

    Returns:
        Indices of (B, T), as (B, 1) and (B, T + 2); and (B, T + 1), 1 where a frame behind the first shows the last
        real one beyond it, else 0, of the default type.
    """
    batch, length = real.shape
    frames = torch.arange(-1, length + 1, device=real.device).clamp_min(0)
    videos = torch.arange(batch, device=real.device)[:, None]
    beyond = F.pad(~real, (0, 1), value=True).to(torch.get_default_dtype())
    return videos, torch.minimum(frames, real.sum(1, keepdim=True) - 1), beyond


def extend_in_time(tokens: Tensor, real: Tensor, frames: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
    """Repeat the first and the last real frame beyond the ends, over any padding.

    Args:
        tokens: (B, T, P, C).
        real: (B, T) bool; the real frames come first, at least one.
        frames: `extended_frames(real)` where somebody has it already.

    Returns:
        (B, T + 2, P, C): one frame before, the T frames with padding replaced, one behind.
    """
    return _ExtendInTime.apply(tokens, real, *(extended_frames(real) if frames is None else frames))


class _ExtendInTime(torch.autograd.Function):
    """A gradient of slices and one small product, where indexing would sort or add up frame by frame."""

    @staticmethod
    def forward(ctx, tokens: Tensor, real: Tensor, videos: Tensor, frames: Tensor, beyond: Tensor) -> Tensor:
        ctx.save_for_backward(real, videos, frames, beyond)
        return tokens[videos, frames]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        real, videos, frames, beyond = ctx.saved_tensors
        found = grad[:, 1:-1] * real[:, :, None, None]
        found[:, 0].add_(grad[:, 0])
        sums = torch.bmm(beyond.to(grad.dtype)[:, None], grad[:, 1:].flatten(2)).view(found[:, 0].shape)
        found[videos[:, 0], frames[:, -1]] += sums
        return found, None, None, None, None


def frame_differences(tokens: Tensor, real: Tensor) -> Tensor:
    """From each frame to the next: (B, T, P, C) → (B, T − 1, P, C), zero outside the video.

    Args:
        tokens: (B, T, P, C), T ≥ 2.
        real: (B, T) bool; the real frames come first.
    """
    return _FrameDifferences.apply(tokens, real)


class _FrameDifferences(torch.autograd.Function):
    """The gradient is again one of differences, written where it belongs."""

    @staticmethod
    def forward(ctx, tokens: Tensor, real: Tensor) -> Tensor:
        ctx.save_for_backward(real)
        return (tokens[:, 1:] - tokens[:, :-1]).mul_(real[:, 1:, None, None])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (real,) = ctx.saved_tensors
        between_zeros = F.pad(grad * real[:, 1:, None, None], (0, 0, 0, 0, 1, 1))  # (B, T + 1, P, C)
        return between_zeros[:, :-1] - between_zeros[:, 1:], None


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
