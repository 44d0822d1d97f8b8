"""``--method stop``: STOP, integrated spatial-temporal dynamic prompting (Liu et al., CVPR 2025).

At a prompted layer the intra-frame prompter adds prompts to the discriminative regions of each frame, then the
inter-frame prompter inserts tokens between frames where much changes. One pair of prompters serves all layers. What the
paper leaves open and was decided here is marked [ours] where it is built.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.settings import above, at_least, between, setting
from modules.clip.loader import LoadedCLIP
from modules.clip.vision import ClipVisionTower
from modules.methods.base import Method
from modules.methods.stop.inter_frame import InterFramePrompting, TemporalPrompter, num_heads
from modules.methods.stop.intra_frame import IntraFramePrompting, SpatialPrompter
from modules.model.dropout import fold_in
from modules.model.heads import CosineHead
from modules.model.prompting import Extra, Prompted, VideoPrompting, VideoTokens
from modules.model.readouts import ClassToken, Mean
from modules.model.scopes import SCOPES
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel

INTRA, INTER = 0, 1  # what the two prompters' dropout keys are told apart by


@dataclass(frozen=True)
class StopSettings:
    """Everything that can be set about STOP."""

    attention_scope: str = setting("joint", "one sequence a video, or one a frame [ours]", ("joint", "frame"))
    prompting: str = setting("per_layer", "prompt before every block, or once", ("per_layer", "once"))
    num_regions: int = setting(
        6, "N_s, patches prompted in each frame; 0 for no intra-frame prompts", within=at_least(0), metavar="PATCHES"
    )
    alpha: float = setting(0.5, "α, weight of attention against temporal dynamics in W^s", within=between(0, 1))
    beta: float = setting(1.0, "β, extra weight of discriminative regions in W^t", within=at_least(0))
    eta: float = setting(
        4.0,
        "η, tokens for the gap that varies most; 0 for no inter-frame prompts",
        within=at_least(0),
        metavar="TOKENS",
    )
    epsilon: float = setting(
        0.0009,
        "ε, share of the tokens' mean square below which a gap counts as still",
        within=above(0),
        metavar="SHARE",
    )
    dynamics_norm: str = setting("frame", "divide M_i by its sum over the frame, or not", ("frame", "none"))
    selection_gradient: str = setting(
        "straight_through",
        "how the choice of regions passes a gradient to N^s",
        ("straight_through", "none"),
        training_only=True,
    )
    time_embedding: bool = setting(
        False, "add a learned embedding a frame and gap; ties the model to its T, and still videos may get tokens"
    )
    spatial_width: int = setting(64, "channels of the convolutions in P^s", within=at_least(1), metavar="WIDTH")
    spatial_hidden: int = setting(256, "width between the Linears of P^s", within=at_least(1), metavar="WIDTH")
    temporal_width: int = setting(
        96, "bottleneck width of P^t, a multiple of its heads, one for each 32", within=at_least(1), metavar="WIDTH"
    )
    prompt_dropout: float = setting(
        0.1,
        "dropout at the end of P^s and P^t",
        training_only=True,
        within=between(0, 1, high_open=True),
        metavar="SHARE",
    )

    def problems(self) -> list[str]:
        """What does not fit together; see `common.settings.range_problems`."""
        heads = num_heads(self.temporal_width)
        if self.temporal_width % heads:
            return [f"--temporal_width must be a multiple of its {heads} heads, found {self.temporal_width}"]
        return []


class TimeEmbedding(nn.Module):
    """A learned, zero-initialised embedding of each frame and each gap [ours]."""

    def __init__(self, num_frames: int, width: int):
        super().__init__()
        self.frames = nn.Parameter(torch.zeros(num_frames, width))
        self.gaps = nn.Parameter(torch.zeros(max(num_frames - 1, 0), width))

    def check_length(self, length: int) -> None:
        """Refuse videos of another T than the embedding was made for.

        Raises:
            UserError: saying both.
        """
        if length != len(self.frames):
            raise UserError(
                f"with --time_embedding a model works at the number of frames it was made for: "
                f"expected T = {len(self.frames)}, found {length}"
            )


class StopPrompting(VideoPrompting):
    """Both prompters, before every block or before the first."""

    def __init__(
        self,
        intra_frame: IntraFramePrompting | None,
        inter_frame: InterFramePrompting | None,
        time_embedding: TimeEmbedding | None,
        per_layer: bool = True,
    ):
        """Put the prompters together.

        Args:
            intra_frame: None with N_s = 0.
            inter_frame: None with η = 0.
            time_embedding: None if not wanted.
            per_layer: prompt before every block, the temporal tokens serving that block as keys and values only; else
                prompt once, before the first, and carry the temporal tokens through.
        """
        super().__init__()
        self.intra_frame = intra_frame
        self.inter_frame = inter_frame
        self.time_embedding = time_embedding
        self.per_layer = per_layer

    def begin(self, tower: ClipVisionTower, tokens: VideoTokens) -> VideoTokens:
        """Add the frames' time embedding: to the patches, and to the class token where every frame has its own."""
        if self.time_embedding is None:
            return tokens
        self.time_embedding.check_length(tokens.patches.shape[1])
        return tokens.add_to_frames(self.time_embedding.frames)

    def before(self, tower: ClipVisionTower, layer: int, tokens: VideoTokens, keys: Tensor | None) -> Prompted:
        """Prompt the input of a block."""
        if layer > 0 and not self.per_layer:
            return Prompted(tokens)
        block, patches, real = tower.blocks[layer], tokens.patches, tokens.real
        regions = torch.zeros(patches.shape[:3], dtype=patches.dtype, device=patches.device)
        details = {}
        if self.intra_frame is not None:
            read = block.read(patches)
            attention_map = block.class_attention(block.read(tokens.cls), read)
            intra = self.intra_frame(patches, read, attention_map, real, _keys(keys, INTRA))
            patches, regions = intra.patches, intra.region_weights
            details.update(
                attention_map=attention_map,
                temporal_dynamics=intra.temporal_dynamics,
                region_scores=intra.region_scores,
                discriminative_regions=regions,
            )
        if self.inter_frame is None or patches.shape[1] < 2:
            return Prompted(tokens.change(patches=patches), details=details)
        inter = self.inter_frame(block.read(patches), regions, real, _keys(keys, INTER))
        temporal = inter.tokens
        if self.time_embedding is not None:
            temporal = temporal + self.time_embedding.gaps[:, None]
        details.update(
            frame_variation=inter.frame_variation,
            num_temporal_prompts=inter.num_temporal_prompts,
            temporal_prompts=temporal,
        )
        extra = Extra.of_gaps(temporal, mask=inter.mask)
        return Prompted(tokens.change(patches=patches), extra, carry=not self.per_layer, details=details)


def _keys(keys: Tensor | None, use: int) -> Tensor | None:
    return None if keys is None else fold_in(keys, use)


def build_prompting(tower: ClipVisionTower, settings: StopSettings, num_frames: int) -> StopPrompting:
    """The prompters of one model.

    Args:
        tower: whose tokens are prompted.
        settings: see `StopSettings`.
        num_frames: T; only the time embedding depends on it.

    Raises:
        UserError: naming a setting that is out of range.
    """
    width, grid = tower.width, tower.grid
    intra_frame = inter_frame = None
    if settings.num_regions != 0:
        intra_frame = IntraFramePrompting(
            width,
            grid,
            settings.num_regions,
            settings.alpha,
            normalize_dynamics=settings.dynamics_norm == "frame",
            straight_through=settings.selection_gradient == "straight_through",
            prompter=SpatialPrompter(
                width, grid, settings.spatial_width, settings.spatial_hidden, settings.prompt_dropout
            ),
        )
    if settings.eta != 0:
        inter_frame = InterFramePrompting(
            width,
            grid,
            settings.eta,
            settings.beta,
            settings.epsilon,
            prompter=TemporalPrompter(
                width,
                grid,
                InterFramePrompting.max_tokens(settings.eta),
                settings.temporal_width,
                settings.prompt_dropout,
            ),
        )
    time_embedding = TimeEmbedding(num_frames, width) if settings.time_embedding else None
    return StopPrompting(intra_frame, inter_frame, time_embedding, settings.prompting == "per_layer")


def build(clip: LoadedCLIP, settings: StopSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """STOP around a frozen CLIP."""
    tower = clip.vision_tower()
    scope = SCOPES[settings.attention_scope]()
    readout = ClassToken() if settings.attention_scope == "joint" else Mean()
    encoder = VideoEncoder(tower, scope, readout, build_prompting(tower, settings, num_frames))
    text_encoder = TextEncoder(clip.frozen_text_tower(), clip.tokenizer, max_words)
    return VideoTextModel(text_encoder, encoder, CosineHead(clip.logit_scale))


METHOD = Method("intra-frame spatial and inter-frame temporal prompts (CVPR 2025)", StopSettings, build, trains=True)
