"""Inter-frame temporal prompting: tokens inserted between frames where much changes (paper, section 3).

Symbols: Δh differences, W^t frame_variation, N^t num_temporal_prompts, p^t temporal_prompts, N^t(·) dynamics, P^t
prompter. Gap i lies between frame i and frame i + 1; a video of n real frames has n − 1 gaps.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from modules.kernels.convolutions import DepthwiseConv3d, TemporalConv3d
from modules.kernels.reductions import mean_square
from modules.model.dropout import SampleDropout
from modules.model.tokens import frame_differences, grid_conv3d

HEAD_WIDTH = 32


@dataclass(frozen=True)
class InterFrameOutput:
    """What inter-frame prompting made at one layer.

    Attributes:
        tokens: p^t, (B, T − 1, N_max, D).
        mask: (B, T − 1, N_max) bool, True at the first N_i^t slots of gap i.
        frame_variation: W^t, (B, T − 1), in [0, 1].
        num_temporal_prompts: N^t, (B, T − 1) int64.
    """

    tokens: Tensor
    mask: Tensor
    frame_variation: Tensor
    num_temporal_prompts: Tensor


def count_tokens(frame_variation: Tensor, eta: float) -> Tensor:
    """N^t = ⌈η·W^t⌉ (paper, equation 4 of inter-frame prompting): (…) in [0, 1] → (…) int64, without gradient."""
    return torch.ceil(eta * frame_variation.detach()).long()


def num_heads(width: int) -> int:
    """Heads of the attention in a gap: one for each 32 channels, at least one."""
    return max(1, width // HEAD_WIDTH)


class WithinGapAttention(nn.Module):
    """Pre-norm self-attention among the P patches of one gap, with residual.

    The key projection has no bias: it would shift a query's scores alike and never have a gradient.
    """

    def __init__(self, width: int):
        super().__init__()
        self.num_heads = num_heads(width)
        if width % self.num_heads:
            raise UserError(f"--temporal_width must be a multiple of its {self.num_heads} heads, found {width}")
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, width) → (N, P, width)."""
        normed = self.norm(x)
        weight = torch.cat([self.query.weight, self.key.weight, self.value.weight])
        bias = torch.cat([self.query.bias, torch.zeros_like(self.query.bias), self.value.bias])
        query, key, value = (
            projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, heads, P, width / heads)
            for projected in F.linear(normed, weight, bias).chunk(3, dim=-1)
        )
        out = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(out.transpose(1, 2).flatten(2))


class TemporalPrompter(nn.Module):
    """P^t: the tokens of a gap from the differences around it (paper, Figure 2(c)).

    Into a bottleneck; self-attention → Conv3d → ReLU → Conv3d → Linear → Dropout. The Linear takes the P patches to
    N_max tokens and the bottleneck to D. The figure feeds W^t to the Linear as well: W_i^t·u is added to the gap's
    tokens, which gives N^t a gradient past the rounding of the count [ours]. Nothing is zero-initialised.
    """

    def __init__(self, width: int, grid: int, num_tokens: int, bottleneck: int, dropout: float):
        """width: D; grid: G; num_tokens: N_max."""
        super().__init__()
        self.grid = grid
        self.reduce = nn.Linear(width, bottleneck)
        self.attention = WithinGapAttention(bottleneck)
        self.conv_in = TemporalConv3d(bottleneck)
        self.conv_out = nn.Conv3d(bottleneck, bottleneck, 1)
        self.to_tokens = nn.Linear(grid**2, num_tokens, bias=False)
        self.expand = nn.Linear(bottleneck, width)
        self.variation_weight = nn.Parameter(torch.randn(num_tokens, width) * 0.02)  # u
        self.dropout = SampleDropout(dropout)

    def kept(self, seeds: Tensor) -> Tensor:
        """What dropout leaves of the tokens of some layers at once: (…) int32, a token each → (…, D) bool."""
        return self.dropout.kept(seeds, self.expand.out_features)

    def forward(self, differences: Tensor, variation: Tensor, real_gaps: Tensor, kept: Tensor | None) -> Tensor:
        """Make the tokens of every slot.

        Args:
            differences: Δh^s, (B, T − 1, P, D), zero outside the video.
            variation: W^t, (B, T − 1).
            real_gaps: (B, T − 1) bool.
            kept: (B, T − 1, N_max, D) bool, what dropout leaves; in training only.

        Returns:
            (B, T − 1, N_max, D).
        """
        batch, gaps = real_gaps.shape
        x = self.attention(self.reduce(differences).flatten(0, 1)).unflatten(0, (batch, gaps))
        # biases have filled the gaps outside the video; the convolution over time must find them empty
        x = x * real_gaps[:, :, None, None]
        x = grid_conv3d(self.conv_in, x, self.grid).relu()
        x = grid_conv3d(self.conv_out, x, self.grid)  # (B, T − 1, P, bottleneck)
        tokens = self.expand(self.to_tokens(x.transpose(2, 3)).transpose(2, 3))  # (B, T − 1, N_max, D)
        return self.dropout.keep(tokens + variation[:, :, None, None] * self.variation_weight, kept)


class InterFramePrompting(nn.Module):
    """Measures how much changes in each gap and makes tokens in proportion."""

    def __init__(
        self,
        width: int,
        grid: int,
        eta: float,
        beta: float,
        epsilon: float,
        prompter: TemporalPrompter,
        constant: bool = False,
    ):
        """Build N^t around a prompter P^t.

        Args:
            width: D. grid: G.
            eta: η > 0; a gap gets ⌈η·W^t⌉ tokens.
            beta: β ≥ 0, the extra weight of discriminative regions.
            epsilon: ε > 0, the variation, as a share of the tokens' mean square, below which a gap counts as still.
            prompter: P^t, built for `max_tokens(eta)` tokens.
            constant: every gap gets ⌈η⌉ tokens, whatever its W^t: what counting by W^t is compared with [ours].

        Raises:
            UserError: if a setting is out of range.
        """
        super().__init__()
        if epsilon <= 0:
            raise UserError(f"epsilon (ε) must be larger than 0, found {epsilon}")
        if beta < 0:
            raise UserError(f"beta (β) must not be negative, found {beta}")
        self.grid = grid
        self.eta = eta
        self.num_slots = self.max_tokens(eta)
        self.beta = beta
        self.epsilon = epsilon
        self.constant = constant
        self.dynamics = DepthwiseConv3d(width, time_padding=1)
        self.prompter = prompter

    @staticmethod
    def max_tokens(eta: float) -> int:
        """N_max, the slots of a gap: ⌈η⌉.

        Raises:
            UserError: if η is not positive.
        """
        if eta <= 0:
            raise UserError(f"eta (η) must be larger than 0, or 0 for no inter-frame prompts; found {eta}")
        return math.ceil(eta)

    def frame_variation(self, read: Tensor, differences: Tensor, regions: Tensor, real: Tensor) -> Tensor:
        """W^t (paper, equation 3 of inter-frame prompting), normalised within the video, in fp32.

        The paper's sum is divided by max(its largest value over the video's gaps, floor), so that it lies in [0, 1] and
        depends on this video only [ours]. A gap whose sum is below the floor counts as still and gets 0: since the
        number of tokens is rounded *up*, any other small value would give a merely noisy clip a token in every gap,
        which the floor is there to prevent. The floor is ε · mean square of the tokens read · 27 · mean square of N^t's
        kernel, so that W^t does not depend on the kernel's scale, and ε means at any scale what it means at the start
        of training, where the last two factors are 1 together.

        How ε = 0.001 was chosen (`scripts/choose_epsilon.py`; the table is in docs/method.md): on nine real clips (12
        frames; two random ViT-B/32 and the toy CLIP; untrained N^t) the largest gap of a clip, as a share of the mean
        square, is in every layer at least 1.8e-3 for an actor before a fixed camera, and at least 0.049 for the others.
        Their first frames as still videos, encoded anew as H.264 (crf 23 and 35), stay below 5e-5, and below 5.9e-4
        with noise of four grey levels added to each frame. What keyframes at crf 35 change is up to 5.0e-3, which no ε
        tells from so little movement.

        Args:
            read: h^s as the layer reads it, (B, T, P, D).
            differences: Δh^s, (B, T − 1, P, D), zero outside the video.
            regions: r, (B, T, P).
            real: (B, T) bool.

        Returns:
            (B, T − 1).
        """
        with torch.autocast(read.device.type, enabled=False):
            dtype = self.dynamics.weight.dtype
            changes = mean_square(grid_conv3d(self.dynamics, differences.to(dtype), self.grid))  # (B, T − 1, P)
            weights = (1 + self.beta * regions[:, 1:]).to(changes.dtype) / changes.shape[-1]
            weighted = torch.einsum("btp,btp->bt", weights, changes) * real[:, 1:]  # (B, T − 1)
            with torch.no_grad():  # where the floor is the scale, every gap is below it and has none
                power = mean_square(read.to(dtype)).mean(-1)  # (B, T)
                power = (power * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
                kernel = self.dynamics.weight
                floor = power * (self.epsilon * kernel[0].numel() * kernel.square().mean())  # (B, 1)
            scale = torch.maximum(weighted.amax(1, keepdim=True), floor)
            return (weighted / scale).masked_fill(weighted < floor, 0)

    def forward(self, read: Tensor, regions: Tensor, real: Tensor, kept: Tensor | None) -> InterFrameOutput:
        """Prompt one layer's input.

        Args:
            read: h^s as the layer reads it, (B, T, P, D), T ≥ 2.
            regions: r, (B, T, P), with its straight-through gradient if it has one.
            real: (B, T) bool.
            kept: (B, at least (T − 1)·N_max, D) bool, what dropout leaves of the tokens; in training only.
        """
        real_gaps = real[:, 1:]
        differences = frame_differences(read, real)
        variation = self.frame_variation(read, differences, regions, real)
        counts = real_gaps.long() * self.num_slots if self.constant else count_tokens(variation, self.eta)
        slots = torch.arange(self.num_slots, device=read.device)
        if kept is not None:
            kept = kept[:, : counts.shape[1] * self.num_slots].unflatten(1, (-1, self.num_slots))
        tokens = self.prompter(differences, variation.to(differences.dtype), real_gaps, kept)
        return InterFrameOutput(tokens, slots < counts[..., None], variation, counts)
