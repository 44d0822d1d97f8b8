"""``--method bias``: the biases of both of CLIP's towers and nothing else, as BitFit (Zaken et al., ACL 2022) does.

The row "Bias" of the VoP paper (Huang et al., CVPR 2023): every bias of a linear layer, of attention's joined and
output projection and of a norm trains; all weights stay, and so does the scale of similarities [inferred]. CLIP's
patches and output projections have none. In ViT-B/32 that is 12 · 8,448 in the image tower's blocks, 12 · 5,632 in the
text tower's and 2,048 in the norms outside of them, 171,008 in all; the paper prints 0.1 million, which is what is left
without those of the joined projections (124,928). Of these, the third that belongs to keys changes nothing: a softmax
does not see what all its logits have in common.

It starts from CLIP, where it is `zero_shot`. Biases do not decay. Batch and words are those of the paper's rows, whose
rates were searched for and are not printed: the program's default stands. Nothing depends on the size of CLIP or on the
number of frames.
"""

from dataclasses import dataclass

from torch import nn

from modules.clip.loader import LoadedCLIP
from modules.clip.text import ClipTextTower
from modules.clip.vision import ClipVisionTower
from modules.methods.base import EncoderSettings, Method, Properties
from modules.model.heads import CosineHead
from modules.model.readouts import Mean
from modules.model.scopes import FrameScope
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel


@dataclass(frozen=True)
class BiasSettings(EncoderSettings):
    """It has none of its own."""


def thaw_biases(tower: ClipVisionTower | ClipTextTower) -> None:
    """Let train every bias of a tower."""
    for module in tower.modules():
        if isinstance(module, nn.MultiheadAttention):  # whose output projection is a linear layer of its own
            module.in_proj_bias.requires_grad_(True)
        elif isinstance(module, nn.Linear | nn.LayerNorm):
            module.bias.requires_grad_(True)


def build(clip: LoadedCLIP, settings: BiasSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """CLIP with biases that train."""
    vision, text = clip.vision_tower(), clip.text_tower()
    thaw_biases(vision)
    thaw_biases(text)
    return VideoTextModel(
        TextEncoder(text, clip.tokenizer, max_words),
        VideoEncoder(vision, FrameScope(), Mean(), merge_before=settings.merge_before),
        CosineHead(clip.logit_scale),
    )


METHOD = Method(
    "all biases of CLIP's towers (BitFit)",
    BiasSettings,
    build,
    trains=True,
    properties=Properties(still=True, any_length=True, order_blind=True),
    recipe={"batch_size": 32, "max_words": 77},
)
