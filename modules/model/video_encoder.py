"""The video encoder: CLIP's frozen image tower with a prompting around its blocks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modules.clip.vision import ClipVisionTower
from modules.model.dropout import fold_in
from modules.model.scopes import FrameScope, JointScope
from modules.model.tokens import real_frames


@dataclass(frozen=True)
class PromptedTokens:
    """A layer's input after prompting.

    Attributes:
        patches: (B, T, P, D).
        temporal_tokens: (B, T − 1, N, D) tokens between frames, or None.
        temporal_mask: (B, T − 1, N) bool, which of them exist; None with no tokens.
        details: what a figure needs, under the names of the paper's terms.
    """

    patches: Tensor
    temporal_tokens: Tensor | None
    temporal_mask: Tensor | None
    details: Mapping[str, Tensor]


class Prompting(Protocol):
    """What the encoder asks of a prompting; a module that owns all of its trainable parameters."""

    def begin(self, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Change the embedded tokens once, before the first block: cls (B, C, D), patches (B, T, P, D)."""

    def __call__(
        self, tower: ClipVisionTower, layer: int, cls: Tensor, patches: Tensor, real: Tensor, keys: Tensor | None
    ) -> PromptedTokens:
        """Prompt the input of block `layer`."""


class VideoEncoder(nn.Module):
    """Encodes videos with a frozen CLIP tower, in an attention scope, with or without a prompting.

    Attributes:
        checkpoint_activations: in training keep only each layer's input and compute the rest again for the gradients.
            Memory for the time of one more forward pass; nothing else changes.
    """

    def __init__(
        self,
        tower: ClipVisionTower,
        scope: JointScope | FrameScope,
        prompting: nn.Module | None = None,
        per_layer: bool = True,
    ):
        """Put the parts together.

        Args:
            tower: CLIP's image tower.
            scope: which tokens attend to which.
            prompting: a module that follows `Prompting`; None for the frozen CLIP alone.
            per_layer: prompt before every block, the temporal tokens serving that block as keys and values only; else
                prompt once, before the first, and carry the temporal tokens through.
        """
        super().__init__()
        self.tower = tower
        self.scope = scope
        self.prompting = prompting
        self.per_layer = per_layer
        self.checkpoint_activations = False

    def forward(
        self,
        frames: Tensor,
        num_frames: Tensor,
        sample_keys: Tensor | None = None,
        return_details: bool = False,
    ) -> dict[str, Tensor | list[Mapping[str, Tensor]]]:
        """Encode a batch of videos. Each embedding depends on its own video alone, not on padding or neighbours.

        Args:
            frames: (B, T, 3, H, W) uint8, real frames first, then padding.
            num_frames: (B,) int, how many are real, 1 to T.
            sample_keys: (B,) int64, what dropout is drawn from; needed in training.
            return_details: also return what figures are made of.

        Returns:
            ``embedding``: (B, E), unit length. With `return_details` also ``layers``: for each prompted layer a
            mapping of names (``attention_map``, ``discriminative_regions``, ``frame_variation``, …) to tensors.

        Raises:
            ValueError: if the frames' size is not CLIP's.
        """
        batch, length = frames.shape[:2]
        size = self.tower.image_size
        if frames.shape[2:] != (3, size, size):
            raise ValueError(f"frames must be (B, T, 3, {size}, {size}) for this CLIP, found {tuple(frames.shape)}")
        real = real_frames(num_frames, length)  # (B, T)
        cls, patches = self.tower.embed(self.tower.normalize(frames.flatten(0, 1)))
        patches = patches.unflatten(0, (batch, length))  # (B·T, P, D) → (B, T, P, D)
        cls = self.scope.class_tokens(cls, batch, length)  # (B, C, D)
        if self.prompting is not None:
            cls, patches = self.prompting.begin(cls, patches)

        sequences = self.scope.merge(cls, patches)  # (G, N, D)
        key_mask = self.scope.key_mask(real, self.tower.num_patches, None)
        details = []
        for layer in range(self.tower.num_layers):
            arguments = (layer, sequences, key_mask, real, sample_keys)
            if self.checkpoint_activations and self.training:
                # nothing draws from torch's generators: dropout is a function of its keys
                out = checkpoint(self._layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                out = self._layer(*arguments)
            sequences, key_mask, layer_details = out
            if layer_details is not None:
                details.append(layer_details)

        embeddings = self.tower.project(sequences).view(batch, cls.shape[1], -1)  # (G, 1, E) → (B, C, E)
        embeddings = embeddings.to(self.tower.mean.dtype)  # lengths and similarities are not left to low precision
        output = {"embedding": self.scope.pool(embeddings, real)}
        return output | {"layers": details} if return_details else output

    def _layer(
        self, layer: int, sequences: Tensor, key_mask: Tensor | None, real: Tensor, keys: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor] | None]:
        """One block and the prompting before it.

        Args:
            layer: which, from 0.
            sequences: (G, N, D), its input.
            key_mask: (G, N) bool, which tokens may be attended to; None for all.
            real: (B, T) bool.
            keys: (B,) int64 for dropout, or None.

        Returns:
            The block's output and its mask, with the temporal tokens where they are carried on, and the prompting's
            details if it prompted.
        """
        extra, mask, details = None, key_mask, None
        if self.prompting is not None and (self.per_layer or layer == 0):
            prompted = self._prompt(layer, sequences, real, keys)
            details = prompted.details
            sequences = self.scope.merge(self._class_tokens(sequences, real.shape[1]), prompted.patches)
            if prompted.temporal_tokens is not None:
                extra, extra_mask = self.scope.temporal(prompted.temporal_tokens, prompted.temporal_mask)
                mask = self.scope.key_mask(real, self.tower.num_patches, extra_mask)
            if not self.per_layer and extra is not None:
                sequences, extra, key_mask = torch.cat([sequences, extra], dim=1), None, mask
        # of the last block only the class token's output is read
        queries = 1 if layer == self.tower.num_layers - 1 else None
        return self.tower.block(layer, sequences, extra, mask, queries), key_mask, details

    def _class_tokens(self, sequences: Tensor, length: int) -> Tensor:
        return self.scope.split(sequences, length, self.tower.num_patches)[0]

    def _prompt(self, layer: int, sequences: Tensor, real: Tensor, keys: Tensor | None) -> PromptedTokens:
        cls, patches = self.scope.split(sequences, real.shape[1], self.tower.num_patches)
        layer_keys = None if keys is None else fold_in(keys, layer)
        return self.prompting(self.tower, layer, cls, patches, real, layer_keys)
