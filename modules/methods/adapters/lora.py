"""``--method lora``: a low-rank change of each block's query, key and value projection (LoRA: Hu et al., ICLR 2022).

To CLIP's frozen joined projection W, (3·D, D), s · W_up · W_down is added, of rank 8, in every block of both towers:
queries, keys and values share W_down. In ViT-B/32 that is 12 · 8 · (768 + 3 · 768) + 12 · 8 · (512 + 3 · 512) = 491,520
parameters. W_up starts at zero, so that training starts from CLIP, which is `zero_shot`; W_down as in LoRA's release,
Kaiming-uniform with a = √5, which is torch's own for a linear layer. s is LoRA's α/r.

The change is computed beside the projection and not as a parametrization of its weight: the gradient of a parametrized
weight is a product as large as the projection itself, of which W_up and W_down need little, and under bf16 a small
change would be rounded together with the weight. LoRA's paper changes queries and values alone, and of no CLIP; the
joined projection is this project's choice, and there is no recipe. Nothing depends on the size of CLIP or on the number
of frames.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from common.settings import above, at_least, setting
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
class LoraSettings(EncoderSettings):
    """Everything that can be set about LoRA."""

    lora_rank: int = setting(8, "r, rank of the change of each projection", within=at_least(1), metavar="RANK")
    lora_scale: float = setting(1.0, "s, factor of the change; LoRA's α/r", within=above(0), metavar="FACTOR")


class LowRank(nn.Module):
    """A linear map of low rank without bias, zero at the start."""

    def __init__(self, width: int, output_width: int, rank: int, scale: float):
        """width, output_width: of what it reads and gives. rank: R. scale: factor of it."""
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, output_width, bias=False)
        self.scale = scale
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, width) → (…, output width)."""
        return self.up(self.scale * self.down(tokens))

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


def add_lora(*towers: ClipVisionTower | ClipTextTower, rank: int, scale: float = 1.0) -> None:
    """Put a change beside the joined projection of every block of some towers."""
    for tower in towers:
        for block in tower.blocks:
            block.beside_projection = LowRank(tower.width, 3 * tower.width, rank, scale)


def build(clip: LoadedCLIP, settings: LoraSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """A frozen CLIP with LoRA in both towers."""
    vision, text = clip.vision_tower(), clip.text_tower()
    add_lora(vision, text, rank=settings.lora_rank, scale=settings.lora_scale)
    return VideoTextModel(
        TextEncoder(text, clip.tokenizer, max_words),
        VideoEncoder(vision, FrameScope(), Mean(), merge_before=settings.merge_before),
        CosineHead(clip.logit_scale),
    )


METHOD = Method(
    "low-rank changes of the attention projections of a frozen CLIP (LoRA)",
    LoraSettings,
    build,
    trains=True,
    properties=Properties(still=True, any_length=True, order_blind=True),
)
