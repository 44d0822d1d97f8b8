"""CLIP's frozen image tower, as parts that a prompting can be built around.

open_clip runs its tower from pixels to embedding in one go. Prompting needs to stand between the parts: after the
patches are embedded, before each block, among a block's keys. This module runs open_clip's own layers and weights, one
part at a time; without prompts the parts in sequence give exactly what ``encode_image`` gives (a test holds it).
"""

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from common.errors import UserError

QUICK_GELU_FACTOR = 1.702


class UnsupportedCLIP(UserError):
    """The CLIP given is not a ViT of OpenAI's structure."""


class FrozenModule(nn.Module):
    """A module that never trains: no parameter requires a gradient, and it stays in eval mode whatever it is told."""

    def freeze(self) -> None:
        """Take every parameter out of training; called once the submodules are in place."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenModule":
        return super().train(False)


class ClipVisionTower(FrozenModule):
    """The image tower of an open_clip ViT.

    Attributes:
        width: D, the width of a token (768 in ViT-B/32).
        grid: G, patches along a side (7); P = G·G patches a frame.
        num_layers: L, the number of blocks (12).
        image_size: side of the input in pixels (224).
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
        self.visual = visual
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.width = visual.conv1.out_channels
        self.grid = visual.grid_size[0]
        self.num_layers = len(visual.transformer.resblocks)
        self.num_heads = visual.transformer.resblocks[0].attn.num_heads
        self.image_size = visual.image_size[0]
        self.freeze()

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
        visual = self.visual
        patches = visual.conv1(frames).flatten(2).transpose(1, 2)  # (N, D, G, G) → (N, P, D)
        positions = visual.positional_embedding
        return (
            visual.ln_pre(visual.class_embedding + positions[0]),
            visual.ln_pre(patches + positions[1:]),
        )

    def read(self, layer: int, tokens: Tensor) -> Tensor:
        """Tokens as block `layer` reads them, through its ln_1: (…, D) → (…, D)."""
        return self.visual.transformer.resblocks[layer].ln_1(tokens)

    def block(
        self,
        layer: int,
        tokens: Tensor,
        extra: Tensor | None = None,
        key_mask: Tensor | None = None,
        num_queries: int | None = None,
    ) -> Tensor:
        """One frozen transformer block.

        Args:
            layer: which block, from 0.
            tokens: (G, N, D), the sequences.
            extra: (G, K, D), tokens that serve as keys and values only.
            key_mask: (G, N + K) bool, True where a key may be attended to; None where all may.
            num_queries: compute the output of the first so many tokens only; None for all.

        Returns:
            (G, num_queries or N, D).
        """
        x = tokens[:, :num_queries]
        context = tokens if extra is None else torch.cat([tokens, extra], dim=1)
        x = x + self.attention_branch(layer, context, x.shape[1], key_mask)
        return x + self.feed_forward_branch(layer, x)

    def attention_branch(self, layer: int, context: Tensor, num_queries: int, key_mask: Tensor | None) -> Tensor:
        """What a block's attention adds to its first tokens: (G, S, D) → (G, num_queries, D)."""
        block = self.visual.transformer.resblocks[layer]
        return block.ls_1(self._attention(block.attn, block.ln_1(context), num_queries, key_mask))

    def feed_forward_branch(self, layer: int, tokens: Tensor) -> Tensor:
        """What a block's MLP adds to its tokens: (…, D) → (…, D)."""
        block = self.visual.transformer.resblocks[layer]
        mlp = block.mlp
        if type(mlp.gelu) is not QuickGELU:
            return block.ls_2(mlp(block.ln_2(tokens)))
        # x·σ(1.702·x) is silu(1.702·x) / 1.702, which is one operation that keeps one tensor for its gradient in place
        # of three that keep two
        hidden = mlp.c_fc(block.ln_2(tokens)).mul_(QUICK_GELU_FACTOR)
        return block.ls_2(mlp.c_proj(F.silu(hidden).mul_(1 / QUICK_GELU_FACTOR)))

    def _attention(self, attn: nn.MultiheadAttention, context: Tensor, queries: int, key_mask) -> Tensor:
        """Multi-head attention of the first `queries` tokens of `context` (G, S, D) to all of it: (G, queries, D)."""
        width = self.width
        weight, bias = attn.in_proj_weight, attn.in_proj_bias
        query = F.linear(context[:, :queries], weight[:width], bias[:width])
        key, value = F.linear(context, weight[width:], bias[width:]).chunk(2, dim=-1)
        query, key, value = (self._split_heads(t) for t in (query, key, value))  # (G, heads, ·, D / heads)
        mask = None if key_mask is None else key_mask[:, None, None, :]  # the same for every head and query
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return attn.out_proj(out.transpose(1, 2).flatten(2))  # (G, heads, Q, D / heads) → (G, Q, D)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    @torch.no_grad()
    def class_attention(self, layer: int, cls: Tensor, patches: Tensor) -> Tensor:
        """Attention of the class token to each frame's patches (A_i, the paper's equation for Attn).

        The key projection is folded into the query, k·q = (W_kᵀ q)·x, which makes it one vector a head in place of a
        second projection of every patch; the key bias shifts all patches of a head alike and drops out of the softmax.

        Args:
            layer: whose query and key projections are used.
            cls: (B, C, D) class tokens as the layer reads them; C is 1, or T with one a frame.
            patches: (B, T, P, D) patch tokens as the layer reads them.

        Returns:
            (B, T, P), not negative, each frame's sum is 1: softmax over the frame's patches, mean over heads.
        """
        attn = self.visual.transformer.resblocks[layer].attn
        width, heads, dtype = self.width, self.num_heads, attn.in_proj_weight.dtype
        with torch.autocast(patches.device.type, enabled=False):  # regions are not chosen in low precision
            cls, patches = cls.to(dtype), patches.to(dtype)
            w_query, w_key = attn.in_proj_weight[: 2 * width].chunk(2)
            query = F.linear(cls, w_query, attn.in_proj_bias[:width]).unflatten(-1, (heads, -1))  # (B, C, heads, d)
            folded = torch.einsum("bchd,hdk->bchk", query, w_key.unflatten(0, (heads, -1)))  # (B, C, heads, D)
            folded = folded * (width // heads) ** -0.5
            logits = patches @ folded.transpose(-1, -2)  # (B, T, P, D) · (B, C, D, heads) → (B, T, P, heads)
            return logits.softmax(dim=-2).mean(dim=-1)

    def project(self, cls: Tensor) -> Tensor:
        """Embedding of a class token: ln_post and the projection, (…, D) → (…, E)."""
        return self.visual.ln_post(cls) @ self.visual.proj


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
