"""Intra-frame spatial prompting: prompts added to the discriminative regions of each frame (paper, section 3).

Symbols: A attention_map, M temporal_dynamics, W^s region_scores, r discriminative_regions, p^s spatial_prompts,
N^s dynamics, P^s prompter. All of it belongs to one video at a time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import UserError
from modules.kernels.convolutions import DepthwiseConv3d
from modules.model.dropout import SampleDropout
from modules.model.tokens import extend_in_time, grid_conv3d


@dataclass(frozen=True)
class IntraFrameOutput:
    """What intra-frame prompting made at one layer.

    Attributes:
        patches: h^s, (B, T, P, D), the patch tokens with the prompts added.
        region_weights: (B, T, P), 1 at the chosen patches, else 0; carries the straight-through gradient.
        temporal_dynamics: M, (B, T, P).
        region_scores: W^s, (B, T, P).
    """

    patches: Tensor
    region_weights: Tensor
    temporal_dynamics: Tensor
    region_scores: Tensor


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

    def prompts(self, features: Tensor, keys: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """What follows the convolutions and looks at one patch at a time.

        Args:
            features: (B, …, bottleneck).
            keys: (B,) int64 for dropout; in training only.
            positions: (B, …) int64, where in the video each patch stands, counted from 0 over frames and patches; None
                where features has all of them.

        Returns:
            (B, …, D).
        """
        return self.dropout(self.linear_out(self.linear_in(features).relu()), keys, positions)


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
    ):
        """Build N^s around a prompter P^s.

        Args:
            width: D. grid: G.
            num_regions: N_s, patches chosen in each frame, 1 to P.
            alpha: α in [0, 1], attention against temporal dynamics.
            normalize_dynamics: divide M_i by its sum over the frame, as A_i sums to 1 [ours].
            straight_through: pass a gradient through the selection to N^s [ours].
            prompter: P^s.

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
        self.dynamics = DepthwiseConv3d(width, time_padding=0)
        self.prompter = prompter

    def temporal_dynamics(self, extended: Tensor) -> Tensor:
        """M (paper, equation 2): mean square over channels of N^s, in fp32; divided by the frame's sum if so set.

        Args:
            extended: (B, T + 2, P, D), tokens as the layer reads them, extended in time.

        Returns:
            (B, T, P), not negative.
        """
        with torch.autocast(extended.device.type, enabled=False):
            dynamics = grid_conv3d(self.dynamics, extended.to(self.dynamics.weight.dtype), self.grid)
            strength = dynamics.square().mean(-1)
            if self.normalize_dynamics:
                strength = strength / strength.sum(-1, keepdim=True).clamp_min(torch.finfo(strength.dtype).tiny)
            return strength

    def forward(
        self, patches: Tensor, read: Tensor, attention_map: Tensor, real: Tensor, keys: Tensor | None
    ) -> IntraFrameOutput:
        """Prompt one layer's input.

        Args:
            patches: h, (B, T, P, D), what the prompts are added to.
            read: (B, T, P, D), the same tokens as the layer reads them.
            attention_map: A, (B, T, P).
            real: (B, T) bool.
            keys: (B,) int64 for dropout; in training only.
        """
        extended = extend_in_time(read, real)
        dynamics = self.temporal_dynamics(extended)
        scores = self.alpha * attention_map.to(dynamics.dtype) + (1 - self.alpha) * dynamics  # W^s
        chosen, regions = select_regions(scores.detach(), self.num_regions, real)
        features = self.prompter.features(extended)
        prompted = self._add_at_chosen(patches, features, chosen, real, keys)
        if self.training and self.straight_through:
            selection = (scores - scores.detach()) * real[..., None]  # 0 with the gradient of W^s
            regions = regions + selection  # the order of the sum keeps the value exactly 0 or 1
            # r·p is 0 where r is 0: only the gradient of the selection needs p at every patch, and as a factor alone
            with torch.no_grad():
                prompts = self.prompter.prompts(features, keys)  # (B, T, P, D)
            prompted = prompted + selection[..., None].to(patches.dtype) * prompts.to(patches.dtype)
        return IntraFrameOutput(prompted, regions, dynamics, scores)

    def _add_at_chosen(self, patches, features, chosen, real, keys) -> Tensor:
        """h + r·p with p made at the chosen patches only: what follows the convolutions sees one patch at a time."""
        num_frames, num_patches = patches.shape[1:3]
        index = chosen[..., None]  # (B, T, N_s, 1)
        at_chosen = features.gather(2, index.expand(-1, -1, -1, features.shape[-1]))  # (B, T, N_s, bottleneck)
        positions = chosen + torch.arange(num_frames, device=chosen.device)[:, None] * num_patches
        prompts = self.prompter.prompts(at_chosen, keys, positions) * real[:, :, None, None]
        return patches.scatter_add(2, index.expand_as(prompts), prompts.to(patches.dtype))
