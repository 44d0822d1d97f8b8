"""Attention scopes: which tokens of a video stand in one sequence.

A scope arranges tokens for a block and takes the block's output apart again; it holds no parameters. One serves all
layers, or each layer has its own. G is the number of sequences: B in the joint scope, B·T in the frame scope.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.clip.block import Block
from modules.model.prompting import Extra, Prompted, VideoTokens
from modules.model.tokens import merge_pairs, merge_sizes


class Scope(Protocol):
    """What the encoder asks of a scope."""

    def class_tokens(self, cls: Tensor, batch: int, frames: int) -> Tensor:
        """The class tokens that a batch begins with where this is the first layer's scope: (D,) → (B, C, D)."""

    def join(self, tokens: VideoTokens) -> VideoTokens:
        """The same tokens with their sequences `joined`, if this scope's promptings ask for these."""

    def block(self, block: Block, prompted: Prompted, cls_only: bool = False) -> VideoTokens:
        """Run a block.

        Args:
            block: of the tower.
            prompted: its input.
            cls_only: nothing but the class tokens' output will be read; the patches may be left as they are.
        """

    def num_sequences(self, tokens: VideoTokens) -> int:
        """How many sequences a video is; each has as many of its class tokens."""

    def trace(
        self, block: Block, prompted: Prompted, features: VideoTokens, kept: float = 0.0, cls_only: bool = False
    ) -> VideoTokens:
        """What tokens gather by the attention of a block: of each, the mean of others' features, by its attention.

        Without gradient, in full precision; what is in no token of the videos, such as prompts, has features of zero.

        Args:
            block: of the tower.
            prompted: its input.
            features: what belongs to the tokens, as tokens of any width.
            kept: the share of its own features that a token keeps; the rest is what it gathers.
            cls_only: for class tokens only; the patches' features may be left as they are.

        Returns:
            Features that belong to the tokens behind the block, as long as it merges none.
        """

    def merge(self, tokens: VideoTokens) -> VideoTokens:
        """Merge neighbouring frames in pairs, patch by patch, as means weighted by how many frames each stands for.

        Class tokens of frames merge, too; what is carried inside a merged pair is dropped. A merged token counts as the
        frames that it stands for, and so weighs as a key; tokens of a gap weigh as the mean of the frames beside it
        did when they were made [ours].
        """


@dataclass(frozen=True)
class Sequences:
    """A block's input as a scope arranges it.

    Attributes:
        tokens: (G, N, D).
        read: `Block.read` of them where somebody has it already.
        extra: (G, K, D), keys and values only; None for none.
        mask: (G or 1, 1, 1, N + K), of keys, as for `Block.forward`; None where all may be attended to.
        carried_mask, places: of the carried tokens behind the block, see `VideoTokens`.
    """

    tokens: Tensor
    read: Tensor | None
    extra: Tensor | None
    mask: Tensor | None
    carried_mask: Tensor | None
    places: tuple[int | None, ...]


class _SequenceScope:
    """What scopes share that arrange a video's tokens as sequences, its class tokens first."""

    def block(self, block: Block, prompted: Prompted, cls_only: bool = False) -> VideoTokens:
        """See `Scope`."""
        given = self._arrange(prompted)
        queries = self._classes(prompted.tokens) if cls_only else None
        out = block(given.tokens, given.extra, given.mask, queries, given.read, **prompted.for_adapters)
        return self._part(self.join(prompted.tokens), out, given, cls_only)

    def trace(
        self, block: Block, prompted: Prompted, features: VideoTokens, kept: float = 0.0, cls_only: bool = False
    ) -> VideoTokens:
        """See `Scope`."""
        given, own = self._arrange(prompted), self.join(features.change()).joined
        read = block.read(given.tokens) if given.read is None else given.read
        extra = None if given.extra is None else block.read(given.extra)
        queries = self._classes(prompted.tokens) if cls_only else None
        shares = block.attention(read, extra, given.mask, queries)
        out = (1 - kept) * mix(shares[..., : own.shape[1]], own)  # behind them stand those without features
        out[:, : own.shape[1]] += kept * own[:, : out.shape[1]]
        return self._part(features, out, given, cls_only)

    def _arrange(self, prompted: Prompted) -> Sequences:
        raise NotImplementedError

    def _part(self, tokens: VideoTokens, out: Tensor, given: Sequences, cls_only: bool) -> VideoTokens:
        """A block's output (G, N, W), or of the class tokens, in place of the tokens that were its input."""
        raise NotImplementedError

    def _classes(self, tokens: VideoTokens) -> int:
        return tokens.cls.shape[1] // self.num_sequences(tokens)


class JointScope(_SequenceScope):
    """One sequence for the whole video: class tokens, every frame's patches, every gap's tokens (paper, Figure 2).

    CLIP has no positions over time, so the tokens' order in the sequence makes no difference; extra tokens stand behind
    the patches, where they need no rearranging. There may be one class token, or one a frame.

    In a sequence of T frames a token sees T times as many patches as in one of CLIP's pictures, and what belongs to the
    video alone, its class token first of all, weighs the less. With `mean_of_frames` everything that belongs to a frame
    or a gap has −log(number of real frames) added to its logit as a key, so that all frames weigh as much as one
    picture: a still video's embedding is exactly the picture's [ours].
    """

    name = "joint"

    def __init__(self, mean_of_frames: bool = False):
        """mean_of_frames: see above; else the plain softmax."""
        self.mean_of_frames = mean_of_frames

    def class_tokens(self, cls: Tensor, batch: int, frames: int) -> Tensor:
        """The class tokens of a batch: (D,) → (B, 1, D)."""
        return cls.expand(batch, 1, -1)

    def join(self, tokens: VideoTokens) -> VideoTokens:
        """See `Scope`."""
        if tokens.joined is not None:
            return tokens
        parts = [tokens.cls, tokens.patches.flatten(1, 2)]
        return replace(tokens, joined=torch.cat(parts if tokens.carried is None else [*parts, tokens.carried], dim=1))

    def num_sequences(self, tokens: VideoTokens) -> int:
        """See `Scope`."""
        return 1

    def _arrange(self, prompted: Prompted) -> Sequences:
        tokens = self.join(prompted.tokens)
        masks = [tokens.once((self, "own keys"), lambda: self._own_keys(tokens))]
        sequences, read = tokens.joined, prompted.read
        extra, carried_mask, places = None, _mask_of(tokens), tokens.carried_places
        if carried_mask is not None:
            masks.append(carried_mask)
        if prompted.extra is not None:
            extra, extra_mask = self.arrange(prompted.extra, tokens)
            masks.append(extra_mask)
            if prompted.carry:
                places = _places_of(tokens) + self.places(prompted.extra, tokens.patches.shape[1], extra.shape[1])
                carried_mask = extra_mask if carried_mask is None else _side_by_side([carried_mask, extra_mask])
                sequences, extra, read = torch.cat([sequences, extra], dim=1), None, None
        return Sequences(sequences, read, extra, _side_by_side(masks)[:, None, None], carried_mask, places)

    def _part(self, tokens: VideoTokens, out: Tensor, given: Sequences, cls_only: bool) -> VideoTokens:
        if cls_only:
            return tokens.change(cls=out)
        classes, (frames, patches) = tokens.cls.shape[1], tokens.patches.shape[1:3]
        end = classes + frames * patches
        cls, own, carried = out.split([classes, end - classes, out.shape[1] - end], dim=1)
        return replace(
            tokens,
            cls=cls,
            patches=own.unflatten(1, (frames, patches)),
            carried=None if given.carried_mask is None else carried,
            carried_mask=given.carried_mask,
            carried_places=given.places,
            joined=out,
        )

    def _own_keys(self, tokens: VideoTokens) -> Tensor:
        """What masks class tokens and patches as keys: (B, C + T·P), bool or float.

        A padded frame's class token is masked, a video's own never.
        """
        classes, patches = tokens.cls.shape[1], tokens.patches.shape[2]
        weights = self.frame_weights(tokens)
        own = _as_keys(tokens.real.repeat_interleave(patches, dim=1), _repeat(weights, patches))
        one = torch.ones_like(tokens.real[:, :1])
        return _side_by_side([_as_keys(tokens.real, weights) if classes > 1 else one, own])

    def frame_weights(self, tokens: VideoTokens) -> Tensor | None:
        """What is added to the logits of each frame's tokens as keys, (B, T); None for nothing."""
        if tokens.sizes is None and not self.mean_of_frames:
            return None
        sizes = tokens.frame_sizes
        return sizes.log() - sizes.sum(1, keepdim=True).log() if self.mean_of_frames else sizes.log()

    def gap_weights(self, tokens: VideoTokens) -> Tensor | None:
        """The same of each gap's tokens, which weigh as the mean of the two frames beside it: (B, T − 1)."""
        if tokens.sizes is None and not self.mean_of_frames:
            return None
        sizes = tokens.frame_sizes
        weights = ((sizes[:, 1:] + sizes[:, :-1]) / 2).log()
        return weights - sizes.sum(1, keepdim=True).log() if self.mean_of_frames else weights

    def arrange(self, extra: Extra, tokens: VideoTokens) -> tuple[Tensor, Tensor]:
        """Extra tokens as each video sees them, and what masks them as keys: (B, K, D) and (B, K), bool or float.

        Those of padded frames are masked out.
        """
        batch, frames = tokens.real.shape
        if extra.place == "video":
            together = extra.together((batch,))
            shown = extra.mask
            if shown is None:
                shown = torch.ones(together.shape[:2], dtype=torch.bool, device=together.device)
            return together, shown
        of_frames = extra.place == "frames"
        places = frames if of_frames else frames - 1
        together = extra.together((batch, places))
        shown = extra.mask
        if shown is None:
            shown = tokens.real[:, frames - places :, None].expand(*together.shape[:3])
        weights_of, each = (self.frame_weights if of_frames else self.gap_weights), together.shape[2]
        weights = tokens.once((self, extra.place, each), lambda: _repeat(weights_of(tokens), each))
        return together.flatten(1, 2), _as_keys(shown.flatten(1, 2), weights)

    @staticmethod
    def places(extra: Extra, frames: int, count: int) -> tuple[int | None, ...]:
        """The gap of each of some extra tokens, None for those that belong to none."""
        if extra.place != "gaps":
            return (None,) * count
        return tuple(gap for gap in range(frames - 1) for _ in range(count // max(frames - 1, 1)))

    def merge(self, tokens: VideoTokens) -> VideoTokens:
        """See `Scope`."""
        if tokens.real.shape[1] == 1:
            return tokens
        merged = _merge_frames(tokens)
        if tokens.carried is None:
            return merged
        # gap 0 lies inside the first pair, gap 1 behind it
        kept = [at for at, place in enumerate(_places_of(tokens)) if place is None or place % 2]
        mask, places = tokens.carried_mask, _places_of(tokens)
        return replace(
            merged,
            carried=_pick(tokens.carried, kept),
            carried_mask=None if mask is None else _pick(mask, kept),
            carried_places=tuple(None if places[at] is None else places[at] // 2 for at in kept),
        )


class FrameScope(_SequenceScope):
    """One sequence a frame: its class token, its patches and the tokens of the two gaps beside it [ours].

    CLIP's own geometry. A padded frame needs no mask: nobody sees it, and a read-out leaves it out. What a frame's own
    tokens weigh makes no difference within its sequence; the others weigh in proportion to them.
    """

    name = "frame"

    def class_tokens(self, cls: Tensor, batch: int, frames: int) -> Tensor:
        """The class tokens of a batch: (D,) → (B, T, D)."""
        return cls.expand(batch, frames, -1)

    def join(self, tokens: VideoTokens) -> VideoTokens:
        """See `Scope`.

        Raises:
            ValueError: if there is not one class token a frame.
        """
        if tokens.joined is not None:
            return tokens
        frames = tokens.patches.shape[1]
        if tokens.cls.shape[1] != frames:
            raise ValueError(
                f"the frame scope needs a class token for each of {frames} frames, found {tokens.cls.shape[1]}"
            )
        sequences = torch.cat([tokens.cls[:, :, None], tokens.patches], dim=2).flatten(0, 1)
        if tokens.carried is not None:
            sequences = torch.cat([sequences, tokens.carried], dim=1)
        return replace(tokens, joined=sequences)

    def num_sequences(self, tokens: VideoTokens) -> int:
        """See `Scope`."""
        return tokens.patches.shape[1]

    def _arrange(self, prompted: Prompted) -> Sequences:
        tokens = self.join(prompted.tokens)
        sequences, read = tokens.joined, prompted.read
        carried_mask, places = _mask_of(tokens), tokens.carried_places
        masks = [] if carried_mask is None else [carried_mask]
        extra = None
        if prompted.extra is not None:
            extra, extra_mask = self.arrange(prompted.extra, tokens)
            if extra_mask is None and (masks or prompted.carry):
                extra_mask = torch.ones(extra.shape[:2], dtype=torch.bool, device=extra.device)
            if extra_mask is not None:
                masks.append(extra_mask)
            if prompted.carry:
                places = _places_of(tokens) + self.places(prompted.extra, extra.shape[1])
                sequences, extra, carried_mask = torch.cat([sequences, extra], dim=1), None, _side_by_side(masks)
                read = None
        mask = None
        if masks:
            shape = len(sequences), 1 + tokens.patches.shape[2]
            own = tokens.once((self, "own keys"), lambda: torch.ones(shape, dtype=torch.bool, device=sequences.device))
            mask = _side_by_side([own, *masks])[:, None, None]
        return Sequences(sequences, read, extra, mask, carried_mask, places)

    def _part(self, tokens: VideoTokens, out: Tensor, given: Sequences, cls_only: bool) -> VideoTokens:
        batch, frames, patches = tokens.patches.shape[:3]
        if cls_only:
            return tokens.change(cls=out.unflatten(0, (batch, frames))[:, :, 0])
        cls, own, carried = out.split([1, patches, out.shape[1] - 1 - patches], dim=1)
        return replace(
            tokens,
            cls=cls[:, 0].unflatten(0, (batch, frames)),
            patches=own.unflatten(0, (batch, frames)),
            carried=carried if carried.shape[1] else None,
            carried_mask=given.carried_mask,
            carried_places=given.places,
            joined=out,
        )

    def arrange(self, extra: Extra, tokens: VideoTokens) -> tuple[Tensor, Tensor | None]:
        """Extra tokens as each frame sees them: (B·T, K, D), and what masks them, (B·T, K) or None where all exist.

        Frame t has those of gap t − 1 and of gap t; beyond the ends the slots are masked out.
        """
        batch, frames = tokens.real.shape
        mask = extra.mask
        if extra.place == "gaps":
            together = extra.together((batch, frames - 1))
            if mask is None:
                mask = torch.ones(together.shape[:3], dtype=torch.bool, device=together.device)
            shown = _beside_each_frame(mask, (0, 0, 1, 1))
            if tokens.sizes is not None:
                sizes = tokens.sizes
                gaps = ((sizes[:, 1:] + sizes[:, :-1]) / 2)[:, :, None].expand(mask.shape)
                weights = _beside_each_frame(gaps, (0, 0, 1, 1)) / sizes.clamp_min(1).flatten()[:, None]
                shown = _as_keys(shown, weights.log())
            return _beside_each_frame(together, (0, 0, 0, 0, 1, 1)), shown
        if extra.place == "video":
            together = extra.together((batch,))[:, None].expand(-1, frames, -1, -1)
            mask = None if mask is None else mask[:, None].expand(-1, frames, -1)
        else:
            together = extra.together((batch, frames))
        return together.flatten(0, 1), None if mask is None else mask.flatten(0, 1)

    @staticmethod
    def places(extra: Extra, count: int) -> tuple[int | None, ...]:
        """Of each extra token of a frame whether it belongs to the gap before it, −1, behind it, 0, or none, None."""
        if extra.place != "gaps":
            return (None,) * count
        return (-1,) * (count // 2) + (0,) * (count // 2)

    def merge(self, tokens: VideoTokens) -> VideoTokens:
        """See `Scope`."""
        batch, frames = tokens.real.shape
        if frames == 1:
            return tokens
        merged = _merge_frames(tokens)
        if tokens.carried is None:
            return merged
        carried, sizes = tokens.carried.unflatten(0, (batch, frames)), tokens.frame_sizes
        weights = _as_logits(_mask_of(tokens), carried.dtype).unflatten(0, (batch, frames))
        together = merged.frame_sizes.clamp_min(1).log()
        # of a pair the tokens before the first and those behind the second stay and weigh as they did with their frame;
        # what belongs to no gap is merged as the frame's own tokens are, and weighs among these as before
        of_gaps = weights + sizes.clamp_min(1).log()[:, :, None]
        if frames % 2:
            carried, of_gaps = F.pad(carried, (0, 0, 0, 0, 0, 1)), F.pad(of_gaps, (0, 0, 0, 1), value=-torch.inf)
        parts, part_weights = [], []
        for at, place in enumerate(_places_of(tokens)):
            if place is None:
                parts.append(merge_pairs(tokens.carried.unflatten(0, (batch, frames))[:, :, at], sizes))
                part_weights.append(weights[:, ::2, at])
            else:
                first = 0 if place == -1 else 1
                parts.append(carried[:, first::2, at])
                part_weights.append(of_gaps[:, first::2, at] - together)
        return replace(
            merged,
            carried=torch.stack(parts, dim=2).flatten(0, 1),
            carried_mask=torch.stack(part_weights, dim=2).flatten(0, 1),
        )


def mix(shares: Tensor, features: Tensor) -> Tensor:
    """Means of features (G, K, F) by shares (G, Q, K), in full precision: (G, Q, F)."""
    with torch.autocast(features.device.type, enabled=False):
        return shares @ features


def _merge_frames(tokens: VideoTokens) -> VideoTokens:
    """Patches, and class tokens of frames, merged in pairs; what is carried is left to the scope."""
    sizes = tokens.frame_sizes
    merged_sizes = merge_sizes(sizes)
    of_frames = tokens.cls.shape[1] == sizes.shape[1]
    return replace(
        tokens,
        cls=merge_pairs(tokens.cls, sizes) if of_frames else tokens.cls,
        patches=merge_pairs(tokens.patches, sizes),
        real=merged_sizes > 0,
        sizes=merged_sizes,
        joined=None,
        known={},
    )


def _as_keys(exist: Tensor, weights: Tensor | None) -> Tensor:
    """A mask of keys: which of them exist, (B, K) bool, or with weights (B, K) what is added to their logits."""
    return exist if weights is None else weights.masked_fill(~exist, -torch.inf)


def _pick(tensor: Tensor, places: Sequence[int]) -> Tensor:
    """Some places along axis 1, rising; as slices, since a device would wait for a list of them."""
    starts = [at for at in places if at - 1 not in places]
    ends = [at + 1 for at in places if at + 1 not in places]
    return torch.cat([tensor[:, start:end] for start, end in zip(starts, ends, strict=True)] or [tensor[:, :0]], dim=1)


def _repeat(weights: Tensor | None, times: int) -> Tensor | None:
    """The weights of the frames for each of a frame's tokens: (B, T) → (B, T·times)."""
    return None if weights is None else weights.repeat_interleave(times, dim=1)


def _as_logits(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask adds to logits."""
    if mask.is_floating_point():
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)


def _side_by_side(masks: Sequence[Tensor]) -> Tensor:
    """Masks of keys side by side, bool where all of them are."""
    dtype = next((mask.dtype for mask in masks if mask.is_floating_point()), None)
    return torch.cat([mask if dtype is None else _as_logits(mask, dtype) for mask in masks], dim=1)


def _mask_of(tokens: VideoTokens) -> Tensor | None:
    """What masks the carried tokens as keys, (G, K); None where none are carried."""
    if tokens.carried is None or tokens.carried_mask is not None:
        return tokens.carried_mask
    return torch.ones(tokens.carried.shape[:2], dtype=torch.bool, device=tokens.carried.device)


def _places_of(tokens: VideoTokens) -> tuple[int | None, ...]:
    """The gap of each carried token, None for none."""
    if tokens.carried is None:
        return ()
    return tokens.carried_places or (None,) * tokens.carried.shape[1]


def _beside_each_frame(gaps: Tensor, time_axis_padding: tuple[int, ...]) -> Tensor:
    """Gaps −1 … T − 1, then the pair before and behind each frame: (B, T − 1, N, …) → (B·T, 2·N, …)."""
    extended = F.pad(gaps, time_axis_padding)
    return torch.cat([extended[:, :-1], extended[:, 1:]], dim=2).flatten(0, 1)
