"""``--method stpn``: STPN, spatio-temporal prompting network (Sun et al., ICCV 2023), read for a frozen CLIP.

Two passes through one image tower. The first, without prompts and without gradient, gives each frame's tokens behind
the last layer (E_sup). Of those of the other frames a predictor makes N_P prompts for each frame (P), which stand
beside its tokens in the second pass and are not read; the frames' class tokens are, and their mean is the video's
embedding.

- ``--predictor transformer`` (equations 2 to 4): learned queries attend to all support tokens, P = FFN(LN(Q̂)) + LN(Q̂)
  with Q̂ = MHA(LN(Q), LN(E_sup)) + Q. The queries are the same for all frames, so that the attention to a frame's tokens
  is computed once and shared by all frames that it supports; what results is the softmax over all support tokens.
- ``--predictor mixer`` (equations 5 to 7): the support tokens' mean over frames, h = FFN(LN(·)ᵀ), P = FFN(LN(h)ᵀ).
- ``--depth shallow`` (the paper's default): one set of prompts, which goes through all layers. ``deep``: one linear map
  a layer makes L sets, each replaced at the next layer.

The paper has no CLIP. Inferred: every other real frame supports a frame, whatever its distance, since frames are
sampled from all over a video (the paper has 7 a side, 8 apart in the stream, and does not say what is done at the ends;
a frame that is alone supports itself). All its tokens do, the class token and the patches. The predictor works in 96
channels, to which keys and values, and in the mixer the second FFN, come down from CLIP's 768; a linear map leads up
again, in ``deep`` one for each layer. FFNs have a GELU and four times as many channels as they make. With ViT-B/32 that
trains 317,568 parameters with the transformer and 151,501 with the mixer (the paper's 0.11 and 0.06 million are of
Swin-T), and in ``deep`` 11·74,496 = 819,456 more.

The text tower is frozen and has no prompts. No setting is published for CLIP, so there is no recipe. In evaluation the
image tower takes twice as long. Any CLIP and any number of frames will do; in ``deep`` frames cannot be merged, since
each has its prompts in all layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.settings import at_least, setting
from modules.clip.loader import LoadedCLIP
from modules.clip.vision import ClipVisionTower
from modules.methods.base import EncoderSettings, Method, Properties
from modules.model.deep_prompts import deep_prompts
from modules.model.heads import CosineHead
from modules.model.prompting import Extra, Prompted, VideoPrompting, VideoTokens
from modules.model.readouts import Mean
from modules.model.scopes import FrameScope
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel

HEAD_WIDTH = 32  # of Swin, which the paper's predictors stand on
EXPANSION = 4  # of an FFN


@dataclass(frozen=True)
class StpnSettings(EncoderSettings):
    """Everything that can be set about STPN."""

    predictor: str = setting("transformer", "what makes prompts of other frames' tokens", ("transformer", "mixer"))
    depth: str = setting("shallow", "one set of prompts for all layers, or one a layer", ("shallow", "deep"))
    num_prompts: int = setting(7, "N_P, prompts of each frame", within=at_least(1), metavar="TOKENS")
    predictor_width: int = setting(
        96, "channels that the predictor works in, a multiple of its heads, one for each 32", within=at_least(1)
    )

    @property
    def num_heads(self) -> int:
        """Of the predictor's attention."""
        return max(1, self.predictor_width // HEAD_WIDTH)

    def problems(self) -> list[str]:
        """What does not fit together; see `common.settings.range_problems`."""
        problems = super().problems()
        if self.predictor_width > 0 and self.predictor_width % self.num_heads:
            problems.append(
                f"--predictor_width must be a multiple of its {self.num_heads} heads, found {self.predictor_width}"
            )
        if self.merge_frames and self.depth == "deep":
            problems.append(
                f"--merge_frames {self.merge_frames}: --depth deep has prompts for each frame in all layers"
            )
        return problems


class TransformerPredictor(nn.Module):
    """Learned queries that attend to the tokens of a frame's support."""

    def __init__(self, tower: ClipVisionTower, settings: StpnSettings):
        """tower: whose tokens it reads."""
        super().__init__()
        width = settings.predictor_width
        self.num_heads = settings.num_heads
        self.queries = deep_prompts(settings.num_prompts, width)  # Q
        self.norm_queries = nn.LayerNorm(width)
        self.norm_support = nn.LayerNorm(tower.width)
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(tower.width, width)
        self.to_value = nn.Linear(tower.width, width)
        self.out = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width)
        self.feed_forward = _feed_forward(width, EXPANSION * width, width)

    def forward(self, tokens: Tensor, support: Tensor) -> Tensor:
        """Predict.

        Args:
            tokens: (B, T, N, D), each frame's.
            support: (B, T, T) bool, by which frames (last) each is supported, one at least.

        Returns:
            (B, T, N_P, width of the predictor).
        """
        read = self.norm_support(tokens)
        query = self.to_query(self.norm_queries(self.queries)).unflatten(-1, (self.num_heads, -1))  # (Q, H, d)
        key, value = (to(read).unflatten(-1, (self.num_heads, -1)) for to in (self.to_key, self.to_value))
        logits = torch.einsum("qhd,bsnhd->bshqn", query, key) * query.shape[-1] ** -0.5
        logits = logits.to(self.queries.dtype)  # sums of exponentials are not left to a low precision
        # the softmax over the tokens of several frames is one over each frame's, and one over the frames' sums
        of_frame = torch.einsum("bshqn,bsnhd->bshqd", logits.softmax(-1), value.to(logits.dtype))
        sums = logits.logsumexp(-1)[:, None].masked_fill(~support[..., None, None], -torch.inf)  # (B, T, S, H, Q)
        together = torch.einsum("btshq,bshqd->btqhd", sums.softmax(2), of_frame).flatten(-2)
        hidden = self.norm_out(self.out(together) + self.queries)  # LN(Q̂)
        return self.feed_forward(hidden) + hidden


class MixerPredictor(nn.Module):
    """The mean of a frame's support, mixed over tokens and then over channels; without residuals."""

    def __init__(self, tower: ClipVisionTower, settings: StpnSettings):
        """tower: whose tokens it reads."""
        super().__init__()
        num_prompts = settings.num_prompts
        self.norm_support = nn.LayerNorm(tower.width)
        self.across_tokens = _feed_forward(1 + tower.num_patches, EXPANSION * num_prompts, num_prompts)
        self.norm_prompts = nn.LayerNorm(num_prompts)
        self.across_channels = nn.Sequential(nn.Linear(tower.width, settings.predictor_width), nn.GELU())

    def forward(self, tokens: Tensor, support: Tensor) -> Tensor:
        """See `TransformerPredictor`; the second FFN's last map is the one that makes prompts of what this returns."""
        share = support.to(tokens.dtype) / support.sum(-1, keepdim=True)
        mean = torch.einsum("bts,bsnd->btnd", share, tokens)
        hidden = self.across_tokens(self.norm_support(mean).transpose(-1, -2))  # h, (B, T, D, N_P)
        return self.across_channels(self.norm_prompts(hidden).transpose(-1, -2))


def _feed_forward(width: int, hidden: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


@dataclass(frozen=True)
class TokensWithPrediction(VideoTokens):
    """A batch's tokens, and what each layer's prompts are made of: (B, T, N_P, width of the predictor)."""

    predicted: Tensor | None = None


class StpnVideo(VideoPrompting):
    """Prompts of each frame, predicted from the others' tokens behind the unprompted tower."""

    def __init__(self, tower: ClipVisionTower, settings: StpnSettings):
        """tower: whose layers are prompted."""
        super().__init__()
        self.deep = settings.depth == "deep"
        predictor = TransformerPredictor if settings.predictor == "transformer" else MixerPredictor
        self.predictor = predictor(tower, settings)
        self.to_prompts = nn.ModuleList(
            nn.Linear(settings.predictor_width, tower.width) for _ in range(tower.num_layers if self.deep else 1)
        )

    def begin(self, tower: ClipVisionTower, tokens: VideoTokens) -> VideoTokens:
        """Pass 1, and what it predicts; shallow prompts are carried from here on."""
        predicted = self.predictor(last_tokens(tower, tokens), supporting(tokens.real))
        if self.deep:
            return TokensWithPrediction(**vars(tokens), predicted=predicted)
        return tokens.change(carried=self.to_prompts[0](predicted).flatten(0, 1))

    def before(self, tower: ClipVisionTower, layer: int, tokens: VideoTokens, keys: Tensor | None) -> Prompted:
        """Prompt the input of a block."""
        if not self.deep:
            return Prompted(tokens)
        return Prompted(tokens, Extra.of_frames(self.to_prompts[layer](tokens.predicted)))


@torch.no_grad()
def last_tokens(tower: ClipVisionTower, tokens: VideoTokens) -> Tensor:
    """Each frame's tokens behind the last block, without prompts (E_sup): (B, T, 1 + P, D)."""
    sequences = torch.cat([tokens.cls[:, :, None], tokens.patches], dim=2)
    out = sequences.flatten(0, 1)
    for block in tower.blocks:
        out = block(out)
    return out.view_as(sequences)


def supporting(real: Tensor) -> Tensor:
    """By which frames each one is supported: all other real ones, or itself if it is alone; (B, T) → (B, T, T) bool."""
    others = real[:, None] & ~torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    alone = real.sum(1) == 1
    return torch.where(alone[:, None, None], real[:, None], others)


def build(clip: LoadedCLIP, settings: StpnSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """STPN around a frozen CLIP."""
    vision = clip.vision_tower()
    prompting = StpnVideo(vision, settings)
    return VideoTextModel(
        TextEncoder(clip.frozen_text_tower(), clip.tokenizer, max_words),
        VideoEncoder(vision, FrameScope(), Mean(), prompting, settings.merge_before),
        CosineHead(clip.logit_scale),
    )


METHOD = Method(
    "prompts of each frame predicted from the other frames (ICCV 2023)",
    StpnSettings,
    build,
    trains=True,
    properties=Properties(still=True, any_length=True, order_blind=True),
)
