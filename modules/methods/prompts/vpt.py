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

``--frame_prompts`` adds learned prompts that each frame has for itself, so that the order of frames makes a difference
and a model is tied to their number. It is no part of VPT: with it a comparison has prompts that are as many as another
method's parameters, know the time, and read nothing of the video.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.settings import at_least, setting
from modules.clip.loader import LoadedCLIP
from modules.clip.vision import ClipVisionTower
from modules.methods.base import EncoderSettings, Method, Properties
from modules.methods.prompts.lengths import check_length
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
    frame_prompts: int = setting(
        0,
        "more of them that each frame has for itself, which ties the model to its T; 0 for none [ours]",
        within=at_least(0),
        metavar="TOKENS",
    )
    text_prompts: int = setting(
        0, "learned prompts in each layer of the text tower; 0 for none", within=at_least(0), metavar="TOKENS"
    )

    def problems(self) -> list[str]:
        """What does not fit together; see `common.settings.range_problems`."""
        problems = super().problems()
        if self.frame_prompts and self.merge_frames:
            problems.append("--frame_prompts are those of each frame in all layers: give it without --merge_frames")
        return problems


class VptVideo(VideoPrompting):
    """Learned prompts beside the tokens of each frame, others in every layer."""

    def __init__(self, tower: ClipVisionTower, num_prompts: int, num_frames: int, frame_prompts: int):
        """tower: whose layers are prompted. num_prompts: N. num_frames: T. frame_prompts: of each frame alone."""
        super().__init__()
        self.learned = uniform_prompts(tower, tower.num_layers, num_prompts, tower.width)
        self.of_each_frame = None
        if frame_prompts:
            self.of_each_frame = uniform_prompts(tower, tower.num_layers, num_frames, frame_prompts, tower.width)

    def begin(self, tower: ClipVisionTower, tokens: VideoTokens) -> VideoTokens:
        """Check that the videos have the length that there are prompts for, where frames have their own."""
        if self.of_each_frame is not None:
            check_length("VPT with --frame_prompts", self.of_each_frame.shape[1], tokens.patches.shape[1])
        return tokens

    def before(self, tower: ClipVisionTower, layer: int, tokens: VideoTokens, keys: Tensor | None) -> Prompted:
        """Prompt the input of a block."""
        own = () if self.of_each_frame is None else (self.of_each_frame[layer],)
        return Prompted(tokens, Extra.of_frames(self.learned[layer], *own))


def uniform_prompts(tower: ClipVisionTower, *shape: int) -> nn.Parameter:
    """Learned vectors (…, D) for an image tower, uniform in ±√(6 / (3·p·p + D)) with patches of p·p pixels."""
    bound = math.sqrt(6 / (tower.conv1.weight[0].numel() + tower.width))
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


def build(clip: LoadedCLIP, settings: VptSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """VPT around a frozen CLIP; without text prompts each caption is embedded once."""
    vision = clip.vision_tower()
    prompting = VptVideo(vision, settings.num_prompts, num_frames, settings.frame_prompts)
    video_encoder = VideoEncoder(vision, FrameScope(), Mean(), prompting, settings.merge_before)
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
