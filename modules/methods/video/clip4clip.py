"""``--method clip4clip``: CLIP4Clip (Luo et al., Neurocomputing 2022), full fine-tuning with four similarity headers.

Both of CLIP's towers train at a small rate, but for what embeds (patches, tokens, positions, class token) and the image
tower's first norm. The header compares the text's embedding with the frames':

- ``meanP``: their mean; without a training step that is `zero_shot`.
- ``seqLSTM``, ``seqTransf``: frames read by an LSTM or a transformer over time, added to what they were, then the mean.
- ``tightTransf``: text and frames through one transformer that scores the pair; there are no embeddings to search.

Here all methods are trained alike [ours]: AdamW where the original has a BERT-style Adam without bias correction, a
gradient that is clipped once, no decay on norms, a cosine that is re-based after warm-up, a random frame of each
segment in training and the middle one in test where the original takes equally spaced ones in both, and the precision
that ``--precision`` says where the original mixes none. New modules start from torch's own defaults.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.settings import above, setting
from modules.clip.block import QUICK_GELU_FACTOR, Block
from modules.clip.loader import LoadedCLIP
from modules.clip.text import ClipTextTower
from modules.clip.vision import ClipVisionTower, UnsupportedCLIP
from modules.methods.base import EncoderSettings, Method, Properties
from modules.model.dropout import HEAD, SampleDropout, fold_in
from modules.model.heads import CosineHead, Head
from modules.model.prompting import VideoTokens
from modules.model.readouts import Frames, Mean, Readout, mean_pool
from modules.model.scopes import FrameScope
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel

HEADERS = ("meanP", "seqLSTM", "seqTransf", "tightTransf")
NUM_BLOCKS = 4  # of a header's transformer
PAIR_DROPOUT = 0.1


@dataclass(frozen=True)
class Clip4ClipSettings(EncoderSettings):
    """Everything that can be set about CLIP4Clip."""

    sim_header: str = setting("meanP", "how frames are compared with a text", HEADERS)
    coef_lr: float = setting(
        1e-3, "factor of the learning rate inside CLIP", training_only=True, within=above(0), metavar="FACTOR"
    )

    def problems(self) -> list[str]:
        """What does not fit together; see `common.settings.range_problems`."""
        problems = super().problems()
        if self.merge_frames and self.sim_header in ("seqTransf", "tightTransf"):
            problems.append(f"--merge_frames: --sim_header {self.sim_header} has a position for each frame")
        return problems


class SeqLSTM(Readout):
    """Frames read by an LSTM, added to what they were; then the mean."""

    def __init__(self, width: int):
        """width: E."""
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(self, tower: ClipVisionTower, tokens: VideoTokens) -> Tensor:
        """See `Readout`. Padding comes last and an LSTM does not look ahead: real frames are read as if alone."""
        frames = tower.project(tokens.cls)
        with torch.autocast(frames.device.type, enabled=False):
            return mean_pool(frames + self.lstm(frames)[0], tokens.frame_sizes)


class SeqTransf(Readout):
    """Frames read by a transformer, added to what they were; then the mean."""

    def __init__(self, text: ClipTextTower, num_frames: int):
        """text: whose first blocks and positions it starts from. num_frames: T."""
        super().__init__()
        self.positions = copy_positions(text, num_frames)
        self.blocks = copy_blocks(text)

    def forward(self, tower: ClipVisionTower, tokens: VideoTokens) -> Tensor:
        """See `Readout`."""
        frames = tower.project(tokens.cls)  # (B, T, E)
        x = frames + self.positions[: frames.shape[1]]
        for block in self.blocks:
            x = block(x, mask=tokens.real[:, None, None])
        return mean_pool(frames + x, tokens.real)


class TightTransformer(Head):
    """Scores a text and the frames of a video side by side in one transformer.

    In training every process scores all pairs of the global batch at once, in full precision: at 128 × 128 pairs of 13
    tokens that are some 30 GB of activations, by arithmetic. A smaller ``--batch_size`` takes less, by its square;
    ``--accumulate`` divides what the encoders hold, not this.
    """

    def __init__(self, text: ClipTextTower, num_frames: int):
        """text: whose first blocks and positions it starts from. num_frames: T."""
        super().__init__()
        width = text.output_width
        self.positions = copy_positions(text, num_frames + 1)
        self.dropout = SampleDropout(PAIR_DROPOUT)
        self.blocks = copy_blocks(text)
        self.norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)

    def forward(self, text: Tensor, video: Tensor, keys: Tensor | None = None) -> Tensor:
        """(N, E), (M, T, E) with zeros for padding → (N, M)."""
        num_texts, (num_videos, length, width) = len(text), video.shape
        x = torch.cat(
            [
                text[:, None, None].expand(num_texts, num_videos, 1, width),
                video[None].expand(num_texts, num_videos, length, width),
            ],
            dim=2,
        ).flatten(0, 1)  # (N·M, 1 + T, E)
        if keys is not None:  # a mask a pair
            keys = fold_in(fold_in(keys, HEAD), torch.arange(num_texts, device=keys.device)[:, None]).flatten()
        x = self.dropout(x + self.positions[: length + 1], keys)
        real = video.ne(0).any(-1)  # (M, T)
        mask = torch.cat([torch.ones_like(real[:, :1]), real], dim=1).repeat(num_texts, 1)[:, None, None]
        for block in self.blocks:
            x = block(x, mask=mask)
        hidden = self.dense(self.norm(x[:, 0]))
        hidden = hidden * torch.sigmoid(QUICK_GELU_FACTOR * hidden)
        return self.score(hidden).view(num_texts, num_videos)


def copy_positions(text: ClipTextTower, length: int) -> nn.Parameter:
    """A trainable table of positions, as long as the text tower's, whose values it starts from: (W, E).

    Raises:
        UserError: if it is too short.
    """
    if length > text.context_length:
        raise UserError(
            f"this --sim_header has the {text.context_length} positions of CLIP's text tower, found {length}: give "
            "fewer --max_frames"
        )
    return nn.Parameter(text.positional_embedding.detach().clone())


def copy_blocks(text: ClipTextTower) -> nn.ModuleList:
    """Trainable blocks that start from the first of the text tower's, the last repeated where it has fewer.

    Raises:
        UnsupportedCLIP: if the tower is not as wide as an embedding.
    """
    if text.width != text.output_width:
        raise UnsupportedCLIP(
            f"this --sim_header starts from CLIP's text blocks, which are {text.width} wide where embeddings are "
            f"{text.output_width}: give --sim_header meanP or seqLSTM"
        )
    layers = [text.blocks[min(i, text.num_layers - 1)].layer for i in range(NUM_BLOCKS)]
    return nn.ModuleList(Block(copy.deepcopy(layer)) for layer in layers).requires_grad_(True)


def thaw(vision: ClipVisionTower, text: ClipTextTower) -> None:
    """Let train what CLIP4Clip trains of CLIP's towers."""
    for part in (vision.blocks, vision.ln_post, vision.proj, text.blocks, text.ln_final, text.text_projection):
        part.requires_grad_(True)


def build(clip: LoadedCLIP, settings: Clip4ClipSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """CLIP4Clip with one of its headers."""
    vision, text = clip.vision_tower(), clip.text_tower()
    tight = settings.sim_header == "tightTransf"
    if tight:
        readout, head = Frames(), TightTransformer(text, num_frames)
    else:
        head = CosineHead(clip.logit_scale, trains=True)
        if settings.sim_header == "seqLSTM":
            readout = SeqLSTM(vision.output_width)
        else:
            readout = SeqTransf(text, num_frames) if settings.sim_header == "seqTransf" else Mean()
    thaw(vision, text)
    rates = [(part, settings.coef_lr) for part in (vision, text, *([] if tight else [head]))]
    return VideoTextModel(
        TextEncoder(text, clip.tokenizer, max_words, unit_length=not tight),
        VideoEncoder(vision, FrameScope(), readout, merge_before=settings.merge_before),
        head,
        rates,
    )


METHOD = Method(
    "all of CLIP fine-tuned, four similarity headers (Neurocomputing 2022)",
    Clip4ClipSettings,
    build,
    trains=True,
    properties=Properties(still=True, any_length=True, order_blind=True),
    recipe={"lr": 1e-4},
)
