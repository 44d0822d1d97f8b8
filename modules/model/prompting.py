"""What a prompting is, for video and for text: what the encoders ask of it, and what it may hand them.

A prompting is a module that owns what it trains and stands before the blocks of a frozen tower. The bases here do
nothing, so that a method writes down only what it changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
        joined: (G, N, D), the sequences of which the tensors above are parts, each with its class tokens first, then
            its frames' patches, then what is carried; always there when a prompting gets the tokens, None once one of
            them was replaced.
        known: see `once`; another one where `real` or `sizes` are others.
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
    known: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, name: object, make: Callable[[], Any]) -> Any:
        """Something that follows from `real`, `sizes`, shapes and weights alone, made for the first layer that asks.

        Args:
            name: what it is called, among all who ask.
            make: makes it.
        """
        if name not in self.known:
            self.known[name] = make()
        return self.known[name]

    @property
    def frame_sizes(self) -> Tensor:
        """(B, T), how many frames each one stands for: 1, or 0 for padding, where none were merged."""
        if self.sizes is not None:
            return self.sizes
        return self.once(("frame sizes", self.patches.dtype), lambda: self.real.to(self.patches.dtype))

    def parts_of(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """Class tokens and patches of what stands as `joined` does: (G, N, W) → (B, C, W), (B, T, P, W)."""
        batch, frames, patches = self.patches.shape[:3]
        sequences, _, width = joined.shape
        classes, here = self.cls.shape[1] * batch // sequences, frames * batch // sequences * patches
        # slices: a split's gradient is put together of all parts, those that nobody reads as zeros
        cls, own = joined[:, :classes], joined[:, classes : classes + here]
        return cls.reshape(batch, -1, width), own.reshape(batch, frames, patches, width)

    def change_joined(self, joined: Tensor) -> "VideoTokens":
        """The same with other tokens throughout, which stand as `joined` does."""
        cls, patches = self.parts_of(joined)
        carried = self.carried if self.carried is None else joined[:, joined.shape[1] - self.carried.shape[1] :]
        return replace(self, cls=cls, patches=patches, carried=carried, joined=joined)

    def add_to_patches(self, index: Tensor, values: Tensor) -> Tensor:
        """The sequences with something added to some patches of each frame.

        Args:
            index: (B, T, K) int64, which of a frame's patches.
            values: (B, T, K, D).

        Returns:
            (G, N, D), as `joined`.
        """
        batch, frames, patches = self.patches.shape[:3]
        sequences = len(self.joined)
        classes, here = self.cls.shape[1] * batch // sequences, frames * batch // sequences
        name = "first patches", sequences  # of a layout: a later layer's scope may have another
        first = self.once(name, lambda: classes + patches * torch.arange(here, device=index.device)[:, None])
        places = (index.reshape(sequences, here, -1) + first).flatten(1)
        values = values.to(self.joined.dtype).reshape(*places.shape, -1)
        return self.joined.scatter_add(1, places[..., None].expand_as(values), values)

    def change(self, **tensors: Tensor) -> "VideoTokens":
        """The same with other `cls`, `patches` or `carried` tokens."""
        return replace(self, **tensors, joined=None)

    def recording(self) -> "VideoTokens":
        """The same, which from here on note what `follow` needs to know, where a kind of tokens has to."""
        return self

    def follow(self, features: "VideoTokens") -> "VideoTokens":
        """What belongs to patches, merged as those of these tokens were behind frames that a scope merges.

        Args:
            features: as tokens of any width, which followed these until now.

        Returns:
            The same, with patches as there are of these tokens.
        """
        return features

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
        read: `Block.read` of the joined tokens where somebody has it already; None where it is to be made.
        carry: whether the extra tokens go through this block and all after it, as tokens of their own.
        details: what a figure needs, under the names of the paper's terms; None where nothing was prompted.
        for_adapters: what the block's adapters need to know beside their tokens, by the names they have for it.
    """

    tokens: VideoTokens
    extra: Extra | None = None
    carry: bool = False
    read: Tensor | None = None
    details: Mapping[str, Tensor] | None = None
    for_adapters: Mapping[str, Tensor] = field(default_factory=dict)


class VideoPrompting(nn.Module):
    """Prompts a video tower; this base does nothing."""

    def begin(self, tower: ClipVisionTower, tokens: VideoTokens) -> VideoTokens:
        """Change the embedded tokens once, before the first block."""
        return tokens

    def draws(self, keys: Tensor, tokens: VideoTokens) -> Sequence[Any]:
        """Prepare what is drawn, or what it is drawn from, in training, before the first block.

        Args:
            keys: (L, B) int64, a key for each layer and sample.
            tokens: as `begin` left them.

        Returns:
            What `before` is given at each of the L layers; here the layer's keys (B,).
        """
        return keys.unbind()

    def before(self, tower: ClipVisionTower, layer: int, tokens: VideoTokens, draws: Any) -> Prompted:
        """Prompt the input of a block.

        Args:
            tower: whose block it is.
            layer: which, from 0.
            tokens: its input.
            draws: of this layer, from `draws`; None where nothing is drawn, as in evaluation.
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
        shown: (N, W, K) bool, which of a block's K prompts each token sees; None where all but the start token see all.
    """

    tokens: Tensor
    ends: Tensor
    shown: Tensor | None = None


class TextPrompting(nn.Module):
    """Prompts a text tower; this base does nothing.

    Attributes:
        positions_taken: of the tower's context; captions are cut so that they fit into the rest.
    """

    positions_taken: int = 0

    def begin(self, tower: ClipTextTower, ids: Tensor) -> TextTokens:
        """Embed captions (N, W) int64."""
        return TextTokens(tower.embed(ids), tower.ends(ids))

    def before(self, tower: ClipTextTower, layer: int, text: TextTokens, keys: Tensor | None) -> Tensor | None:
        """Prompts of a block, which are keys and values only: who sees them the captions say (`TextTokens.shown`).

        Args:
            tower: whose block it is.
            layer: which, from 0.
            text: the captions as `begin` left them.
            keys: (N,) int64, what dropout in this layer is drawn from; in training only.

        Returns:
            (K, D), or (N, K, D) where captions have their own; None for none.
        """
        return None

    def for_adapters(self, layer: int, keys: Tensor | None) -> Mapping[str, Tensor]:
        """What a block's adapters need to know beside their tokens, by the names they have for it; see `before`."""
        return {}
