"""Adapters: small modules beside the parts of CLIP's blocks."""

from torch import Tensor, nn

from modules.clip.text import ClipTextTower
from modules.clip.vision import ClipVisionTower


class BottleneckAdapter(nn.Module):
    """Down to a few channels, an activation, and up again: what it adds to its tokens, nothing at the start."""

    def __init__(self, width: int, bottleneck: int, scale: float, activation: nn.Module):
        """width: D. bottleneck: R. scale: factor of what it adds."""
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.activation = activation
        self.up = nn.Linear(bottleneck, width)
        self.scale = scale
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        return self.scale * self.up(self.activation(self.down(tokens)))

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


def add_side_adapters(tower: ClipVisionTower | ClipTextTower, bottleneck: int) -> None:
    """Put an adapter beside the MLP of each block of a tower, which reads what the MLP's own norm reads.

    0.1 · W_up · ReLU(W_down · x) with biases, as in the public release of STOP, which does not name the activation in
    our sources [inferred]: 999,168 parameters with 32 channels in both towers of ViT-B/32.
    """
    for block in tower.blocks:
        block.beside_mlp = BottleneckAdapter(tower.width, bottleneck, scale=0.1, activation=nn.ReLU())
