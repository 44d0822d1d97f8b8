"""``--method upt``: UPT, unified prompt tuning (Zang et al., 2022), around a frozen CLIP.

The prompts of both towers stand side by side in one small transformer, are parted again, and go to every layer of their
tower, as keys and values that are replaced at the next. Frames' class tokens are read, and their mean is the video's
embedding.

Its repository has no code and its paper no video. The published count is that of DGL-Transformer's generator without
global prompts [inferred], which is what this is: a table of 12·(8 + 4·T)·768 = 516,096 at 12 frames, one transformer
block, 7,087,872, and an MLP for the text's prompts, 1,968,128: 9,572,096. With prompts that all frames share it would
be 9.17 million, so each frame has its own; a model is tied to the frames that its table has rows for, and refuses
others. Where the prompts stand in a text `generators` says. No setting is published, so there is no recipe.
"""

from modules.clip.loader import LoadedCLIP
from modules.methods.base import Method, Properties
from modules.methods.prompts.generators import (
    FramePromptSettings,
    GeneratedTextPrompts,
    GeneratedVideoPrompts,
    TransformerGenerator,
)
from modules.model.heads import CosineHead
from modules.model.readouts import Mean
from modules.model.scopes import FrameScope
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel


def build(clip: LoadedCLIP, settings: FramePromptSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """UPT around a frozen CLIP."""
    vision, text = clip.vision_tower(), clip.text_tower()
    generator = TransformerGenerator(vision, text, settings, num_frames)
    return VideoTextModel(
        TextEncoder(text, clip.tokenizer, max_words, GeneratedTextPrompts(generator)),
        VideoEncoder(vision, FrameScope(), Mean(), GeneratedVideoPrompts(generator, "UPT")),
        CosineHead(clip.logit_scale),
    )


METHOD = Method(
    "each frame's and the text's prompts made side by side by one transformer (2022)",
    FramePromptSettings,
    build,
    trains=True,
    properties=Properties(still=False, any_length=False, order_blind=False),
)
