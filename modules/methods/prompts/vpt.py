"""``--method vpt``: VPT-deep, visual prompt tuning (Jia et al., ECCV 2022), on a frozen CLIP.

Every layer of the image tower has N learned tokens beside those of each frame. They are replaced at the next layer, so
that they are keys and values only; they have no positions, and all frames have the same. The frames' class tokens are
read, and their mean is the video's.

It trains layers·N·D parameters: 12·20·768 = 184,320. Published for video is that number alone [inferred: the image
tower's]: 12 prompts a layer in both towers (``--num_prompts 12 --text_prompts 12``) are as many. Inferred, too: prompts
stand behind the image tower's first norm; the text tower's, if there are any, are STOP's (`DeepTextPrompts`, at no
positions). The dropout and the projection of prompts, both off in the reference, are left out. The reference trains
image classification with SGD, and its setting for video is not published: there is no recipe, the program's defaults
stand, and the rate should be searched for. Any CLIP and any number of frames will do.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.settings import at_least, setting
from modules.clip.loader import LoadedCLIP
from modules.clip.vision import ClipVisionTower
from modules.methods.base import EncoderSettings, Method, Properties
from modules.model.deep_prompts import DeepTextPrompts
from modules.model.heads import CosineHead
from modules.model.prompting import Extra, Prompted, VideoPrompting, VideoTokens
from modules.model.readouts import Mean
from modules.model.scopes import FrameScope
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel


@dataclass(frozen=True)
class VptSettings(EncoderSettings):
    """Everything that can be set about VPT."""

    num_prompts: int = setting(
        20, "learned prompts in each layer of the image tower", within=at_least(1), metavar="TOKENS"
    )
    text_prompts: int = setting(
        0, "learned prompts in each layer of the text tower; 0 for none", within=at_least(0), metavar="TOKENS"
    )


class VptVideo(VideoPrompting):
    """Learned prompts beside the tokens of each frame, others in every layer."""

    def __init__(self, tower: ClipVisionTower, num_prompts: int):
        """tower: whose layers are prompted. num_prompts: N."""
        super().__init__()
        self.learned = uniform_prompts(tower, tower.num_layers, num_prompts, tower.width)

    def before(self, tower: ClipVisionTower, layer: int, tokens: VideoTokens, keys: Tensor | None) -> Prompted:
        """Prompt the input of a block."""
        return Prompted(tokens, Extra.of_frames(self.learned[layer]))


def uniform_prompts(tower: ClipVisionTower, *shape: int) -> nn.Parameter:
    """Learned vectors (…, D) for an image tower, uniform in ±√(6 / (3·p·p + D)) with patches of p·p pixels."""
    bound = math.sqrt(6 / (tower.conv1.weight[0].numel() + tower.width))
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


def build(clip: LoadedCLIP, settings: VptSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """VPT around a frozen CLIP; without text prompts each caption is embedded once."""
    vision = clip.vision_tower()
    video_encoder = VideoEncoder(
        vision, FrameScope(), Mean(), VptVideo(vision, settings.num_prompts), settings.merge_before
    )
    if settings.text_prompts:
        text = clip.text_tower()
        prompts = DeepTextPrompts(text, settings.text_prompts, take_positions=False)
        text_encoder = TextEncoder(text, clip.tokenizer, max_words, prompts)
    else:
        text_encoder = TextEncoder(clip.frozen_text_tower(), clip.tokenizer, max_words)
    return VideoTextModel(text_encoder, video_encoder, CosineHead(clip.logit_scale))


METHOD = Method(
    "learned prompts in every layer of the image tower (ECCV 2022)",
    VptSettings,
    build,
    trains=True,
    properties=Properties(still=True, any_length=True, order_blind=True),
)
