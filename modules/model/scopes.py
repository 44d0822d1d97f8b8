"""Attention scopes: which tokens of a video stand in one sequence.

A scope arranges tokens for a block and takes the block's output apart again; it holds no parameters. One serves all
layers, or each layer has its own. G is the number of sequences: B in the joint scope, B·T in the frame scope.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.clip.block import Block
from modules.model.prompting import Extra, Prompted, VideoTokens


class Scope(Protocol):
    """What the encoder asks of a scope."""

    def class_tokens(self, cls: Tensor, batch: int, frames: int) -> Tensor:
        """The class tokens that a batch begins with where this is the first layer's scope: (D,) → (B, C, D)."""

    def block(self, block: Block, prompted: Prompted, cls_only: bool = False) -> VideoTokens:
        """Run a block.

        Args:
            block: of the tower.
            prompted: its input.
            cls_only: nothing but the class tokens' output will be read; the patches may be left as they are.
        """


class JointScope:
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

    def block(self, block: Block, prompted: Prompted, cls_only: bool = False) -> VideoTokens:
        """See `Scope`."""
        tokens = prompted.tokens
        classes, (frames, patches) = tokens.cls.shape[1], tokens.patches.shape[1:3]
        # a padded frame's class token is masked, a video's own never
        real_cls = tokens.real if classes > 1 else torch.ones_like(tokens.real[:, :1])
        mask = torch.cat(
            [
                self.as_keys(real_cls, tokens, of_frames=classes > 1),
                self.as_keys(tokens.real.repeat_interleave(patches, dim=1), tokens, of_frames=True),
            ],
            dim=1,
        )
        if tokens.joined is None:
            own = [tokens.cls, tokens.patches.flatten(1, 2)]
            sequences = torch.cat(own if tokens.carried is None else [*own, tokens.carried], dim=1)
        else:
            sequences = tokens.joined
        extra, carried_mask = None, _mask_of(tokens)
        if carried_mask is not None:
            if tokens.carried_mask is None:
                carried_mask = self.as_keys(carried_mask, tokens, of_frames=False)
            mask = torch.cat([mask, carried_mask], dim=1)
        if prompted.extra is not None:
            extra, extra_mask = self.arrange(prompted.extra, tokens.real)
            extra_mask = self.as_keys(extra_mask, tokens, of_frames=prompted.extra.place != "video")
            mask = torch.cat([mask, extra_mask], dim=1)
            if prompted.carry:
                behind = [extra_mask] if carried_mask is None else [carried_mask, extra_mask]
                sequences, extra, carried_mask = torch.cat([sequences, extra], dim=1), None, torch.cat(behind, dim=1)
        out = block(sequences, extra, mask[:, None, None], classes if cls_only else None)
        if cls_only:
            return tokens.change(cls=out)
        end = classes + frames * patches
        return VideoTokens(
            out[:, :classes],
            out[:, classes:end].unflatten(1, (frames, patches)),
            tokens.real,
            None if carried_mask is None else out[:, end:],
            carried_mask,
            out,
        )

    def as_keys(self, exist: Tensor, tokens: VideoTokens, of_frames: bool) -> Tensor:
        """What the attention to some tokens is masked with: which of them exist, or what is added to their logits.

        Args:
            exist: (B, K) bool.
            tokens: of the same videos.
            of_frames: whether they belong to frames or gaps, or to the videos.

        Returns:
            (B, K), bool, or float with `mean_of_frames`.
        """
        if not self.mean_of_frames:
            return exist
        weight = torch.zeros(exist.shape, dtype=tokens.patches.dtype, device=exist.device)
        if of_frames:
            weight = weight - tokens.real.sum(1, keepdim=True).to(weight.dtype).log()
        return weight.masked_fill(~exist, -torch.inf)

    def arrange(self, extra: Extra, real: Tensor) -> tuple[Tensor, Tensor]:
        """Extra tokens as each video sees them: (B, K, D) and (B, K) bool; those of padded frames are masked out."""
        batch, frames = real.shape
        if extra.place == "video":
            tokens = extra.together((batch,))
            shown = extra.mask
        else:
            places = frames if extra.place == "frames" else frames - 1
            tokens = extra.together((batch, places))
            shown = extra.mask
            if shown is None:
                shown = real[:, frames - places :, None].expand(*tokens.shape[:3])
            tokens, shown = tokens.flatten(1, 2), shown.flatten(1, 2)
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=real.device) if shown is None else shown


class FrameScope:
    """One sequence a frame: its class token, its patches and the tokens of the two gaps beside it [ours].

    CLIP's own geometry. A padded frame needs no mask: nobody sees it, and a read-out leaves it out.
    """

    name = "frame"

    def class_tokens(self, cls: Tensor, batch: int, frames: int) -> Tensor:
        """The class tokens of a batch: (D,) → (B, T, D)."""
        return cls.expand(batch, frames, -1)

    def block(self, block: Block, prompted: Prompted, cls_only: bool = False) -> VideoTokens:
        """See `Scope`."""
        tokens = prompted.tokens
        batch, frames, patches = tokens.patches.shape[:3]
        if tokens.joined is None:
            sequences = torch.cat([tokens.cls[:, :, None], tokens.patches], dim=2).flatten(0, 1)
            if tokens.carried is not None:
                sequences = torch.cat([sequences, tokens.carried], dim=1)
        else:
            sequences = tokens.joined
        if tokens.cls.shape[1] != frames:
            raise ValueError(
                f"the frame scope needs a class token for each of {frames} frames, found {tokens.cls.shape[1]}"
            )
        mask = carried_mask = _mask_of(tokens)
        extra = None
        if prompted.extra is not None:
            extra, extra_mask = self.arrange(prompted.extra, tokens.real)
            if extra_mask is None and (mask is not None or prompted.carry):
                extra_mask = torch.ones(extra.shape[:2], dtype=torch.bool, device=extra.device)
            mask = extra_mask if mask is None else torch.cat([mask, extra_mask], dim=1)
            if prompted.carry:
                sequences, extra, carried_mask = torch.cat([sequences, extra], dim=1), None, mask
        if mask is not None:
            mask = F.pad(mask, (1 + patches, 0), value=True)[:, None, None]
        out = block(sequences, extra, mask, 1 if cls_only else None)
        split = out.unflatten(0, (batch, frames))
        if cls_only:
            return tokens.change(cls=split[:, :, 0])
        carried = out[:, 1 + patches :]
        return VideoTokens(
            split[:, :, 0],
            split[:, :, 1 : 1 + patches],
            tokens.real,
            carried if carried.shape[1] else None,
            carried_mask,
            out,
        )

    def arrange(self, extra: Extra, real: Tensor) -> tuple[Tensor, Tensor | None]:
        """Extra tokens as each frame sees them: (B·T, K, D), and (B·T, K) bool or None where all exist.

        Frame t has those of gap t − 1 and of gap t; beyond the ends the slots are masked out.
        """
        batch, frames = real.shape
        if extra.place == "gaps":
            tokens = extra.together((batch, frames - 1))
            mask = extra.mask
            if mask is None:
                mask = torch.ones(tokens.shape[:3], dtype=torch.bool, device=tokens.device)
            return _beside_each_frame(tokens, (0, 0, 0, 0, 1, 1)), _beside_each_frame(mask, (0, 0, 1, 1))
        mask = extra.mask
        if extra.place == "video":
            tokens = extra.together((batch,))[:, None].expand(-1, frames, -1, -1)
            mask = None if mask is None else mask[:, None].expand(-1, frames, -1)
        else:
            tokens = extra.together((batch, frames))
        return tokens.flatten(0, 1), None if mask is None else mask.flatten(0, 1)


def _mask_of(tokens: VideoTokens) -> Tensor | None:
    """Which carried tokens exist, (G, K) bool; None where none are carried."""
    if tokens.carried is None or tokens.carried_mask is not None:
        return tokens.carried_mask
    return torch.ones(tokens.carried.shape[:2], dtype=torch.bool, device=tokens.carried.device)


def _beside_each_frame(gaps: Tensor, time_axis_padding: tuple[int, ...]) -> Tensor:
    """Gaps −1 … T − 1, then the pair before and behind each frame: (B, T − 1, N, …) → (B·T, 2·N, …)."""
    extended = F.pad(gaps, time_axis_padding)
    return torch.cat([extended[:, :-1], extended[:, 1:]], dim=2).flatten(0, 1)
