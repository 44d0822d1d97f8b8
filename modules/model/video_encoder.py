"""The video encoder: CLIP's image tower with a prompting around its blocks, in a scope, and a read-out behind them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import UserError
from modules.clip.block import Block
from modules.clip.vision import ClipVisionTower
from modules.model.dropout import fold_in_each
from modules.model.measures import Measures
from modules.model.prompting import Prompted, VideoPrompting, VideoTokens
from modules.model.readouts import Readout
from modules.model.scopes import Scope
from modules.model.tokens import real_frames

Details = Mapping[str, Tensor]


class VideoEncoder(nn.Module):
    """Encodes videos with a CLIP tower.

    Attributes:
        checkpoint_activations: in training keep only each layer's input and compute the rest again for the gradients.
            Memory for the time of one more forward pass; nothing else changes.
    """

    def __init__(
        self,
        tower: ClipVisionTower,
        scope: Scope | Sequence[Scope],
        readout: Readout,
        prompting: VideoPrompting | None = None,
        merge_before: Sequence[int] = (),
    ):
        """Put the parts together.

        Args:
            tower: CLIP's image tower.
            scope: which tokens attend to which; one for all layers, or one a layer.
            readout: what becomes of the tokens behind the last block.
            prompting: what stands before the blocks; None for nothing.
            merge_before: layers before whose prompting neighbouring frames are merged in pairs, see `Scope.merge`.

        Raises:
            UserError: if the tower has no such layer.
        """
        super().__init__()
        self.tower = tower
        self.scopes = list(scope) if isinstance(scope, Sequence) else [scope] * tower.num_layers
        if len(self.scopes) != tower.num_layers:
            raise ValueError(f"one scope, or one for each of {tower.num_layers} layers; found {len(self.scopes)}")
        self.readout = readout
        self.prompting = VideoPrompting() if prompting is None else prompting
        self.merge_before = frozenset(merge_before)
        if outside := sorted(layer for layer in self.merge_before if not 0 <= layer < tower.num_layers):
            raise UserError(
                f"--merge_frames names layer {outside[0]}: this CLIP has layers 0 to {tower.num_layers - 1}"
            )
        self.checkpoint_activations = False

    def forward(
        self,
        frames: Tensor,
        num_frames: Tensor,
        sample_keys: Tensor | None = None,
        return_details: bool = False,
        return_rollout: bool = False,
    ) -> dict[str, Tensor | Measures | list[Details]]:
        """Encode a batch of videos. Each embedding depends on its own video alone, not on padding or neighbours.

        Args:
            frames: (B, T, 3, H, W) uint8, real frames first, then padding.
            num_frames: (B,) int, how many are real, 1 to T; on the CPU, page-locked for a GPU, or with the frames.
            sample_keys: (B,) int64, what dropout is drawn from; needed in training.
            return_details: also return what figures are made of.
            return_rollout: also return the attention of all layers together, for which the attention of every token
                to every other is computed.

        Returns:
            ``embedding``: what the read-out makes, (B, E) of unit length or (B, T, E). ``measures``: totals over the
            batch of what the prompting has for the log, (2,) each; empty where it has nothing. With `return_details`
            also ``layers``: for each prompted layer a mapping of names (``attention_map``,
            ``discriminative_regions``, ``frame_variation``, …) to tensors, and ``prompted_layers``, which these are;
            ``readout_attention`` (L, B, T, P), how much what is read of the video attends to each patch of its frames
            in each of the L layers; ``frame_sizes``, for each layer (B, T′), how many frames each one there stands
            for, 0 for padding. With `return_rollout` also ``attention_rollout`` (B, T, P). About both maps see
            `AttentionTrace`.

        Raises:
            ValueError: if the frames' size is not CLIP's.
        """
        batch, length = frames.shape[:2]
        size = self.tower.image_size
        if frames.shape[2:] != (3, size, size):
            raise ValueError(f"frames must be (B, T, 3, {size}, {size}) for this CLIP, found {tuple(frames.shape)}")
        cls, patches = self.tower.embed(self.tower.normalize(frames.flatten(0, 1)))
        tokens = VideoTokens(
            self.scopes[0].class_tokens(cls, batch, length),
            patches.unflatten(0, (batch, length)),  # (B·T, P, D) → (B, T, P, D)
            real_frames(num_frames.to(frames.device, non_blocking=True), length),
            lengths=num_frames,
        )
        tokens = self.prompting.begin(self.tower, tokens)
        trace = None
        if return_details or return_rollout:
            tokens = tokens.recording()
            trace = AttentionTrace(tokens, self.readout, return_rollout)
        draws: Sequence[object] = [None] * self.tower.num_layers
        if sample_keys is not None:
            draws = self.prompting.draws(fold_in_each(sample_keys, self.tower.num_layers), tokens)
        details, prompted_layers = [], []
        for layer in range(self.tower.num_layers):
            if layer > 0 and self.scopes[layer] is not self.scopes[layer - 1]:
                if tokens.carried is not None:
                    raise ValueError(f"layer {layer}: tokens that are carried cannot go over into another scope")
                tokens = tokens.change()  # the sequences were another scope's
            layer_input = layer, tokens, draws[layer], trace is not None
            if self.checkpoint_activations and self.training:
                # nothing draws from torch's generators: dropout is a function of its keys
                tokens, layer_details, prompted = checkpoint(
                    self._layer, *layer_input, use_reentrant=False, preserve_rng_state=False
                )
            else:
                tokens, layer_details, prompted = self._layer(*layer_input)
            if trace is not None:
                if layer in self.merge_before:
                    trace.merge(self.scopes[layer])
                trace.look(self.scopes[layer], self.tower.blocks[layer], prompted, self._cls_only(layer))
                trace.follow(tokens)
            if layer_details is not None:
                details.append(layer_details)
                prompted_layers.append(layer)
        measures = self.prompting.measures(details, tokens.real)
        output = {"embedding": self.readout(self.tower, tokens), "measures": measures}
        if return_details:
            output |= {"layers": details, "prompted_layers": prompted_layers}
            output |= {"readout_attention": trace.maps, "frame_sizes": trace.frame_sizes}
        return output | {"attention_rollout": trace.rolled_out(self.scopes[-1])} if return_rollout else output

    def _layer(
        self, layer: int, tokens: VideoTokens, draws: object, watched: bool
    ) -> tuple[VideoTokens, Details | None, Prompted | None]:
        """One block and the prompting before it; if it is `watched`, also the block's input."""
        scope = self.scopes[layer]
        tokens = replace(tokens, known=dict(tokens.known))  # what a checkpoint computes twice changes nothing outside
        if layer in self.merge_before:
            tokens = replace(scope.merge(tokens), lengths=(tokens.lengths + 1) // 2)
        tokens = scope.join(tokens)
        prompted = self.prompting.before(self.tower, layer, tokens, draws)
        out = scope.block(self.tower.blocks[layer], prompted, self._cls_only(layer))
        return out, prompted.details, prompted if watched else None

    def _cls_only(self, layer: int) -> bool:
        return self.readout.cls_only and layer == self.tower.num_layers - 1


class AttentionTrace:
    """What is read of a video attends to which patches of its frames: maps for pictures, of any method.

    A map is the mean over heads, and over the class tokens of a sequence where there are several, of what is read; of
    each frame's class token where each has a sequence. What they attend to beside patches is in no map, so that a
    sequence's patches have at most 1 together. A merged patch's share is divided among those that it was made of, by
    how much of it each is; so every map is one of the video's own frames and patches.

    Rollout (Abnar & Zuidema, ACL 2020) follows what is read back to the first layer's patches through all layers, in
    each of which half of a token is itself and half what it attends to. That ends at prompts: what they take from
    patches is not followed.

    Both follow from features that the tokens of a video have, one for each of its patches (F = T·P): at the beginning 1
    at a patch's own. They merge as the tokens do, and those of tokens that attend to others mix.
    """

    @torch.no_grad()
    def __init__(self, tokens: VideoTokens, readout: Readout, rollout: bool):
        """tokens: a batch's, before the first layer. rollout: whether it is wanted."""
        batch, self.length, self.num_patches = tokens.patches.shape[:3]
        self.readout = readout
        kind = {"dtype": torch.promote_types(tokens.patches.dtype, torch.float32), "device": tokens.patches.device}
        one_each = torch.eye(self.length * self.num_patches, **kind)
        none = {
            name: torch.zeros(*old.shape[:2], len(one_each), **kind)
            for name in ("cls", "carried")
            if (old := getattr(tokens, name)) is not None
        }
        patches = one_each.unflatten(0, (self.length, -1)).expand(batch, -1, -1, -1)
        self.origins = tokens.change(patches=patches, **none)
        self.rollout = self.origins if rollout else None
        self.of_layers: list[Tensor] = []
        self.frame_sizes: list[Tensor] = []

    @property
    def maps(self) -> Tensor:
        """(L, B, T, P), a map a layer."""
        return torch.stack(self.of_layers)

    def rolled_out(self, scope: Scope) -> Tensor:
        """(B, T, P), behind the last layer, whose scope is given."""
        return self._read(self.rollout, scope)

    def merge(self, scope: Scope) -> None:
        """Do as a scope that merges frames."""
        self._change(scope.merge)

    def follow(self, tokens: VideoTokens) -> None:
        """Do as tokens whose patches were merged by a method."""
        self._change(tokens.follow)

    @torch.no_grad()
    def look(self, scope: Scope, block: Block, prompted: Prompted, cls_only: bool) -> None:
        """Note what is attended to in a block.

        Args:
            scope: that it runs in.
            block: of the tower.
            prompted: its input.
            cls_only: whether nothing but its class tokens' output will be read.
        """
        self.follow(prompted.tokens)
        self.frame_sizes.append(prompted.tokens.frame_sizes)
        self.of_layers.append(self._read(scope.trace(block, prompted, self.origins, cls_only=True), scope))
        # what a prompting carries on from here has no features, but a place among the tokens
        self.origins = scope.trace(block, prompted, self.origins, kept=1.0) if prompted.carry else self.origins
        if self.rollout is not None:
            self.rollout = scope.trace(block, prompted, self.rollout, 0.5, cls_only)

    def _change(self, change: Callable[[VideoTokens], VideoTokens]) -> None:
        with torch.no_grad():
            self.origins = change(self.origins)
            if self.rollout is not None:
                self.rollout = change(self.rollout)

    def _read(self, features: VideoTokens, scope: Scope) -> Tensor:
        found = self.readout.mean_read(features, scope.num_sequences(features))
        return found.unflatten(-1, (self.length, self.num_patches))
