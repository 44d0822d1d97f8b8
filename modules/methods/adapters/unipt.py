"""``--method unipt``: UniPT, a tower of its own beside each of CLIP's (Diao et al., CVPR 2024), CLIP without gradient.

What trains reads a tower's hidden states: its first block's input and every block's output, 13 in ViT-B/32. Each is
mapped to the width of an embedding; CLIP's own embedding of the frame or the caption, mapped as well, asks each state's
tokens; a gate weighs the answers, and their mean, mapped once more, is added to CLIP's embedding. Frames are averaged
as in CLIP4Clip's meanP.

At ViT-B/32 13 maps of 768 to 512, two of 512 to 512 and a gate of 513 make 5,644,289 parameters beside the image tower;
15 maps of 512 to 512 and a gate make 3,940,353 beside the text tower: 9,584,642, where tables say 9.60 million.

CLIP keeps no activations. Beside it no token is mapped: maps are linear, so what asks goes through their transpose,
q·(W·x + b) = (Wᵀ·q)·x + q·b, and what answers through them once, Σ w·(W·x + b) = W·(Σ w·x) + b·Σ w. So all that a
training step keeps of a tower are the positive parts of its states, and the maps work on a few vectors of each.

Maps begin at the framework's values, as in the released code, so that training does not start from CLIP's embeddings.
Otherwise than there [ours]: a caption's tokens are those up to its end, where the released code takes id 0 for padding,
which is the id of "!" too. The width of the maps is that of CLIP's embeddings, 512 in the paper; a CLIP of L layers has
L + 1 states. Any number of frames will do. The learning rate is the paper's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip.block import Block
from modules.clip.loader import LoadedCLIP
from modules.clip.text import ClipTextTower
from modules.clip.vision import ClipVisionTower
from modules.kernels.copies import send
from modules.methods.base import EncoderSettings, Method, Properties
from modules.model.heads import CosineHead
from modules.model.prompting import Prompted, VideoPrompting, VideoTokens
from modules.model.readouts import Readout, mean_pool
from modules.model.scopes import FrameScope
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel

LEAST_SUM = 1e-6  # what the weights of a state's tokens are divided by at least


@dataclass(frozen=True)
class UniptSettings(EncoderSettings):
    """UniPT has nothing to set."""

    def problems(self) -> list[str]:
        """What does not fit together; see `common.settings.range_problems`."""
        problems = super().problems()
        if self.merge_frames:
            problems.append(
                "--merge_frames: UniPT reads a frame's tokens in all layers, and merged ones are not in all"
            )
        return problems


class ParallelTower(nn.Module):
    """What reads the hidden states of a tower: N sequences of S tokens, of width D, in L + 1 states."""

    undecayed = frozenset({"map_biases"})

    def __init__(self, num_states: int, width: int, output_width: int):
        """num_states: L + 1. width: D. output_width: E, also of the maps."""
        super().__init__()
        bound = 1 / math.sqrt(width)  # of the framework's linear layers
        self.map_weights = nn.Parameter(torch.empty(num_states, output_width, width).uniform_(-bound, bound))
        self.map_biases = nn.Parameter(torch.empty(num_states, output_width).uniform_(-bound, bound))
        self.map_anchor = nn.Linear(output_width, output_width)
        self.gate = nn.Linear(output_width, 1)
        self.map_output = nn.Linear(output_width, output_width)

    def forward(self, states: Sequence[Tensor], final: Tensor, at: Tensor, real: Tensor | None = None) -> Tensor:
        """Embeddings made of CLIP's own and of what was on the way to them.

        Args:
            states: the positive parts of each, (N, S, D).
            final: CLIP's embeddings, (N, E), not of unit length.
            at: (N,) int64, the token that each was read from.
            real: (N, S) bool, which tokens there are; None for all.

        Returns:
            (N, E), not of unit length.
        """
        rows = torch.arange(len(final), device=final.device)
        query = self.map_anchor(final.relu())  # (N, E)
        asking = torch.einsum("ne,led->lnd", query, self.map_weights)
        offsets = query @ self.map_biases.T  # (N, L + 1)
        answers, sums, means = [], [], []
        for state, asked, offset in zip(states, asking, offsets.T, strict=True):
            scores = torch.bmm(state, asked[..., None])[..., 0] + offset[:, None]  # (N, S)
            weights = scores.relu() if real is None else scores.relu() * real
            weights = weights / weights.sum(1, keepdim=True).clamp_min(LEAST_SUM)
            answers.append(torch.bmm(weights[:, None], state)[:, 0] + state[rows, at])
            sums.append(weights.sum(1) + 1)
            means.append(_mean(state, real))
        answer = torch.einsum("lnd,led->lne", torch.stack(answers), self.map_weights)
        answer = answer + torch.stack(sums)[..., None] * self.map_biases[:, None]
        mean = torch.einsum("lnd,led->lne", torch.stack(means), self.map_weights) + self.map_biases[:, None]
        shares = self.gate(query * mean).softmax(dim=0)  # (L + 1, N, 1)
        return final + self.map_output((shares * answer).sum(0).relu())


def _mean(state: Tensor, real: Tensor | None) -> Tensor:
    """The mean of the tokens that there are: (N, S, D) → (N, D)."""
    if real is None:
        return state.mean(1)
    return (state * real[..., None]).sum(1) / real.sum(1, keepdim=True)


def positive_part(tokens: Tensor) -> Tensor:
    """What the maps read of a state, in the precision that they compute in: kept once, not once more for them."""
    device = tokens.device.type
    return tokens.relu().to(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype)


@dataclass(frozen=True)
class RecordedTokens(VideoTokens):
    """Tokens with what is kept of the states before.

    Attributes:
        states: the positive parts of each state, (B·T, 1 + P, D).
    """

    states: tuple[Tensor, ...] = ()


class Recording(VideoPrompting):
    """Nothing is prompted; the first block's input is the first state."""

    def begin(self, tower: ClipVisionTower, tokens: VideoTokens) -> RecordedTokens:
        """Keep what the first block reads."""
        joined = torch.cat([tokens.cls[:, :, None], tokens.patches], dim=2).flatten(0, 1)
        return RecordedTokens(tokens.cls, tokens.patches, tokens.real, joined=joined, states=(positive_part(joined),))


class RecordingScope(FrameScope):
    """One sequence a frame, whose blocks run without gradient; their outputs are kept."""

    def block(self, block: Block, prompted: Prompted, cls_only: bool = False) -> VideoTokens:
        """See `Scope`; all tokens are computed."""
        with torch.no_grad():
            tokens = super().block(block, prompted)
            return replace(tokens, states=(*tokens.states, positive_part(tokens.joined)))


class ParallelReadout(Readout):
    """Frames' embeddings with what a `ParallelTower` adds, averaged as `Mean` does."""

    cls_only = False

    def __init__(self, tower: ClipVisionTower):
        """tower: whose states are read."""
        super().__init__()
        self.parallel = ParallelTower(tower.num_layers + 1, tower.width, tower.output_width)

    def forward(self, tower: ClipVisionTower, tokens: RecordedTokens) -> Tensor:
        """See `Readout`."""
        final = tower.project(tokens.cls)  # (B, T, E)
        first = torch.zeros(final.shape[:2], dtype=torch.int64, device=final.device).flatten()
        frames = self.parallel(tokens.states, final.flatten(0, 1), first)
        return mean_pool(frames.unflatten(0, final.shape[:2]), tokens.real)


class ParallelTextEncoder(TextEncoder):
    """Captions' embeddings with what a `ParallelTower` adds."""

    def __init__(self, tower: ClipTextTower, tokenizer, max_words: int):
        """See `TextEncoder`."""
        super().__init__(tower, tokenizer, max_words)
        self.parallel = ParallelTower(tower.num_layers + 1, tower.width, tower.output_width)

    def _embed(self, ids: Tensor, keys: Tensor | None = None) -> Tensor:
        """(N, W) int64 → (N, E), unit length."""
        tower = self.tower
        ids = send(ids, tower.positional_embedding.device)
        with torch.no_grad():
            tokens, ends, mask = tower.embed(ids), tower.ends(ids), tower.causal_mask(ids.shape[1])
            states = [positive_part(tokens)]
            for block in tower.blocks:
                tokens = block(tokens, mask=mask)
                states.append(positive_part(tokens))
            final = tower.project(tokens, ends)
        real = torch.arange(ids.shape[1], device=ids.device) <= ends[:, None]
        return F.normalize(self.parallel(states, final, ends, real), dim=-1)


def build(clip: LoadedCLIP, settings: UniptSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """UniPT beside a frozen CLIP."""
    vision = clip.vision_tower()
    return VideoTextModel(
        ParallelTextEncoder(clip.text_tower(), clip.tokenizer, max_words),
        VideoEncoder(vision, RecordingScope(), ParallelReadout(vision), Recording()),
        CosineHead(clip.logit_scale),
    )


METHOD = Method(
    "modules beside both towers that read their hidden states, CLIP without gradient (CVPR 2024)",
    UniptSettings,
    build,
    trains=True,
    properties=Properties(still=True, any_length=True, order_blind=True),
    recipe={"lr": 1e-4},
)
