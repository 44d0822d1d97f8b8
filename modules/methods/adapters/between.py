"""``--method visual_text_adapter``, ``video_text_adapter``: one wide adapter between attention and MLP of each block.

The rows "Visual-Text Adapter" and "Video-Text Adapter" of the field's tables, whose primary source we have not found:
what is said here is inferred from their counts and from ST-Adapter (Pan et al., NeurIPS 2022).

- ``visual_text_adapter``: x + s · (W_up · φ(W_down · x + b_down) + b_up) in both towers, with r = 384 channels, s = 1
  and QuickGELU as φ. W_up and b_up start at zero. In ViT-B/32 that is
  12 · (2 · 384 · 768 + 384 + 768) + 12 · (2 · 384 · 512 + 384 + 512) = 11,821,056 parameters.
- ``video_text_adapter``: the text tower's are the same. Those of the image tower are ST-Adapters: between W_down and φ
  stands a depthwise 3×3×3 convolution over time and the patch grid without bias, 12 · 384 · 27 = 124,416 parameters
  more, 11,945,472 in all. Only patches pass through it; class tokens see what became of them in the next block's
  attention. The convolution and all biases start at zero. So W_down and W_up have no gradient in the first step, the
  convolution and b_up do.

Both start from CLIP, where they are `zero_shot`. ST-Adapter's release has a 3×1×1 kernel with bias, which makes another
count, and no activation where its formula has one; it adds to the tokens in place. Here as there, nothing reads the
last block's patches any more: that block's adapter in the image tower counts but has no effect, and is not computed. A
padded frame is zero to the convolution, as what lies before the first and behind the last frame, so that padding makes
no difference; that a frame repeats does. Merged frames are frames like others to it.

No recipe: what is published of ST-Adapter is for recognition with another read-out. Nothing depends on the size of CLIP
or on the number of frames.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from common.settings import above, at_least, setting
from modules.clip.loader import LoadedCLIP
from modules.clip.vision import ClipVisionTower
from modules.kernels.convolutions import DepthwiseConv3d
from modules.methods.adapters.bottleneck import BottleneckAdapter
from modules.methods.base import EncoderSettings, Method, Properties
from modules.model.heads import CosineHead
from modules.model.prompting import Prompted, VideoPrompting, VideoTokens
from modules.model.readouts import Mean
from modules.model.scopes import FrameScope
from modules.model.text_encoder import TextEncoder
from modules.model.tokens import grid_conv3d
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel


@dataclass(frozen=True)
class BetweenSettings(EncoderSettings):
    """Everything that can be set about adapters between attention and MLP."""

    adapter_width: int = setting(384, "r, channels of each adapter", within=at_least(1), metavar="WIDTH")
    adapter_scale: float = setting(1.0, "s, factor of what an adapter adds", within=above(0), metavar="FACTOR")


class SpaceTimeConv3d(DepthwiseConv3d):
    """A depthwise 3×3×3 convolution without bias that starts at zero and decays: unlike N^s's, its scale matters."""

    undecayed = frozenset()

    def __init__(self, width: int):
        """width: C."""
        super().__init__(width, time_padding=1)
        nn.init.zeros_(self.weight)


class SpaceTimeAdapter(nn.Module):
    """ST-Adapter: a bottleneck in which patches see those around them, in their frame and in the two beside it."""

    def __init__(self, width: int, bottleneck: int, grid: int, scale: float):
        """width: D. bottleneck: R. grid: G. scale: factor of what it adds."""
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.conv = SpaceTimeConv3d(bottleneck)
        self.activation = QuickGELU()
        self.up = nn.Linear(bottleneck, width)
        self.grid = grid
        self.scale = scale
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """What is added to each frame's tokens, nothing to class tokens.

        Args:
            tokens: (B·T, 1 + P, D), the class token first; (B·T, 1, D) where only that is computed.
            real: (B, T) bool, which frames are real.

        Returns:
            Of the shape of `tokens`.
        """
        if tokens.shape[1] == 1:
            return torch.zeros_like(tokens)
        hidden = self.down(tokens[:, 1:]).unflatten(0, real.shape)  # (B·T, P, R) → (B, T, P, R)
        with torch.autocast(tokens.device.type, enabled=False):  # a gradient of its own, which takes one precision
            hidden = hidden.to(self.conv.weight.dtype).masked_fill(~real[:, :, None, None], 0)
            hidden = self.activation(grid_conv3d(self.conv, hidden, self.grid))
        return F.pad(self.scale * self.up(hidden).flatten(0, 1), (0, 0, 1, 0))

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class RealFrames(VideoPrompting):
    """Prompts nothing, and tells the adapters which frames are real, and so which of them make a video."""

    def before(self, tower: ClipVisionTower, layer: int, tokens: VideoTokens, keys: Tensor | None) -> Prompted:
        """See `VideoPrompting`; the adapters' ``real`` is (B, T)."""
        return Prompted(tokens, for_adapters={"real": tokens.real})


def build_visual_text(clip: LoadedCLIP, settings: BetweenSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """A frozen CLIP with an adapter between attention and MLP of each block."""
    vision = clip.vision_tower()
    for block in vision.blocks:
        block.between = _adapter(vision.width, settings)
    encoder = VideoEncoder(vision, FrameScope(), Mean(), merge_before=settings.merge_before)
    return VideoTextModel(_text_encoder(clip, settings, max_words), encoder, CosineHead(clip.logit_scale))


def build_video_text(clip: LoadedCLIP, settings: BetweenSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """The same with ST-Adapters in the image tower."""
    vision = clip.vision_tower()
    for block in vision.blocks:
        block.between = SpaceTimeAdapter(vision.width, settings.adapter_width, vision.grid, settings.adapter_scale)
    encoder = VideoEncoder(vision, FrameScope(), Mean(), RealFrames(), settings.merge_before)
    return VideoTextModel(_text_encoder(clip, settings, max_words), encoder, CosineHead(clip.logit_scale))


def _adapter(width: int, settings: BetweenSettings) -> BottleneckAdapter:
    return BottleneckAdapter(width, settings.adapter_width, settings.adapter_scale, QuickGELU())


def _text_encoder(clip: LoadedCLIP, settings: BetweenSettings, max_words: int) -> TextEncoder:
    text = clip.text_tower()
    for block in text.blocks:
        block.between = _adapter(text.width, settings)
    return TextEncoder(text, clip.tokenizer, max_words)


VISUAL_TEXT = Method(
    "a wide adapter between attention and MLP of each block of a frozen CLIP",
    BetweenSettings,
    build_visual_text,
    trains=True,
    properties=Properties(still=True, any_length=True, order_blind=True),
)
VIDEO_TEXT = Method(
    "the same with convolutions over time and patches in the image tower (ST-Adapter)",
    BetweenSettings,
    build_video_text,
    trains=True,
    properties=Properties(still=False, any_length=True, order_blind=False),
)
