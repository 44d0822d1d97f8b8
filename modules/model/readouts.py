"""Read-outs: what becomes of a video's tokens behind the last block."""

import torch
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

    def mean_read(self, features: VideoTokens, num_sequences: int) -> Tensor:
        """What belongs to the tokens that are read: the mean over those of a sequence, added up over sequences.

        Here these are the class tokens; those of padded frames do not count, merged ones as the frames they stand for.

        Args:
            features: as tokens of any width F.
            num_sequences: of a video, each with as many of the class tokens.

        Returns:
            (B, F).
        """
        cls = features.cls.unflatten(1, (num_sequences, -1))  # (B, sequences, C / sequences, F)
        weights = features.frame_sizes.to(cls.dtype)
        if features.cls.shape[1] != weights.shape[1]:
            weights = torch.ones_like(features.cls[:, :, 0])
        weights = weights.unflatten(1, (num_sequences, -1))[..., None]
        return ((cls * weights).sum(2) / weights.sum(2).clamp_min(1)).sum(1)


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
