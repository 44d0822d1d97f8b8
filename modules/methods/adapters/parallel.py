"""``--method adapter_attn``, ``adapter_ffn``: a bottleneck parallel to each attention, or each MLP, of a frozen CLIP.

The rows "Adapter-ATTN" and "Adapter-FFN" of the VoP paper (Huang et al., CVPR 2023), in the form of He et al. (ICLR
2022) and AdaptFormer (Chen et al., NeurIPS 2022): s · (W_up · dropout(ReLU(W_down · x + b_down)) + b_up) with r = 64
channels, one in each block of both towers, is added to what attention, or the MLP, adds. In ViT-B/32 that is
12 · (2 · 64 · 768 + 64 + 768) + 12 · (2 · 64 · 512 + 64 + 512) = 1,982,976 parameters each.

W_up and both biases start at zero, so that training starts from CLIP, which is `zero_shot`; W_down starts as torch's
own linear layer does, Kaiming-uniform with a = √5. There is no norm: an adapter reads the tokens as they are, that of
the MLP those behind attention, before the MLP's norm, as AdaptFormer's; that of attention the block's input, before its
norm [inferred]. The VoP paper states neither s nor dropout; 0.1 each is AdaptFormer's. Batch and words are those of the
paper's rows, whose rates were searched for and are not printed: the program's default stands. Nothing depends on the
size of CLIP or on the number of frames.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from common.settings import above, at_least, between, setting
from modules.clip.loader import LoadedCLIP
from modules.clip.vision import ClipVisionTower
from modules.methods.adapters.bottleneck import BottleneckAdapter
from modules.methods.base import EncoderSettings, Method, Properties
from modules.model.dropout import SampleDropout, fold_in
from modules.model.heads import CosineHead
from modules.model.prompting import Prompted, TextPrompting, VideoPrompting, VideoTokens
from modules.model.readouts import Mean
from modules.model.scopes import FrameScope
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel


@dataclass(frozen=True)
class ParallelSettings(EncoderSettings):
    """Everything that can be set about adapters in parallel."""

    adapter_width: int = setting(64, "r, channels of each adapter", within=at_least(1), metavar="WIDTH")
    adapter_scale: float = setting(0.1, "s, factor of what an adapter adds", within=above(0), metavar="FACTOR")
    adapter_dropout: float = setting(
        0.1,
        "dropout of an adapter's channels",
        training_only=True,
        within=between(0, 1, high_open=True),
        metavar="SHARE",
    )


class ParallelAdapter(BottleneckAdapter):
    """A bottleneck with dropout, whose biases start at zero."""

    def __init__(self, width: int, settings: ParallelSettings):
        """width: D."""
        super().__init__(width, settings.adapter_width, settings.adapter_scale, nn.ReLU())
        nn.init.zeros_(self.down.bias)
        self.dropout = SampleDropout(settings.adapter_dropout)

    def forward(self, tokens: Tensor, keys: Tensor | None = None) -> Tensor:
        """(G, N, D) → (G, N, D); `keys` (G,) int64, what dropout is drawn from, in training only."""
        return self.scale * self.up(self.dropout(self.activation(self.down(tokens)), keys))


class FrameKeys(VideoPrompting):
    """Prompts nothing, and tells the adapters each frame's dropout key."""

    def before(self, tower: ClipVisionTower, layer: int, tokens: VideoTokens, keys: Tensor | None) -> Prompted:
        """See `VideoPrompting`; the adapters' ``keys`` are (B·T,)."""
        if keys is None:
            return Prompted(tokens)
        frames = torch.arange(tokens.real.shape[1], device=keys.device)
        return Prompted(tokens, for_adapters={"keys": fold_in(keys[:, None], frames).flatten()})


class CaptionKeys(TextPrompting):
    """Prompts nothing, and tells the adapters each caption's dropout key."""

    def for_adapters(self, layer: int, keys: Tensor | None) -> Mapping[str, Tensor]:
        """See `TextPrompting`; the adapters' ``keys`` are (N,)."""
        return {} if keys is None else {"keys": keys}


def build(place: str, clip: LoadedCLIP, settings: ParallelSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """A frozen CLIP with adapters at a block's `place`, ``beside_attention`` or ``beside_mlp``."""
    vision, text = clip.vision_tower(), clip.text_tower()
    for tower in (vision, text):
        for block in tower.blocks:
            setattr(block, place, ParallelAdapter(tower.width, settings))
    return VideoTextModel(
        TextEncoder(text, clip.tokenizer, max_words, CaptionKeys()),
        VideoEncoder(vision, FrameScope(), Mean(), FrameKeys(), settings.merge_before),
        CosineHead(clip.logit_scale),
    )


def _method(beside: str, place: str) -> Method:
    return Method(
        f"a bottleneck in parallel to each {beside} of a frozen CLIP (AdaptFormer)",
        ParallelSettings,
        partial(build, place),
        trains=True,
        properties=Properties(still=True, any_length=True, order_blind=True),
        recipe={"batch_size": 32, "max_words": 77},
    )


ATTN = _method("attention", "beside_attention")
FFN = _method("MLP", "beside_mlp")
