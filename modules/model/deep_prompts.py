"""Deep prompts: learned vectors beside the tokens of every layer, replaced at the next, so keys and values only."""

import torch
from torch import Tensor, nn

from modules.clip.text import ClipTextTower
from modules.model.prompting import TextPrompting, TextTokens

STD = 0.02  # of a prompt's first values


def deep_prompts(*shape: int) -> nn.Parameter:
    """Learned vectors (…, D), from N(0, 0.02²)."""
    return nn.Parameter(torch.randn(*shape) * STD)


class DeepTextPrompts(TextPrompting):
    """Learned prompts behind the start token in every layer of a text tower."""

    def __init__(self, tower: ClipTextTower, num_prompts: int, take_positions: bool):
        """Prepare K prompts a layer.

        Args:
            tower: whose layers are prompted.
            num_prompts: K.
            take_positions: whether they stand at positions of the tower's context, of which as many are then left for
                fewer words, and the first layer's have these positions' embeddings; else at none, and words stay
                where they are.
        """
        super().__init__()
        self.positions_taken = num_prompts if take_positions else 0
        self.learned = deep_prompts(tower.num_layers, num_prompts, tower.width)

    def begin(self, tower: ClipTextTower, ids: Tensor) -> TextTokens:
        """Embed captions (N, W), the words at the positions behind the prompts'."""
        return TextTokens(tower.embed(ids, first=self.positions_taken), tower.ends(ids))

    def before(self, tower: ClipTextTower, layer: int, text: TextTokens, keys: Tensor | None) -> Tensor:
        """The prompts of a block: (K, D)."""
        prompts = self.learned[layer]
        if layer > 0 or self.positions_taken == 0:
            return prompts
        return prompts + tower.positional_embedding[1 : 1 + len(prompts)]
