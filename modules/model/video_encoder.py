"""The video encoder: CLIP's image tower with a prompting around its blocks, in a scope, and a read-out behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import UserError
from modules.clip.vision import ClipVisionTower
from modules.model.dropout import fold_in_each
from modules.model.measures import Measures
from modules.model.prompting import VideoPrompting, VideoTokens
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
    ) -> dict[str, Tensor | Measures | list[Details]]:
        """Encode a batch of videos. Each embedding depends on its own video alone, not on padding or neighbours.

        Args:
            frames: (B, T, 3, H, W) uint8, real frames first, then padding.
            num_frames: (B,) int, how many are real, 1 to T; on the CPU, page-locked for a GPU, or with the frames.
            sample_keys: (B,) int64, what dropout is drawn from; needed in training.
            return_details: also return what figures are made of.

        Returns:
            ``embedding``: what the read-out makes, (B, E) of unit length or (B, T, E). ``measures``: totals over the
            batch of what the prompting has for the log, (2,) each; empty where it has nothing. With `return_details`
            also ``layers``: for each prompted layer a mapping of names (``attention_map``,
            ``discriminative_regions``, ``frame_variation``, …) to tensors.

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
        draws: Sequence[object] = [None] * self.tower.num_layers
        if sample_keys is not None:
            draws = self.prompting.draws(fold_in_each(sample_keys, self.tower.num_layers), tokens)
        details = []
        for layer in range(self.tower.num_layers):
            if layer > 0 and self.scopes[layer] is not self.scopes[layer - 1]:
                if tokens.carried is not None:
                    raise ValueError(f"layer {layer}: tokens that are carried cannot go over into another scope")
                tokens = tokens.change()  # the sequences were another scope's
            if self.checkpoint_activations and self.training:
                # nothing draws from torch's generators: dropout is a function of its keys
                tokens, layer_details = checkpoint(
                    self._layer, layer, tokens, draws[layer], use_reentrant=False, preserve_rng_state=False
                )
            else:
                tokens, layer_details = self._layer(layer, tokens, draws[layer])
            if layer_details is not None:
                details.append(layer_details)
        measures = self.prompting.measures(details, tokens.real)
        output = {"embedding": self.readout(self.tower, tokens), "measures": measures}
        return output | {"layers": details} if return_details else output

    def _layer(self, layer: int, tokens: VideoTokens, draws: object) -> tuple[VideoTokens, Details | None]:
        """One block and the prompting before it."""
        if layer in self.merge_before:
            tokens = replace(self.scopes[layer].merge(tokens), lengths=(tokens.lengths + 1) // 2)
        tokens = self.scopes[layer].join(tokens)
        prompted = self.prompting.before(self.tower, layer, tokens, draws)
        cls_only = self.readout.cls_only and layer == self.tower.num_layers - 1
        return self.scopes[layer].block(self.tower.blocks[layer], prompted, cls_only), prompted.details
