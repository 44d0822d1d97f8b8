"""Read-outs: what becomes of a video's tokens behind the last block."""

import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip.vision import ClipVisionTower
from modules.model.prompting import VideoTokens


class Readout(nn.Module):
    """Makes a video's embedding of its tokens: (B, E) of unit length, or a row a frame (B, T, E), zero for padding.

    Attributes:
        cls_only: whether the class tokens are all that it reads; the last block then computes nothing else.
    """

    cls_only: bool = True

    def forward(self, tower: ClipVisionTower, tokens: VideoTokens) -> Tensor:
        """Read the tokens behind the last block of a tower."""
        raise NotImplementedError


class ClassToken(Readout):
    """The video's one class token: (B, E), unit length."""

    def forward(self, tower: ClipVisionTower, tokens: VideoTokens) -> Tensor:
        """See `Readout`.

        Raises:
            ValueError: if there are several.
        """
        if tokens.cls.shape[1] != 1:
            raise ValueError(f"a video has {tokens.cls.shape[1]} class tokens here: read their mean")
        return F.normalize(tower.project(tokens.cls)[:, 0], dim=-1)


class Frames(Readout):
    """Each frame's class token as it is projected: (B, T, E), not of unit length; zero for padding."""

    def forward(self, tower: ClipVisionTower, tokens: VideoTokens) -> Tensor:
        """See `Readout`."""
        return tower.project(tokens.cls) * tokens.real[..., None]


class Mean(Readout):
    """Mean over real frames of unit-length frame embeddings, made unit length: (B, E). CLIP4Clip's meanP.

    Merged frames count as those that they stand for.
    """

    def forward(self, tower: ClipVisionTower, tokens: VideoTokens) -> Tensor:
        """See `Readout`."""
        return mean_pool(tower.project(tokens.cls), tokens.real if tokens.sizes is None else tokens.sizes)


def mean_pool(frames: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of frames' directions, made unit length.

    Args:
        frames: (B, T, E), of any length.
        weights: (B, T), which frames are real, bool, or how many each stands for, 0 for padding; not all of a video's.

    Returns:
        (B, E).
    """
    directions = F.normalize(frames, dim=-1) * weights[..., None]
    return F.normalize(directions.sum(1) / weights.sum(1, keepdim=True), dim=-1)
