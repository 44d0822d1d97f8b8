"""Attention scopes: which tokens of a video stand in one sequence.

A scope only arranges tokens; it holds no parameters, and both share all of the prompting code. G is the number of
sequences: B in the joint scope, B·T in the frame scope.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class JointScope:
    """One sequence for the whole video: a class token, every frame's patches, every gap's tokens (paper, Figure 2).

    CLIP has no positions over time, so the tokens' order in the sequence makes no difference; the temporal tokens
    stand behind the patches, where they need no rearranging.
    """

    name = "joint"

    def class_tokens(self, cls: Tensor, batch: int, frames: int) -> Tensor:
        """The class tokens of a batch: (D,) → (B, 1, D)."""
        return cls.expand(batch, 1, -1)

    def merge(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Sequences from class tokens (B, 1, D) and patches (B, T, P, D): (B, 1 + T·P, D)."""
        return torch.cat([cls, patches.flatten(1, 2)], dim=1)

    def split(self, sequences: Tensor, frames: int, num_patches: int) -> tuple[Tensor, Tensor]:
        """The reverse of `merge`; whatever stands behind the patches is left out."""
        cls, patches = sequences[:, :1], sequences[:, 1 : 1 + frames * num_patches]
        return cls, patches.unflatten(1, (frames, num_patches))

    def key_mask(self, real: Tensor, num_patches: int, temporal_mask: Tensor | None) -> Tensor:
        """Which tokens may be attended to: those of `merge`, then the temporal ones if there are any.

        Args:
            real: (B, T) bool.
            num_patches: P.
            temporal_mask: (B, K) bool from `temporal`, or None.

        Returns:
            (B, 1 + T·P + K) bool.
        """
        mask = F.pad(real.repeat_interleave(num_patches, dim=1), (1, 0), value=True)
        return mask if temporal_mask is None else torch.cat([mask, temporal_mask], dim=1)

    def temporal(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of the gaps as each sequence sees them.

        Args:
            tokens: (B, T − 1, N_max, D).
            mask: (B, T − 1, N_max) bool.

        Returns:
            (B, (T − 1)·N_max, D) and its mask.
        """
        return tokens.flatten(1, 2), mask.flatten(1, 2)

    def pool(self, embeddings: Tensor, real: Tensor) -> Tensor:
        """The video embedding from the class tokens' embeddings: (B, 1, E) → (B, E), unit length."""
        return F.normalize(embeddings[:, 0], dim=-1)


class FrameScope:
    """One sequence a frame: its class token, its patches and the tokens of the two gaps beside it [ours].

    CLIP's own geometry. Without prompts the video embedding is CLIP4Clip's mean pooling.
    """

    name = "frame"

    def class_tokens(self, cls: Tensor, batch: int, frames: int) -> Tensor:
        """The class tokens of a batch: (D,) → (B, T, D)."""
        return cls.expand(batch, frames, -1)

    def merge(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Sequences from class tokens (B, T, D) and patches (B, T, P, D): (B·T, 1 + P, D)."""
        return torch.cat([cls[:, :, None], patches], dim=2).flatten(0, 1)

    def split(self, sequences: Tensor, frames: int, num_patches: int) -> tuple[Tensor, Tensor]:
        """The reverse of `merge`; whatever stands behind the patches is left out."""
        sequences = sequences.unflatten(0, (-1, frames))
        return sequences[:, :, 0], sequences[:, :, 1 : 1 + num_patches]

    def key_mask(self, real: Tensor, num_patches: int, temporal_mask: Tensor | None) -> Tensor | None:
        """Which tokens may be attended to; a frame always sees all of its own.

        A padded frame needs no mask: nobody sees it and the mean leaves it out.

        Args:
            real: (B, T) bool.
            num_patches: P.
            temporal_mask: (B·T, K) bool from `temporal`, or None.

        Returns:
            (B·T, 1 + P + K) bool, or None where nothing is masked.
        """
        return None if temporal_mask is None else F.pad(temporal_mask, (1 + num_patches, 0), value=True)

    def temporal(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of the gaps as each sequence sees them: frame t has those of gap t − 1 and of gap t.

        Args:
            tokens: (B, T − 1, N_max, D).
            mask: (B, T − 1, N_max) bool.

        Returns:
            (B·T, 2·N_max, D) and its mask; beyond the ends the slots are masked out.
        """
        return _beside_each_frame(tokens, (0, 0, 0, 0, 1, 1)), _beside_each_frame(mask, (0, 0, 1, 1))

    def pool(self, embeddings: Tensor, real: Tensor) -> Tensor:
        """Mean over real frames of unit-length frame embeddings, made unit length: (B, T, E) → (B, E)."""
        frames = F.normalize(embeddings, dim=-1) * real[..., None]
        return F.normalize(frames.sum(1) / real.sum(1, keepdim=True), dim=-1)


def _beside_each_frame(gaps: Tensor, time_axis_padding: tuple[int, ...]) -> Tensor:
    """Gaps −1 … T − 1, then the pair before and behind each frame: (B, T − 1, N, …) → (B·T, 2·N, …)."""
    extended = F.pad(gaps, time_axis_padding)
    return torch.cat([extended[:, :-1], extended[:, 1:]], dim=2).flatten(0, 1)


SCOPES = {"joint": JointScope, "frame": FrameScope}
