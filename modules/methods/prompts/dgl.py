"""``--method dgl_linear`` and ``--method dgl_transformer``: DGL, dynamic global–local prompts (Yang et al., AAAI 2024).

Around a frozen CLIP. Every frame has local prompts in each layer, replaced at the next. Four global prompts belong to
the video and go through all layers as tokens. A frame's tokens attend to each other, the frame's local prompts and the
global prompts; a global prompt attends to the global prompts and to all tokens and local prompts of all frames. So
frames learn of each other through the global prompts alone, and there are no positions over time. The first global
prompt is the video's embedding.

One generator makes the prompts of both towers. *Linear*: 4 learned local prompts a layer, the same for every frame,
12·4·768 = 36,864; two linear maps of them make the text's prefix and postfix, 2·393,728; with the 4·768 of the global
prompts 827,392. *Transformer*: a table of 12·(8 + 4·T)·768 = 516,096 at 12 frames, one transformer block that reads
each layer's rows, 7,087,872, and an MLP for the text's, 1,968,128; with the global prompts 9,575,168.

Three things are otherwise in the reference: its postfix prompts stand behind the end of the text, where nothing that is
read sees them (see `generators`); its numbers of local and global prompts are one setting; norms and prompts' tables
decay, of which norms here do not. A Transformer model is tied to the frames that its table has rows for, as there, and
refuses others.

Settings are those of the reference's code: for the Transformer on MSR-VTT a rate of 2e-3 and 128 videos on each of 4
GPUs, which is the recipe. For Linear it has none there, so no recipe; elsewhere Linear's rate is 5e-3 (VATEX) or 1e-2
(LSMDC, ActivityNet), in 10 epochs.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from common.settings import at_least, setting
from modules.clip.block import Block
from modules.clip.loader import LoadedCLIP
from modules.clip.text import ClipTextTower
from modules.clip.vision import ClipVisionTower
from modules.methods.base import EncoderSettings, Method, Properties
from modules.methods.prompts.generators import (
    FramePromptSettings,
    GeneratedTextPrompts,
    GeneratedVideoPrompts,
    LinearGenerator,
    PromptGenerator,
    TokensWithPrompts,
    TransformerGenerator,
)
from modules.methods.prompts.vpt import uniform_prompts
from modules.model.heads import CosineHead
from modules.model.prompting import Prompted, VideoTokens
from modules.model.readouts import Readout
from modules.model.scopes import FrameScope, mix
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel


@dataclass(frozen=True)
class DglLinearSettings(EncoderSettings):
    """Everything that can be set about DGL-Linear."""

    num_prompts: int = setting(
        4,
        "local prompts of each frame in each layer, and of the text on either side of the words",
        within=at_least(1),
        metavar="TOKENS",
    )
    global_prompts: int = setting(4, "prompts of the video", within=at_least(1), metavar="TOKENS")


@dataclass(frozen=True)
class DglTransformerSettings(FramePromptSettings):
    """Everything that can be set about DGL-Transformer."""

    global_prompts: int = setting(4, "prompts of the video", within=at_least(1), metavar="TOKENS")


class GlobalLocalScope(FrameScope):
    """A sequence a frame, which also sees the video's carried tokens, and one of these, which sees all frames.

    The carried tokens (B, K, D) are the video's, not a frame's. Keys and values are made once and serve both. Where
    frames were merged, each weighs with the carried tokens as the frames that it stands for.
    """

    name = "global_local"

    def block(self, block: Block, prompted: Prompted, cls_only: bool = False) -> VideoTokens:
        """See `Scope`; the carried tokens are computed in any case.

        Raises:
            ValueError: if there are prompts that only some frames have, or that would be carried.
        """
        tokens = prompted.tokens
        of_frames, of_video = self._attentions(block, prompted, cls_only)
        out = block.finish(self.join(tokens).joined, block.attend(*of_frames))
        carried = block.finish(tokens.carried, block.attend(*of_video))
        return self._put_back(tokens, out, carried, cls_only)

    def trace(
        self, block: Block, prompted: Prompted, features: VideoTokens, kept: float = 0.0, cls_only: bool = False
    ) -> VideoTokens:
        """See `Scope`; the carried tokens' features are computed in any case."""
        of_frames, of_video = self._attentions(block, prompted, cls_only)
        own, carried = self.join(features.change()).joined, features.carried
        batch, frames = features.real.shape
        number = of_frames[1].shape[2] - carried.shape[1]  # of a frame's keys, its prompts' behind its tokens'
        seen = F.pad(own, (0, 0, 0, number - own.shape[1]))
        query, key, _ = of_frames
        beside = torch.cat([seen, carried.repeat_interleave(frames, 0)], dim=1)
        gathered = mix(block.shares(query, key), beside)
        query, key, _, weights = of_video
        beside = torch.cat([seen.reshape(batch, frames * number, -1), carried], dim=1)
        gathered_carried = mix(block.shares(query, key, weights), beside)
        return self._put_back(
            features,
            kept * own[:, : gathered.shape[1]] + (1 - kept) * gathered,
            kept * carried + (1 - kept) * gathered_carried,
            cls_only,
        )

    def _attentions(
        self, block: Block, prompted: Prompted, cls_only: bool
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
        """What `Block.attend` is given for the frames' tokens (G = B·T), and for the carried ones (G = B)."""
        tokens = prompted.tokens
        batch, frames = tokens.real.shape
        own, carried = self.join(tokens).joined, tokens.carried
        extra = None
        if prompted.extra is not None:
            extra, mask = self.arrange(prompted.extra, tokens)
            if mask is not None or prompted.carry:
                raise ValueError("in this scope prompts stand beside every frame, for one block")
            extra = block.read(extra)
        query, *seen = block.by_heads(block.read(own), 1 if cls_only else None, extra)
        carried_query, *carried_seen = block.by_heads(block.read(carried))
        beside = (torch.cat([x, y.repeat_interleave(frames, 0)], 2) for x, y in zip(seen, carried_seen, strict=True))
        # (B·T, heads, S, d) → (B, heads, T·S, d)
        of_all = (x.unflatten(0, (batch, frames)).transpose(1, 2).flatten(2, 3) for x in seen)
        all_beside = (torch.cat([x, y], 2) for x, y in zip(of_all, carried_seen, strict=True))
        weights = tokens.frame_sizes.log().repeat_interleave(seen[0].shape[2], dim=1)  # −∞ for padding
        weights = F.pad(weights, (0, carried.shape[1]))[:, None, None]
        return (query, *beside), (carried_query, *all_beside, weights)

    @staticmethod
    def _put_back(tokens: VideoTokens, out: Tensor, carried: Tensor, cls_only: bool) -> VideoTokens:
        split = out.unflatten(0, tokens.real.shape)
        if cls_only:
            return tokens.change(cls=split[:, :, 0], carried=carried)
        return replace(tokens, cls=split[:, :, 0], patches=split[:, :, 1:], carried=carried, joined=out)

    def join(self, tokens: VideoTokens) -> VideoTokens:
        """See `Scope`; the carried tokens stand in no frame's sequence."""
        return replace(super().join(replace(tokens, carried=None)), carried=tokens.carried)

    def merge(self, tokens: VideoTokens) -> VideoTokens:
        """See `Scope`; the carried tokens stay as they are."""
        return super().merge(replace(tokens, carried=None)).change(carried=tokens.carried)


class DglVideo(GeneratedVideoPrompts):
    """A generator's local prompts beside each frame's tokens, and global prompts that are carried."""

    def __init__(self, tower: ClipVisionTower, generator: PromptGenerator, num_global: int, method: str):
        """tower: whose tokens are prompted. num_global: of the video. method: its name, for messages."""
        super().__init__(generator, method)
        self.global_prompts = uniform_prompts(tower, num_global, tower.width)

    def begin(self, tower: ClipVisionTower, tokens: VideoTokens) -> TokensWithPrompts:
        """See `GeneratedVideoPrompts`."""
        tokens = super().begin(tower, tokens)
        return tokens.change(carried=self.global_prompts.expand(len(tokens.cls), -1, -1))


class FirstCarried(Readout):
    """The first of the carried tokens, which are the video's: (B, E), unit length."""

    def forward(self, tower: ClipVisionTower, tokens: VideoTokens) -> Tensor:
        """See `Readout`."""
        return F.normalize(tower.project(tokens.carried[:, 0]), dim=-1)

    def mean_read(self, features: VideoTokens, num_sequences: int) -> Tensor:
        """See `Readout`; it is one token's."""
        return features.carried[:, 0]


def build_linear(clip: LoadedCLIP, settings: DglLinearSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """DGL-Linear around a frozen CLIP."""
    vision, text = clip.vision_tower(), clip.text_tower()
    generator = LinearGenerator(vision, text, settings.num_prompts)
    prompting = DglVideo(vision, generator, settings.global_prompts, "DGL-Linear")
    return _put_together(clip, vision, text, prompting, settings, max_words)


def build_transformer(
    clip: LoadedCLIP, settings: DglTransformerSettings, num_frames: int, max_words: int
) -> VideoTextModel:
    """DGL-Transformer around a frozen CLIP."""
    vision, text = clip.vision_tower(), clip.text_tower()
    generator = TransformerGenerator(vision, text, settings, num_frames)
    prompting = DglVideo(vision, generator, settings.global_prompts, "DGL-Transformer")
    return _put_together(clip, vision, text, prompting, settings, max_words)


def _put_together(
    clip: LoadedCLIP,
    vision: ClipVisionTower,
    text: ClipTextTower,
    prompting: DglVideo,
    settings: EncoderSettings,
    max_words: int,
) -> VideoTextModel:
    """The model of either generator, which both encoders hold."""
    return VideoTextModel(
        TextEncoder(text, clip.tokenizer, max_words, GeneratedTextPrompts(prompting.generator)),
        VideoEncoder(vision, GlobalLocalScope(), FirstCarried(), prompting, settings.merge_before),
        CosineHead(clip.logit_scale),
    )


LINEAR = Method(
    "global and local prompts, the text's made of them by linear maps (AAAI 2024)",
    DglLinearSettings,
    build_linear,
    trains=True,
    properties=Properties(still=False, any_length=True, order_blind=True),
)
TRANSFORMER = Method(
    "global and local prompts, each frame's and the text's made by one transformer (AAAI 2024)",
    DglTransformerSettings,
    build_transformer,
    trains=True,
    properties=Properties(still=False, any_length=False, order_blind=False),
    recipe={"lr": 2e-3, "batch_size": 512},
)
