"""``--method zero_shot``: the frozen CLIP with mean pooling over frames; nothing trains.

CLIP4Clip's meanP without its fine-tuning: each real frame's unit-length embedding, their mean, made unit length.
"""

from dataclasses import dataclass

from modules.clip.loader import LoadedCLIP
from modules.methods.base import EncoderSettings, Method, Properties
from modules.model.heads import CosineHead
from modules.model.readouts import Mean
from modules.model.scopes import FrameScope
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel


@dataclass(frozen=True)
class ZeroShotSettings(EncoderSettings):
    """It has none of its own."""


def build(clip: LoadedCLIP, settings: ZeroShotSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """The frozen CLIP in the frame scope, without prompts."""
    return VideoTextModel(
        TextEncoder(clip.frozen_text_tower(), clip.tokenizer, max_words),
        VideoEncoder(clip.vision_tower(), FrameScope(), Mean(), merge_before=settings.merge_before),
        CosineHead(clip.logit_scale),
    )


METHOD = Method(
    "frozen CLIP, mean over frames; nothing trains",
    ZeroShotSettings,
    build,
    trains=False,
    properties=Properties(still=True, any_length=True, order_blind=True),
)
