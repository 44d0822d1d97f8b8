"""What a prompting is, for video and for text: what the encoders ask of it, and what it may hand them.

A prompting is a module that owns what it trains and stands before the blocks of a frozen tower. The bases here do
nothing, so that a method writes down only what it changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from modules.clip.text import ClipTextTower
from modules.clip.vision import ClipVisionTower
from modules.model.measures import Measures


@dataclass(frozen=True)
class VideoTokens:
    """The tokens of a batch of videos between two blocks.

    Attributes:
        cls: (B, C, D), one class token a video, or one a frame (C = T).
        patches: (B, T, P, D).
        real: (B, T) bool, which frames are real and which padding.
        sizes: (B, T), how many frames each one stands for, 0 for padding; None where none were merged.
        carried: (G, K, D), tokens that stand behind the patches in each of the scope's G sequences, as left there by a
            prompting; None for none.
        carried_places: which gap each of them belongs to, as the scope counts gaps, None for none; empty if none does.
        carried_mask: (G, K), which of them exist, bool, or what a scope adds to their logits as keys; None for all.
        lengths: (B,) int64, how many frames of each video are real, as the encoder was given them; None if it was not.
        joined: (G, N, D), the sequences of which the tensors above are views, so that a scope need not join them again;
            None once one was replaced.
    """

    cls: Tensor
    patches: Tensor
    real: Tensor
    sizes: Tensor | None = None
    carried: Tensor | None = None
    carried_places: tuple[int | None, ...] = ()
    carried_mask: Tensor | None = None
    lengths: Tensor | None = None
    joined: Tensor | None = None

    @property
    def frame_sizes(self) -> Tensor:
        """(B, T), how many frames each one stands for: 1, or 0 for padding, where none were merged."""
        return self.real.to(self.patches.dtype) if self.sizes is None else self.sizes

    def change(self, **tensors: Tensor) -> "VideoTokens":
        """The same with other `cls`, `patches` or `carried` tokens."""
        return replace(self, **tensors, joined=None)

    def add_to_frames(self, positions: Tensor) -> "VideoTokens":
        """Add a vector a frame (T, D): to its patches, and to its class token where every frame has its own."""
        cls = self.cls + positions if self.cls.shape[1] == len(positions) else self.cls
        return self.change(cls=cls, patches=self.patches + positions[:, None])


@dataclass(frozen=True)
class Extra:
    """Tokens beside those of the videos: keys and values of one block only, or carried on from there.

    Attributes:
        place: ``video``, ``frames`` or ``gaps``; see the three ways to make one.
        parts: tensors of that place's shape without its number of tokens K, side by side; a part may leave out leading
            axes, over which it is the same.
        mask: which tokens exist, of that shape without D, for all parts together; None for all.
    """

    place: str
    parts: tuple[Tensor, ...]
    mask: Tensor | None = None

    @classmethod
    def of_video(cls, *parts: Tensor, mask: Tensor | None = None) -> "Extra":
        """(B, K, D) or (K, D): seen by all tokens of a video."""
        return cls("video", parts, mask)

    @classmethod
    def of_frames(cls, *parts: Tensor, mask: Tensor | None = None) -> "Extra":
        """(B, T, K, D), (T, K, D) or (K, D): seen by the tokens of a frame; by all, where a video is one sequence."""
        return cls("frames", parts, mask)

    @classmethod
    def of_gaps(cls, *parts: Tensor, mask: Tensor | None = None) -> "Extra":
        """(B, T − 1, K, D): seen by the two frames beside a gap; by all, where a video is one sequence."""
        return cls("gaps", parts, mask)

    def together(self, leading: tuple[int, ...]) -> Tensor:
        """All parts as one tensor (*leading, K, D)."""
        full = [part.expand(*leading, *part.shape[-2:]) for part in self.parts]
        return full[0] if len(full) == 1 else torch.cat(full, dim=-2)


@dataclass(frozen=True)
class Prompted:
    """A block's input after prompting.

    Attributes:
        tokens: the videos' own.
        extra: what stands beside them, or None.
        carry: whether the extra tokens go through this block and all after it, as tokens of their own.
        details: what a figure needs, under the names of the paper's terms; None where nothing was prompted.
    """

    tokens: VideoTokens
    extra: Extra | None = None
    carry: bool = False
    details: Mapping[str, Tensor] | None = None


class VideoPrompting(nn.Module):
    """Prompts a video tower; this base does nothing."""

    def begin(self, tower: ClipVisionTower, tokens: VideoTokens) -> VideoTokens:
        """Change the embedded tokens once, before the first block."""
        return tokens

    def before(self, tower: ClipVisionTower, layer: int, tokens: VideoTokens, keys: Tensor | None) -> Prompted:
        """Prompt the input of a block.

        Args:
            tower: whose block it is.
            layer: which, from 0.
            tokens: its input.
            keys: (B,) int64, what dropout in this layer is drawn from; in training only.
        """
        return Prompted(tokens)

    def measures(self, layers: Sequence[Mapping[str, Tensor]], real: Tensor) -> Measures:
        """What of a batch belongs into the log, by name; see `modules.model.measures`.

        Asked once a batch, in training and evaluation: it must not wait for the device.

        Args:
            layers: the details of each layer that has any.
            real: (B, T) bool, which frames are real; what belongs to padding does not count.
        """
        return {}


@dataclass(frozen=True)
class TextTokens:
    """Captions as tokens.

    Attributes:
        tokens: (N, W, D).
        ends: (N,) int64, where each caption is read from.
    """

    tokens: Tensor
    ends: Tensor


class TextPrompting(nn.Module):
    """Prompts a text tower; this base does nothing.

    Attributes:
        positions_taken: of the tower's context; captions are cut so that they fit into the rest.
    """

    positions_taken: int = 0

    def begin(self, tower: ClipTextTower, ids: Tensor) -> TextTokens:
        """Embed captions (N, W) int64."""
        return TextTokens(tower.embed(ids), tower.ends(ids))

    def before(self, tower: ClipTextTower, layer: int, keys: Tensor | None) -> Tensor | None:
        """Keys and values of a block that stand behind the start token, which does not see them.

        Args:
            tower: whose block it is.
            layer: which, from 0.
            keys: (N,) int64, what dropout in this layer is drawn from; in training only.

        Returns:
            (K, D), or (N, K, D) where captions have their own; None for none.
        """
        return None
