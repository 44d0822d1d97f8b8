"""Heads: how alike texts and videos are, from their embeddings."""

import math

import torch
from torch import Tensor, nn

MAX_SCALE = 100.0  # of CLIP's similarities, by its own training


class Head(nn.Module):
    """Similarities of texts and videos.

    Attributes:
        is_product: whether they are products of one vector each, of unit length, up to a factor. Such embeddings may be
            ranked in blocks, saved and searched; those of other heads say nothing without the head.
    """

    is_product: bool = False

    def forward(self, text: Tensor, video: Tensor, keys: Tensor | None = None) -> Tensor:
        """Similarities of every text and every video.

        Args:
            text: (N, …), video: (M, …), as the encoders made them.
            keys: (M,) int64, what dropout is drawn from, a key a video; in training only.

        Returns:
            (N, M), logits.
        """
        raise NotImplementedError


class CosineHead(Head):
    """The cosine times CLIP's own scale, which may be trained."""

    is_product = True

    def __init__(self, scale: float, trains: bool = False):
        """scale: the factor itself (100 in OpenAI's CLIP), not its logarithm. trains: whether its logarithm does."""
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale))) if trains else None
        self.register_buffer("fixed_scale", torch.tensor(float(scale)), persistent=False)

    @property
    def scale(self) -> Tensor:
        """The factor, a scalar; a trained one is kept from growing above CLIP's 100."""
        if self.log_scale is None:
            return self.fixed_scale
        if not self.training:
            return self.log_scale.exp().clamp(max=MAX_SCALE)
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        return self.log_scale.exp()

    def forward(self, text: Tensor, video: Tensor, keys: Tensor | None = None) -> Tensor:
        """(N, E), (M, E), unit length → (N, M)."""
        return self.scale * text @ video.T
