"""Intra-frame spatial prompting: prompts added to the discriminative regions of each frame (paper, section 3).

Symbols: A attention_map, M temporal_dynamics, W^s region_scores, r discriminative_regions, p^s spatial_prompts,
N^s dynamics, P^s prompter. All of it belongs to one video at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from modules.kernels.convolutions import DepthwiseConv3d
from modules.kernels.reductions import mean_square
from modules.model.dropout import SampleDropout, uniform_bits
from modules.model.prompting import VideoTokens
from modules.model.tokens import extend_in_time, extended_frames, grid_conv3d


@dataclass(frozen=True)
class IntraFrameOutput:
    """What intra-frame prompting made at one layer.

    Attributes:
        tokens: with h^s, the patch tokens with the prompts added.
        region_weights: (B, T, P), 1 at the chosen patches, else 0; carries the straight-through gradient.
        temporal_dynamics: M, (B, T, P); None where regions are chosen at random.
        region_scores: W^s, (B, T, P); None likewise.
    """

    tokens: VideoTokens
    region_weights: Tensor
    temporal_dynamics: Tensor | None
    region_scores: Tensor | None


def select_regions(scores: Tensor, num_regions: int, real: Tensor) -> tuple[Tensor, Tensor]:
    """The N_s patches with the largest scores in each frame (paper, equation for r_ij).

    Args:
        scores: W^s, (B, T, P).
        num_regions: N_s.
        real: (B, T) bool; nothing is chosen in padding.

    Returns:
        The chosen patches' indices (B, T, N_s), best first, ties by lower index, and r (B, T, P), 0 or 1.
    """
    # topk does not say in which order ties come; a stable sort does
    chosen = scores.sort(dim=-1, descending=True, stable=True).indices[..., :num_regions]
    regions = torch.zeros_like(scores).scatter(-1, chosen, 1.0)
    return chosen, regions * real[..., None]


class SpatialPrompter(nn.Module):
    """P^s: the prompt of a patch from its frame and the two beside it (paper, Figure 2(b)).

    Conv3d → ReLU → Conv3d → Linear → ReLU → Linear → Dropout. The first kernel is 3×3×3 and the second 1×3×3, so that
    exactly h_{i−1}, h_i and h_{i+1} are seen. The last Linear starts at zero: P^s starts without effect [ours]. The
    first convolution, from D channels, is most of its parameters and arithmetic; a Linear to fewer channels may stand
    before it [ours].
    """

    def __init__(self, width: int, grid: int, bottleneck: int, hidden: int, dropout: float, reduced: int = 0):
        """Prepare P^s.

        Args:
            width: D. grid: G.
            bottleneck: channels of the convolutions.
            hidden: width between the Linears.
            dropout: the share that is dropped.
            reduced: channels that a Linear leaves to the first convolution; 0 for no such Linear.
        """
        super().__init__()
        self.grid = grid
        self.reduce = nn.Linear(width, reduced) if reduced else nn.Identity()
        self.conv_in = nn.Conv3d(reduced or width, bottleneck, 3, padding=(0, 1, 1))
        self.conv_out = nn.Conv3d(bottleneck, bottleneck, (1, 3, 3), padding=(0, 1, 1))
        self.linear_in = nn.Linear(bottleneck, hidden)
        self.linear_out = nn.Linear(hidden, width)
        self.dropout = SampleDropout(dropout)
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)

    def features(self, extended: Tensor) -> Tensor:
        """The convolutions: (B, T + 2, P, D), extended in time → (B, T, P, bottleneck)."""
        x = grid_conv3d(self.conv_in, self.reduce(extended), self.grid).relu()
        return grid_conv3d(self.conv_out, x, self.grid)

    def kept(self, seeds: Tensor) -> Tensor:
        """What dropout leaves of the prompts of some layers at once: (…) int32, a prompt each → (…, D) bool."""
        return self.dropout.kept(seeds, self.linear_out.out_features)

    def prompts(self, features: Tensor, kept: Tensor | None) -> Tensor:
        """What follows the convolutions and looks at one patch at a time.

        Args:
            features: (…, bottleneck).
            kept: (…, D) bool, what dropout leaves; in training only.

        Returns:
            (…, D).
        """
        return self.dropout.keep(self.linear_out(self.linear_in(features).relu()), kept)

    @torch.no_grad()
    def linears(self, dtype: torch.dtype) -> list[Tensor]:
        """Weight and bias of both Linears, in a precision, without gradient."""
        return [x.detach().to(dtype) for linear in (self.linear_in, self.linear_out) for x in linear.parameters()]

    @staticmethod
    @torch.no_grad()
    def project(vectors: Tensor, features: Tensor, linears: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """⟨v, p⟩ of a vector and a prompt without dropout, for which no prompt needs to be made.

        Args:
            vectors: (…, D).
            features: (…, bottleneck), what the prompts are made of.
            linears: of `linears`, in the features' precision.
            dtype: of the sums.

        Returns:
            (…).
        """
        weight_in, bias_in, weight_out, bias_out = linears
        hidden = F.linear(features, weight_in, bias_in).relu()
        vectors = vectors.to(features.dtype).contiguous()
        return ((vectors @ weight_out) * hidden).sum(-1, dtype=dtype) + vectors @ bias_out


class IntraFramePrompting(nn.Module):
    """Finds each frame's discriminative regions and adds prompts to them."""

    def __init__(
        self,
        width: int,
        grid: int,
        num_regions: int,
        alpha: float,
        normalize_dynamics: bool,
        straight_through: bool,
        prompter: SpatialPrompter,
        at_random: bool = False,
        of_differences: bool = False,
    ):
        """Build N^s around a prompter P^s.

        Args:
            width: D. grid: G.
            num_regions: N_s, patches chosen in each frame, 1 to P.
            alpha: α in [0, 1], attention against temporal dynamics.
            normalize_dynamics: divide M_i by its sum over the frame, as A_i sums to 1 [ours].
            straight_through: pass a gradient through the selection to N^s [ours].
            prompter: P^s.
            at_random: choose N_s patches of each frame at random, without N^s and A: what choosing by W^s is compared
                with [ours].
            of_differences: N^s sees how the frame differs from the one before it and from the one behind it, in place
                of the three frames, so that what stands still has no M however it looks [ours].

        Raises:
            UserError: if N_s or α is out of range.
        """
        super().__init__()
        if not 1 <= num_regions <= grid**2:
            raise UserError(f"--num_regions (N_s) must be 1 to the {grid**2} patches of a frame, found {num_regions}")
        if not 0.0 <= alpha <= 1.0:
            raise UserError(f"alpha (α) must be in [0, 1], found {alpha}")
        self.grid = grid
        self.num_regions = num_regions
        self.alpha = alpha
        self.normalize_dynamics = normalize_dynamics
        self.straight_through = straight_through
        self.at_random = at_random
        self.of_differences = of_differences
        depth = 2 if of_differences else 3
        self.dynamics = None if at_random else DepthwiseConv3d(width, time_padding=0, depth=depth)
        self.prompter = prompter

    def temporal_dynamics(self, extended: Tensor) -> Tensor:
        """M (paper, equation 2): mean square over channels of N^s, in fp32; divided by the frame's sum if so set.

        Args:
            extended: (B, T + 2, P, D), tokens as the layer reads them, extended in time.

        Returns:
            (B, T, P), not negative.
        """
        with torch.autocast(extended.device.type, enabled=False):
            seen = extended.to(self.dynamics.weight.dtype)
            if self.of_differences:
                seen = seen.diff(dim=1)
            dynamics = grid_conv3d(self.dynamics, seen, self.grid)
            strength = mean_square(dynamics)
            if self.normalize_dynamics:
                strength = strength / strength.sum(-1, keepdim=True).clamp_min(torch.finfo(strength.dtype).tiny)
            return strength

    def forward(
        self,
        tokens: VideoTokens,
        read: Tensor,
        attention_map: Tensor | None,
        kept: Tensor | None,
        choice_seeds: Tensor | None = None,
    ) -> IntraFrameOutput:
        """Prompt one layer's input.

        Args:
            tokens: with h, the patch tokens that the prompts are added to.
            read: (B, T, P, D), these as the layer reads them.
            attention_map: A, (B, T, P); not read where regions are chosen at random.
            kept: (B, at least T·N_s, D) bool, what dropout leaves of the prompts, of a frame's best patch first; in
                training only.
            choice_seeds: (B, at least T) int32 of the same for a choice at random.
        """
        real = tokens.real
        extended = extend_in_time(read, real, tokens.once(extended_frames, partial(extended_frames, real)))
        if self.at_random:
            dynamics = scores = None
            order = uniform_bits(choice_seeds[:, : real.shape[1]], read.shape[2])  # (B, T, P)
            order = order.to(self.prompter.linear_out.weight.dtype)
        else:
            dynamics = self.temporal_dynamics(extended)
            scores = self.alpha * attention_map.to(dynamics.dtype) + (1 - self.alpha) * dynamics  # W^s
            order = scores.detach()
        chosen, regions = select_regions(order, self.num_regions, real)
        features = self.prompter.features(extended)
        prompts = self._prompts_at(features, chosen, kept) * real[:, :, None, None]
        prompted = tokens.add_to_patches(chosen, prompts)
        if self.training and self.straight_through and scores is not None:
            kind = self.prompter, features.dtype
            linears = tokens.once(kind, lambda: self.prompter.linears(features.dtype))
            prompted, regions = _SelectedByScores.apply(
                scores, prompted, regions, features, chosen, prompts, tokens, *linears
            )
        return IntraFrameOutput(tokens.change_joined(prompted), regions, dynamics, scores)

    def _prompts_at(self, features: Tensor, chosen: Tensor, kept: Tensor | None) -> Tensor:
        """p at the chosen patches: what follows the convolutions sees one patch at a time. (B, T, N_s, D)."""
        index = chosen[..., None]  # (B, T, N_s, 1)
        at_chosen = features.gather(2, index.expand(-1, -1, -1, features.shape[-1]))  # (B, T, N_s, bottleneck)
        if kept is not None:
            kept = kept[:, : features.shape[1] * self.num_regions].unflatten(1, (-1, self.num_regions))
        return self.prompter.prompts(at_chosen, kept)


class _SelectedByScores(torch.autograd.Function):
    """r + (W^s − sg(W^s)) in place of r, in h + r·p and by itself: values as they are, and a gradient to W^s.

    Of a patch's gradient g that is ⟨g, p⟩, and of r's it is r's own. Only here is p needed at every patch, and as a
    factor alone. Where a patch is not chosen, dropout has no part in it: what would be drawn there is
    in no token, and p is the mean of it [ours].
    """

    @staticmethod
    def forward(
        ctx,
        scores: Tensor,
        joined: Tensor,
        regions: Tensor,
        features: Tensor,
        chosen: Tensor,
        prompts: Tensor,
        tokens: VideoTokens,
        *linears: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens.real, features, chosen, prompts, *linears)
        ctx.parts_of, ctx.dtype = tokens.parts_of, scores.dtype
        return joined.view_as(joined), regions.view_as(regions)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, grad_regions: Tensor) -> tuple[Tensor | None, ...]:
        real, features, chosen, prompts, *linears = ctx.saved_tensors
        _, of_patches = ctx.parts_of(grad)
        at_chosen = of_patches.gather(2, chosen[..., None].expand_as(prompts))
        found = SpatialPrompter.project(of_patches, features, linears, ctx.dtype)
        found = found.scatter_(2, chosen, (at_chosen * prompts).sum(-1, dtype=ctx.dtype)).add_(grad_regions)
        return found.mul_(real[..., None]), grad, *[None] * (5 + len(linears))
