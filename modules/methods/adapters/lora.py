"""Low-rank changes of CLIP's frozen weights."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from modules.clip.text import ClipTextTower
from modules.clip.vision import ClipVisionTower


class LowRank(nn.Module):
    """A weight with the product of two narrow matrices added, nothing at the start."""

    def __init__(self, shape: tuple[int, int], rank: int):
        """shape: of the weight (out, in)."""
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, shape[1]))
        self.up = nn.Parameter(torch.zeros(shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in) → (out, in)."""
        return weight + self.up @ self.down


def add_lora(*towers: ClipVisionTower | ClipTextTower, rank: int) -> None:
    """Change the joined query, key and value projection of every block of some towers.

    With rank 8 in both towers of ViT-B/32 12 · 8 · (768 + 2,304 + 512 + 1,536) = 491,520 parameters.
    """
    for tower in towers:
        for block in tower.blocks:
            attn = block.layer.attn
            register_parametrization(attn, "in_proj_weight", LowRank(tuple(attn.in_proj_weight.shape), rank))
