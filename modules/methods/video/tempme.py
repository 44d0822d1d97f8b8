"""``--method tempme``: TempMe, low-rank changes and tokens merged within and across frames (Shen et al., ICLR 2025).

Every block of both towers has a low-rank change of its joined query, key and value projection. A video begins as one
clip a frame. In layers 0 to 7 two patches of each frame are merged behind attention. Before layers 8, 9 and 10
neighbouring clips are joined in groups of 2, 2 and 3, so that 12 frames are 6 clips, 3 and one: a learned vector for
each of the clips, 12, 6 and 3, is added to its tokens, and as many patches as 30% of all tokens are merged across the
joined clips before attention; from layer 8 on 10% are merged within each clip behind attention. Percentages are of all
tokens of a clip, class tokens counted, rounded down. Class tokens are never merged: the 12 behind the last block are
projected and averaged, as in CLIP4Clip. Of 600 tokens 97 are left, and of 51.5 G multiplications in the blocks 33.3 G.

Merging is bipartite soft matching (Bolya et al., ICLR 2023): of two sets of patches each of the first looks for the one
most like it in the second, by the cosine, and the pairs most alike become their mean, weighted by how many patches each
stands for; the logarithm of that number is added to a token's logit as a key. Within a clip the sets are every other
patch, compared by the mean over heads of their keys, after attention. Across clips patches are compared as they are,
before the learned vectors are added, as in the released code; that the first clip of a group is the second set there,
and that what is left stands behind it in order, is [ours].

At ViT-B/32 12 · 8 · (768 + 2,304 + 512 + 1,536) = 491,520 parameters of rank 8 and 21 vectors of 768 train: 507,648.
Learned vectors start at zero [inferred], low-rank changes at nothing: training starts from CLIP with merged tokens.

A padded frame counts for nothing: nobody attends to its tokens, they are the first to be merged, with no weight, and
none is merged into them while there is a real one. As many tokens are merged whatever is padding, so that a short video
loses fewer of its own, and no shape depends on data.

Other sizes: for L layers those named above are ⌊i·L/12⌋, moved down where two would be one; the groups are the prime
factors of T, smallest first, joined before layer ⌊8·L/12⌋ and those behind it. A model is made for its number of frames
and refuses others. The learning rate is the paper's.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.settings import at_least, between, setting
from modules.clip.block import Block
from modules.clip.loader import LoadedCLIP
from modules.clip.vision import ClipVisionTower
from modules.methods.adapters.lora import add_lora
from modules.methods.base import EncoderSettings, Method, Properties
from modules.model.heads import CosineHead
from modules.model.prompting import Prompted, VideoPrompting, VideoTokens
from modules.model.readouts import Mean
from modules.model.scopes import FrameScope, mix
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel

FIRST_JOIN, LAYERS = 8, 12  # the layer before which clips are first joined, of how many


@dataclass(frozen=True)
class TempmeSettings(EncoderSettings):
    """Everything that can be set about TempMe."""

    lora_rank: int = setting(8, "rank of what is added to each query, key and value projection", within=at_least(1))
    merge_patches: int = setting(
        2, "patches merged in each frame and layer before clips are joined", within=at_least(0), metavar="PATCHES"
    )
    merge_across: int = setting(
        30, "share of a joined clip's tokens merged before attention", within=between(0, 100), metavar="PERCENT"
    )
    merge_within: int = setting(
        10, "share of a clip's tokens merged behind attention from there on", within=between(0, 100), metavar="PERCENT"
    )

    def problems(self) -> list[str]:
        """What does not fit together; see `common.settings.range_problems`."""
        problems = super().problems()
        if self.merge_frames:
            problems.append("--merge_frames: TempMe merges frames in its own way")
        return problems


@dataclass(frozen=True)
class Step:
    """What becomes of a clip's tokens in a layer.

    Attributes:
        group: clips joined to one before it; 1 for none.
        across: patches merged before attention, over the joined clips.
        within: patches merged behind attention.
    """

    group: int
    across: int
    within: int


def prime_factors(number: int) -> list[int]:
    """Smallest first: 12 → 2, 2, 3; none of 1."""
    factors, factor = [], 2
    while number > 1:
        while number % factor == 0:
            factors.append(factor)
            number //= factor
        factor += 1
    return factors


def join_layers(count: int, num_layers: int) -> list[int]:
    """Before which layers clips are joined, rising: ⌊(8 + j)·L/12⌋, or the highest below it that is left.

    Raises:
        UserError: if there are fewer layers than that.
    """
    layers, limit = [], num_layers
    for join in reversed(range(count)):
        limit = min((FIRST_JOIN + join) * num_layers // LAYERS, limit - 1)
        layers.insert(0, limit)
    if limit < 0:
        raise UserError(
            f"--max_frames: TempMe joins frames before as many layers as their number has prime factors, {count}, and "
            f"this CLIP has {num_layers}"
        )
    return layers


def make_steps(settings: TempmeSettings, num_layers: int, num_frames: int, num_patches: int) -> list[Step]:
    """What becomes of the tokens, layer by layer.

    Args:
        settings: how many are merged.
        num_layers: L. num_frames: T. num_patches: P of a frame.

    Raises:
        UserError: if the layers do not suffice.
    """
    groups = prime_factors(num_frames)
    joins = dict(zip(join_layers(len(groups), num_layers), groups, strict=True))
    first = min(joins, default=FIRST_JOIN * num_layers // LAYERS)
    classes, patches, steps = 1, num_patches, []
    for layer in range(num_layers):
        group, across = joins.get(layer, 1), 0
        classes, patches = classes * group, patches * group
        if group > 1:
            across = min((classes + patches) * settings.merge_across // 100, patches - patches // group)
            patches -= across
        wanted = settings.merge_patches if layer < first else (classes + patches) * settings.merge_within // 100
        within = min(wanted, patches // 2)
        patches -= within
        steps.append(Step(group, across, within))
    return steps


@torch.no_grad()
def match(keys: Tensor, sizes: Tensor, giving: slice, receiving: slice, count: int) -> tuple[Tensor, Tensor]:
    """Which patches merge, by bipartite soft matching.

    Args:
        keys: (N, P, K), what patches are compared by.
        sizes: (N, P), how many patches each stands for, 0 for padding.
        giving: the places of the patches that may be merged into others.
        receiving: those of all others, which stay.
        count: how many of `giving` are merged.

    Returns:
        (N, P − count, P), of what shares of the patches each new one is made: the receiving ones first, then what is
        left of the others, each in order; and how many patches these stand for, (N, P − count).
    """
    keys, real = F.normalize(keys, dim=-1), sizes > 0
    likeness = keys[:, giving] @ keys[:, receiving].mT
    best, partner = likeness.masked_fill(~real[:, None, receiving], -torch.inf).max(-1)  # (N, giving)
    best = best.masked_fill(~real[:, giving], torch.inf)
    merged = best.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) < count
    stays = torch.arange(likeness.shape[2], device=keys.device)
    places = torch.empty(sizes.shape, dtype=torch.int64, device=keys.device)  # in the new order
    places[:, receiving] = stays
    places[:, giving] = torch.where(merged, partner, (~merged).cumsum(1) - 1 + len(stays))
    new = torch.arange(sizes.shape[1] - count, device=keys.device)
    shares = (places[:, None] == new[:, None]) * sizes[:, None]
    new_sizes = shares.sum(-1)
    return shares / new_sizes.clamp_min(1)[..., None], new_sizes


def merge(patches: Tensor, shares: Tensor) -> Tensor:
    """Patches (N, P, D) mixed by shares (N, P′, P), in full precision: (N, P′, D)."""
    with torch.autocast(patches.device.type, enabled=False):
        return shares.to(patches.dtype) @ patches


@dataclass(frozen=True)
class ClipTokens(VideoTokens):
    """Tokens of clips: `patches` are (B, C, P, D), of each of C clips, to which T / C of the class tokens belong.

    Attributes:
        patch_sizes: (B, C, P), how many patches each stands for; 0 for padding, once clips were joined. None before
            any were merged.
        mergings: where they are noted, of what shares of patches those behind each merging were made, (N, P′, P) with
            N·P patches before it; None where nobody asks.
    """

    patch_sizes: Tensor | None = None
    mergings: tuple[Tensor, ...] | None = None

    def recording(self) -> "ClipTokens":
        """See `VideoTokens`."""
        return replace(self, mergings=())

    def merged(self, shares: Tensor) -> tuple[Tensor, ...] | None:
        """`mergings` behind another one."""
        return None if self.mergings is None else (*self.mergings, shares)

    def follow(self, features: "ClipTokens") -> "ClipTokens":
        """See `VideoTokens`; which mergings features have followed stands in theirs."""
        patches = features.patches
        for shares in self.mergings[len(features.mergings) :]:
            apart = patches.reshape(len(shares), shares.shape[2], -1)
            patches = merge(apart, shares).unflatten(0, (len(patches), -1))
        return replace(features.change(patches=patches), mergings=self.mergings)

    def known_sizes(self) -> Tensor:
        """`patch_sizes`, 1 where they are None."""
        if self.patch_sizes is not None:
            return self.patch_sizes
        return torch.ones(self.patches.shape[:3], dtype=self.patches.dtype, device=self.patches.device)


class ClipJoining(VideoPrompting):
    """Joins clips before some layers."""

    def __init__(self, tower: ClipVisionTower, num_frames: int, steps: list[Step]):
        """tower: whose tokens these are. num_frames: T. steps: of its layers."""
        super().__init__()
        self.num_frames = num_frames
        self.steps = steps
        self.joins = [layer for layer, step in enumerate(steps) if step.group > 1]
        self.vectors, clips = nn.ParameterList(), num_frames
        for layer in self.joins:
            self.vectors.append(torch.zeros(clips, tower.width))
            clips //= steps[layer].group

    def begin(self, tower: ClipVisionTower, tokens: VideoTokens) -> ClipTokens:
        """Check that the videos have the length that there are vectors for; each frame is a clip."""
        length = tokens.patches.shape[1]
        if length != self.num_frames:
            raise UserError(
                f"a TempMe model works at the number of frames that it was made for: expected {self.num_frames}, "
                f"found {length}"
            )
        return ClipTokens(tokens.cls, tokens.patches, tokens.real)

    def before(self, tower: ClipVisionTower, layer: int, tokens: ClipTokens, keys: Tensor | None) -> Prompted:
        """Join neighbouring clips where this layer's input is joined ones."""
        step = self.steps[layer]
        if step.group == 1:
            return Prompted(tokens)
        batch, clips, patches = tokens.patches.shape[:3]
        sizes, vectors = tokens.known_sizes(), self.vectors[self.joins.index(layer)]
        if clips == self.num_frames:  # until here padded frames stood alone
            sizes = sizes * tokens.real[..., None]
        joined_sizes = sizes.reshape(batch * clips // step.group, -1)
        first = slice(0, patches), slice(patches, None)
        compared = tokens.patches.detach().reshape(*joined_sizes.shape, -1)
        with torch.autocast(compared.device.type, enabled=False):
            shares, new_sizes = match(compared, joined_sizes, first[1], first[0], step.across)
        joined = merge((tokens.patches + vectors[:, None]).reshape(compared.shape), shares)
        of_frames = vectors.repeat_interleave(self.num_frames // clips, dim=0)  # (T, D)
        new = tokens.change(cls=tokens.cls + of_frames, patches=joined.unflatten(0, (batch, -1)))
        new_sizes = new_sizes.unflatten(0, (batch, -1))
        return Prompted(replace(new, patch_sizes=new_sizes, mergings=tokens.merged(shares)))


class ClipScope(FrameScope):
    """One sequence a clip: its frames' class tokens and its patches, of which some are merged behind attention."""

    name = "clip"

    def __init__(self, within: int):
        """within: how many are merged."""
        self.within = within

    def join(self, tokens: VideoTokens) -> VideoTokens:
        """See `Scope`. Nobody asks for them."""
        return tokens

    def block(self, block: Block, prompted: Prompted, cls_only: bool = False) -> VideoTokens:
        """See `Scope`. Class tokens alone need no merging, which comes behind all that they read."""
        tokens = prompted.tokens
        batch, clips = tokens.patches.shape[:2]
        x, classes = self._sequences(tokens)
        read = block.read(x)
        num_queries = classes if cls_only else x.shape[1]
        x = x[:, :num_queries] + block.attention_branch(read, None, self.mask(tokens, classes), num_queries)
        sizes, mergings = tokens.patch_sizes, tokens.mergings
        if self.within and not cls_only:
            keys = block.mean_keys(read[:, classes:])
            with torch.autocast(keys.device.type, enabled=False):
                other = slice(1, None, 2), slice(0, None, 2)
                shares, new_sizes = match(keys, tokens.known_sizes().flatten(0, 1), *other, self.within)
            x = torch.cat([x[:, :classes], merge(x[:, classes:], shares)], dim=1)
            sizes, mergings = new_sizes.unflatten(0, (batch, clips)), tokens.merged(shares)
        x = x + block.feed_forward_branch(x)
        new = self._put_back(tokens, x, classes, cls_only)
        return new if cls_only else replace(new, patch_sizes=sizes, mergings=mergings)

    def trace(
        self, block: Block, prompted: Prompted, features: VideoTokens, kept: float = 0.0, cls_only: bool = False
    ) -> VideoTokens:
        """See `Scope`."""
        tokens = prompted.tokens
        x, classes = self._sequences(tokens)
        own, _ = self._sequences(features)
        shares = block.attention(block.read(x), None, self.mask(tokens, classes), classes if cls_only else None)
        out = kept * own[:, : shares.shape[1]] + (1 - kept) * mix(shares, own)
        return self._put_back(features, out, classes, cls_only)

    @staticmethod
    def _sequences(tokens: VideoTokens) -> tuple[Tensor, int]:
        """Each clip's class tokens and patches, (B·C, T/C + P, D), and how many class tokens that are."""
        batch, clips = tokens.patches.shape[:2]
        cls = tokens.cls.reshape(batch * clips, -1, tokens.cls.shape[-1])  # (B, T, D) → (B·C, T/C, D)
        return torch.cat([cls, tokens.patches.flatten(0, 1)], dim=1), cls.shape[1]

    @staticmethod
    def _put_back(tokens: VideoTokens, x: Tensor, classes: int, cls_only: bool) -> VideoTokens:
        new = tokens.change(cls=x[:, :classes].reshape(tokens.cls.shape))
        if cls_only:
            return new
        return replace(new, patches=x[:, classes:].unflatten(0, tokens.patches.shape[:2]))

    @staticmethod
    def mask(tokens: ClipTokens, classes: int) -> Tensor | None:
        """What is added to the logits of keys, (B·C, 1, 1, T/C + P); None for nothing."""
        if tokens.patch_sizes is None:
            return None
        sizes = tokens.patch_sizes.flatten(0, 1)
        frames = tokens.real.reshape(len(sizes), classes).to(sizes.dtype)
        if classes == 1:  # a clip that is one frame, which if it is padding nobody reads
            frames = torch.ones_like(frames)
        weights = torch.cat([frames, sizes], dim=1)
        weights = weights.masked_fill(~weights.any(1, keepdim=True), 1)  # nor one that is all padding
        return weights.log()[:, None, None]


def build(clip: LoadedCLIP, settings: TempmeSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """TempMe around CLIP."""
    vision, text = clip.vision_tower(), clip.text_tower()
    steps = make_steps(settings, vision.num_layers, num_frames, vision.num_patches)
    add_lora(vision, text, rank=settings.lora_rank)
    scopes = [ClipScope(step.within) for step in steps]
    return VideoTextModel(
        TextEncoder(text, clip.tokenizer, max_words),
        VideoEncoder(vision, scopes, Mean(), ClipJoining(vision, num_frames, steps)),
        CosineHead(clip.logit_scale),
    )


METHOD = Method(
    "low-rank changes in both towers, tokens merged within and across frames (ICLR 2025)",
    TempmeSettings,
    build,
    trains=True,
    properties=Properties(still=False, any_length=False, order_blind=False),
    recipe={"lr": 6e-4},
)
