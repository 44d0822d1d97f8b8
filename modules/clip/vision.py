"""CLIP's image tower, as parts that a prompting can be built around.

open_clip runs its tower from pixels to embedding in one go. Prompting needs to stand between the parts: after the
patches are embedded, before each block, among a block's keys. This module runs open_clip's own layers and weights, one
part at a time; without prompts the parts in sequence give exactly what ``encode_image`` gives (a test holds it).
"""

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from modules.clip.block import Block


class UnsupportedCLIP(UserError):
    """The CLIP given is not built like OpenAI's."""


class ClipVisionTower(nn.Module):
    """The image tower of an open_clip ViT, frozen until a method thaws parts of it.

    Attributes:
        blocks: its transformer blocks.
        width: D, the width of a token (768 in ViT-B/32).
        grid: G, patches along a side (7); P = G·G patches a frame.
        image_size: side of the input in pixels (224).
        output_width: E, of an embedding (512).
    """

    def __init__(self, visual: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        """Wrap a tower.

        Args:
            visual: open_clip's image tower; its weights are shared, not copied, and frozen.
            mean, std: normalisation of the three colour channels, in the range [0, 1].

        Raises:
            UnsupportedCLIP: if the tower is not built like OpenAI's ViTs; the message says in what.
        """
        super().__init__()
        check_structure(visual)
        self.conv1 = visual.conv1
        self.class_embedding = visual.class_embedding
        self.positional_embedding = visual.positional_embedding
        self.ln_pre = visual.ln_pre
        self.blocks = nn.ModuleList(Block(layer) for layer in visual.transformer.resblocks)
        self.ln_post = visual.ln_post
        self.proj = visual.proj
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.width = visual.conv1.out_channels
        self.grid = visual.grid_size[0]
        self.image_size = visual.image_size[0]
        self.output_width = visual.proj.shape[1]
        self.requires_grad_(False)

    @property
    def num_layers(self) -> int:
        """L, the number of blocks (12)."""
        return len(self.blocks)

    @property
    def num_patches(self) -> int:
        """P, patches a frame."""
        return self.grid**2

    def normalize(self, frames: Tensor) -> Tensor:
        """Pixels as CLIP wants them: (…, 3, H, W) uint8 → (…, 3, H, W) float, on the device of the frames."""
        return (frames.to(self.mean.dtype) / 255 - self.mean) / self.std

    def embed(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Embed frames as tokens: patch convolution, positions, ln_pre.

        Args:
            frames: (N, 3, H, W), normalised.

        Returns:
            The class token (D,), which is the same for every frame, and the patch tokens (N, P, D).
        """
        patches = self.conv1(frames).flatten(2).transpose(1, 2)  # (N, D, G, G) → (N, P, D)
        positions = self.positional_embedding
        return self.ln_pre(self.class_embedding + positions[0]), self.ln_pre(patches + positions[1:])

    def project(self, tokens: Tensor) -> Tensor:
        """Embeddings of class tokens: ln_post and the projection, (…, D) → (…, E); not of unit length.

        In the precision of the colours, whatever the blocks run in: lengths and similarities are not left to a low one.
        """
        return (self.ln_post(tokens) @ self.proj).to(self.mean.dtype)


def check_structure(visual: nn.Module) -> None:
    """Refuse an image tower that is not a plain ViT with a class token.

    Raises:
        UnsupportedCLIP: naming what differs.
    """
    if not isinstance(visual, VisionTransformer):
        raise UnsupportedCLIP(
            f"the image tower is a {type(visual).__name__}: only open_clip's own ViTs can be prompted "
            "(for example ViT-B/32, ViT-B/16, ViT-L/14)"
        )
    blocks = visual.transformer.resblocks
    needed = {
        "attention pooling instead of a class token": visual.attn_pool is None and visual.pool_type == "tok",
        "no output projection": visual.proj is not None,
        "blocks that are not plain pre-norm attention blocks": all(type(b) is ResidualAttentionBlock for b in blocks),
        "an image or patch grid that is not square": visual.grid_size[0] == visual.grid_size[1],
    }
    found = [difference for difference, as_needed in needed.items() if not as_needed]
    if found:
        raise UnsupportedCLIP(f"this CLIP's image tower differs from OpenAI's ViTs: {'; '.join(found)}")
