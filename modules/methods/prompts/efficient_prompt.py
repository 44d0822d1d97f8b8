"""``--method efficient_prompt``: Efficient Prompt (Ju et al., ECCV 2022), around a frozen CLIP.

*Text*: learned vectors stand before a caption's words and between them and its end, in the input layer only. All are
rows of one table, each at its own position of the sequence: start, P rows, the words, Q rows, the end. *Video*: frames'
projected class tokens, of the length that they have, and a learned position each go through a small transformer, whose
outputs' mean is the video's embedding. Cosines are divided by 0.07; CLIP's own scale is not used.

It trains the table, 77·512, the positions, 12·512, and two blocks of 3,152,384: 6,350,336. The table has a row for each
position of the text tower, as in the reference, although rows that captions do not reach never get a gradient; words
are cut to what P and Q leave of the tower's context (45 of 77 with 16 and 16), where longer captions overflow in the
reference. A model is tied to the frames it was built for and refuses others.

Reference and recipe are of action recognition with ViT-B/16 (batch 64, rate 1e-4, decay 0.01; 1,100 steps, so that no
number of epochs is given; 16 frames; one block for HMDB51), which compares with up to 400 sampled class names, where
here all classes are there. Of retrieval nothing is published [inferred]: the program's loss over the batch. A head has
64 channels where the width allows it: 8 heads at 512.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from common.errors import UserError
from common.settings import at_least, setting
from modules.clip.block import Block
from modules.clip.loader import LoadedCLIP
from modules.clip.text import ClipTextTower
from modules.clip.vision import ClipVisionTower
from modules.methods.base import EncoderSettings, Method, Properties
from modules.methods.prompts.lengths import check_length
from modules.model.heads import CosineHead
from modules.model.prompting import TextPrompting, TextTokens, VideoTokens
from modules.model.readouts import Readout
from modules.model.scopes import FrameScope
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel

STD = 0.01  # of the first values of both tables
TEMPERATURE = 0.07
HEAD_WIDTH = 64


@dataclass(frozen=True)
class EfficientPromptSettings(EncoderSettings):
    """Everything that can be set about Efficient Prompt."""

    prefix_prompts: int = setting(
        16, "P, learned vectors before a caption's words", within=at_least(0), metavar="TOKENS"
    )
    postfix_prompts: int = setting(
        16, "Q, learned vectors between a caption's words and its end", within=at_least(0), metavar="TOKENS"
    )
    temporal_blocks: int = setting(2, "blocks of the transformer over frames", within=at_least(1), metavar="BLOCKS")

    def problems(self) -> list[str]:
        """What does not fit together; see `common.settings.range_problems`."""
        problems = super().problems()
        if self.merge_frames:
            problems.append(f"--merge_frames {self.merge_frames}: Efficient Prompt has a position for each frame")
        return problems


class PositionPrompts(TextPrompting):
    """A table of learned vectors, a row for each position, of which captions have those before and behind the words."""

    def __init__(self, tower: ClipTextTower, num_prefix: int, num_postfix: int):
        """tower: whose input is prompted. num_prefix: P. num_postfix: Q.

        Raises:
            UserError: if they leave no room for a word.
        """
        super().__init__()
        if tower.context_length - num_prefix - num_postfix < 3:
            raise UserError(
                f"--prefix_prompts {num_prefix} and --postfix_prompts {num_postfix} leave no room for start, word and "
                f"end among the {tower.context_length} positions of this CLIP's text tower: give at most "
                f"{tower.context_length - 3} together"
            )
        self.num_prefix = num_prefix
        self.num_postfix = num_postfix
        self.positions_taken = num_prefix + num_postfix
        self.table = nn.Parameter(STD * torch.randn(tower.context_length, tower.width))

    def begin(self, tower: ClipTextTower, ids: Tensor) -> TextTokens:
        """Embed captions (N, W) among the vectors, W + P + Q tokens each.

        What stands behind the end is seen by nobody who is read.
        """
        words_from, ends = 1 + self.num_prefix, tower.ends(ids)  # the end is the word that many places from the start
        new_ends = ends + self.positions_taken
        at = torch.arange(ids.shape[1] + self.positions_taken, device=ids.device)  # (S,)
        is_word = (at == 0) | (at >= words_from) & (at < ends[:, None] + self.num_prefix)  # (N, S), the end apart
        is_end = at == new_ends[:, None]
        source = (at - self.num_prefix).clamp(0, ids.shape[1] - 1).expand(len(ids), -1)  # of a word among the ids
        source = torch.where(is_end, ends[:, None], source)
        words = tower.token_embedding(ids.gather(1, source))
        tokens = torch.where((is_word | is_end)[..., None], words, self.table[: len(at)])
        return TextTokens(tokens + tower.positional_embedding[: len(at)], new_ends)


class TemporalTransformer(Readout):
    """Frames with positions read by a transformer; the mean of what it makes of the real ones."""

    def __init__(self, width: int, num_frames: int, num_blocks: int):
        """width: E. num_frames: T."""
        super().__init__()
        self.positions = nn.Parameter(STD * torch.randn(num_frames, width))
        heads = next(heads for heads in range(max(1, width // HEAD_WIDTH), 0, -1) if width % heads == 0)
        self.blocks = nn.ModuleList(
            Block(ResidualAttentionBlock(width, heads, act_layer=QuickGELU)) for _ in range(num_blocks)
        )

    def forward(self, tower: ClipVisionTower, tokens: VideoTokens) -> Tensor:
        """See `Readout`.

        Raises:
            UserError: if there are not as many frames as positions.
        """
        check_length("Efficient Prompt", len(self.positions), tokens.cls.shape[1])
        real = tokens.real
        x = tower.project(tokens.cls) + self.positions  # (B, T, E)
        for block in self.blocks:
            x = block(x, mask=real[:, None, None])
        return F.normalize((x * real[..., None]).sum(1) / real.sum(1, keepdim=True), dim=-1)


def build(clip: LoadedCLIP, settings: EfficientPromptSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """Efficient Prompt around a frozen CLIP."""
    vision, text = clip.vision_tower(), clip.text_tower()
    prompts = PositionPrompts(text, settings.prefix_prompts, settings.postfix_prompts)
    readout = TemporalTransformer(vision.output_width, num_frames, settings.temporal_blocks)
    return VideoTextModel(
        TextEncoder(text, clip.tokenizer, max_words, prompts),
        VideoEncoder(vision, FrameScope(), readout),
        CosineHead(1 / TEMPERATURE),
    )


METHOD = Method(
    "learned vectors around the words, a transformer over frames (ECCV 2022)",
    EfficientPromptSettings,
    build,
    trains=True,
    properties=Properties(still=False, any_length=False, order_blind=False),
    recipe={"lr": 1e-4, "batch_size": 64, "weight_decay": 0.01},
)
