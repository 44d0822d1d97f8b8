"""``--method stop``: STOP, integrated spatial-temporal dynamic prompting (Liu et al., CVPR 2025).

At a prompted layer the intra-frame prompter adds prompts to the discriminative regions of each frame, then the
inter-frame prompter inserts tokens between frames where much changes. One pair of prompters serves all layers, or each
layer has its own. Learned prompts in the text tower and adapters in both are what the equations do not have and the
public release does. What the paper leaves open and was decided here is marked [ours] where it is built.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.settings import above, at_least, between, setting
from modules.clip.loader import LoadedCLIP
from modules.clip.vision import ClipVisionTower
from modules.methods.adapters.bottleneck import add_side_adapters
from modules.methods.base import EncoderSettings, Method, Properties, parse_layers
from modules.methods.stop.inter_frame import InterFramePrompting, TemporalPrompter, num_heads
from modules.methods.stop.intra_frame import IntraFramePrompting, SpatialPrompter
from modules.model.deep_prompts import DeepTextPrompts
from modules.model.dropout import fold_in, fold_in_each, row_seeds
from modules.model.heads import CosineHead
from modules.model.measures import Measures, add_up, total
from modules.model.prompting import Extra, Prompted, VideoPrompting, VideoTokens
from modules.model.readouts import ClassToken, Mean
from modules.model.scopes import FrameScope, JointScope
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel

# what the keys of the two prompters' dropout and of a choice of regions at random are told apart by
INTRA, INTER, CHOICE = 0, 1, 2

# what --ablate leaves out: (intra-frame, inter-frame) prompts
ABLATIONS = {"none": (False, False), "intra": (True, False), "inter": (False, True), "both": (True, True)}

# what the prompters' widths are where none is given: each layer's own are narrower, so that all together stay below the
# paper's 7.53 million parameters, and those of a layer that act at every patch below a third of a million
WIDTHS = {
    "shared": {"spatial_reduce": 0, "spatial_width": 64, "spatial_hidden": 256, "temporal_width": 96},
    "own": {"spatial_reduce": 48, "spatial_width": 32, "spatial_hidden": 256, "temporal_width": 64},
}


def _width(name: str, help: str, low: int, former: int) -> int | None:
    """A setting of `WIDTHS`."""
    shared, own = WIDTHS["shared"][name], WIDTHS["own"][name]
    help += f"; by default {shared}, or {own} with --prompters own"
    return setting(None, help, within=at_least(low), metavar="WIDTH", former=former)


@dataclass(frozen=True)
class StopSettings(EncoderSettings):
    """Everything that can be set about STOP."""

    attention_scope: str = setting("joint", "one sequence a video, or one a frame [ours]", ("joint", "frame"))
    frame_weight: str = setting(
        "mean",
        "in the joint scope, what frames weigh as keys: together as much as a picture, or each of them [ours]",
        ("mean", "sum"),
        former="sum",
    )
    prompting: str = setting("per_layer", "prompt before every block, or once", ("per_layer", "once"))
    prompt_layers: str = setting(
        "", "layers before which --prompting per_layer prompts, such as 0,4,8; all if empty", metavar="LAYERS"
    )
    prompters: str = setting("shared", "one pair of prompters for all layers, or a pair a layer", ("shared", "own"))
    text_prompts: int = setting(
        0, "learned prompts in each layer of the text tower; 0 for none", within=at_least(0), metavar="TOKENS"
    )
    side_adapters: int = setting(
        0,
        "channels of an adapter beside the MLP of each block of both towers; 0 for none",
        within=at_least(0),
        metavar="WIDTH",
    )
    # a checkpoint has it in the numbers below, which are 0, as it had before there was this flag
    ablate: str = setting(
        "none",
        "leave intra-frame prompts out, inter-frame ones or both, whatever --num_regions and --eta say; both needs "
        "something else that trains, such as --text_prompts",
        tuple(ABLATIONS),
        affects_results=False,
        training_only=True,
    )
    num_regions: int = setting(
        6, "N_s, patches prompted in each frame; 0 is --ablate intra", within=at_least(0), metavar="PATCHES"
    )
    alpha: float = setting(0.5, "α, weight of attention against temporal dynamics in W^s", within=between(0, 1))
    beta: float = setting(1.0, "β, extra weight of discriminative regions in W^t", within=at_least(0))
    eta: float = setting(
        4.0,
        "η, tokens for the gap that varies most; 0 is --ablate inter",
        within=at_least(0),
        metavar="TOKENS",
    )
    epsilon: float = setting(
        0.001,
        "ε, share of the tokens' mean square below which a gap counts as still",
        within=above(0),
        metavar="SHARE",
    )
    selection: str = setting(
        "scores",
        "patches with the largest W^s, or as a control any, at random [ours]",
        ("scores", "random"),
    )
    token_count: str = setting(
        "variation",
        "tokens of a gap by its W^t, or as a control the same η for all [ours]",
        ("variation", "constant"),
    )
    dynamics_input: str = setting(
        "frames",
        "what N^s sees: a frame and the two beside it, or how it differs from them [ours]",
        ("frames", "differences"),
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
    spatial_reduce: int | None = _width(
        "spatial_reduce",
        "channels that a Linear leaves to the first convolution in P^s, 0 for no Linear",
        low=0,
        former=0,
    )
    spatial_width: int | None = _width("spatial_width", "channels of the convolutions in P^s", low=1, former=64)
    spatial_hidden: int | None = _width("spatial_hidden", "width between the Linears of P^s", low=1, former=256)
    temporal_width: int | None = _width(
        "temporal_width", "bottleneck width of P^t, a multiple of its heads, one for each 32", low=1, former=96
    )
    prompt_dropout: float = setting(
        0.1,
        "dropout at the end of P^s and P^t",
        training_only=True,
        within=between(0, 1, high_open=True),
        metavar="SHARE",
    )

    def __post_init__(self) -> None:
        """Widths that are not given are those of `WIDTHS`, from here on they are numbers; what is left out has none."""
        super().__post_init__()
        self.sort_layers("prompt_layers")
        intra, inter = ABLATIONS.get(self.ablate, ABLATIONS["none"])
        left_out = (intra or self.num_regions == 0, inter or self.eta == 0)
        object.__setattr__(self, "ablate", next(name for name, halves in ABLATIONS.items() if halves == left_out))
        for name, nothing, out in zip(("num_regions", "eta"), (0, 0.0), left_out, strict=True):
            if out:
                object.__setattr__(self, name, nothing)
        for name, width in WIDTHS.get(self.prompters, {}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, width)

    def problems(self) -> list[str]:
        """What does not fit together; see `common.settings.range_problems`."""
        problems = super().problems()
        try:
            layers = parse_layers(self.prompt_layers)
        except ValueError as error:
            problems.append(f"--prompt_layers {error}")
            layers = ()
        if layers and self.prompting == "once":
            problems.append("--prompting once prompts before the first layer only: give it without --prompt_layers")
        if self.time_embedding and self.merge_frames:
            problems.append("--time_embedding has an embedding for each frame: give it without --merge_frames")
        heads = num_heads(self.temporal_width)
        if self.temporal_width % heads:
            problems.append(f"--temporal_width must be a multiple of its {heads} heads, found {self.temporal_width}")
        if self.prompters == "own" and self.prompting == "once":
            problems.append(
                "--prompters own has a pair for each layer, of which --prompting once uses the first's only"
            )
        if self.ablate == "both" and not (self.text_prompts or self.side_adapters or self.time_embedding):
            problems.append(
                "--ablate both leaves nothing to train: give --text_prompts, --side_adapters or --time_embedding too; "
                "the frozen CLIP itself is --method zero_shot"
            )
        return problems


class TimeEmbedding(nn.Module):
    """A learned, zero-initialised embedding of each frame and, where gaps have tokens, each gap [ours]."""

    def __init__(self, num_frames: int, width: int, with_gaps: bool):
        """num_frames: T. width: D. with_gaps: whether there are inter-frame prompts."""
        super().__init__()
        self.frames = nn.Parameter(torch.zeros(num_frames, width))
        self.gaps = nn.Parameter(torch.zeros(num_frames - 1, width)) if with_gaps else None

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
        intra_frame: IntraFramePrompting | nn.ModuleList | None,
        inter_frame: InterFramePrompting | nn.ModuleList | None,
        time_embedding: TimeEmbedding | None,
        layers: Sequence[int],
        carry: bool = False,
    ):
        """Put the prompters together.

        Args:
            intra_frame: one, or a list of one for each of the layers; None where it is left out.
            inter_frame: likewise.
            time_embedding: None if not wanted.
            layers: before whose blocks to prompt, rising.
            carry: the temporal tokens go through all blocks from there; else they serve that block as keys and values
                only.
        """
        super().__init__()
        self.intra_frame = intra_frame
        self.inter_frame = inter_frame
        self.time_embedding = time_embedding
        self.layers = tuple(layers)
        self.carry = carry

    def begin(self, tower: ClipVisionTower, tokens: VideoTokens) -> VideoTokens:
        """Add the frames' time embedding: to the patches, and to the class token where every frame has its own."""
        if self.time_embedding is None:
            return tokens
        self.time_embedding.check_length(tokens.patches.shape[1])
        return tokens.add_to_frames(self.time_embedding.frames)

    def draws(self, keys: Tensor, tokens: VideoTokens) -> Sequence[tuple[Tensor | None, Tensor | None, Tensor | None]]:
        """What dropout leaves of P^s's prompts and of P^t's tokens, and `row_seeds` for a choice at random.

        Of all layers that are prompted at once: a GPU is asked once for what would else be asked for in each.
        """
        num_frames = tokens.patches.shape[1]
        uses = fold_in_each(torch.stack([keys[layer] for layer in self.layers]), 3)  # (prompted layers, 3, B)
        # of several prompters all are built alike
        intra, inter = (self._of_layer(prompters, self.layers[0]) for prompters in (self.intra_frame, self.inter_frame))
        drawn: list[Sequence[Tensor | None]] = [[None] * len(self.layers)] * 3
        if intra is not None and intra.prompter.dropout.drops:
            seeds = row_seeds(uses[:, INTRA], num_frames * intra.num_regions)
            drawn[INTRA] = intra.prompter.kept(seeds).unbind()
        if inter is not None and inter.prompter.dropout.drops:
            seeds = row_seeds(uses[:, INTER], (num_frames - 1) * inter.num_slots)
            drawn[INTER] = inter.prompter.kept(seeds).unbind()
        if self.chooses_at_random:
            drawn[CHOICE] = row_seeds(uses[:, CHOICE], num_frames).unbind()
        of_layers = dict(zip(self.layers, zip(*drawn, strict=True), strict=True))
        return [of_layers.get(layer, (None, None, None)) for layer in range(len(keys))]

    def before(
        self,
        tower: ClipVisionTower,
        layer: int,
        tokens: VideoTokens,
        draws: tuple[Tensor | None, Tensor | None, Tensor | None] | None,
    ) -> Prompted:
        """Prompt the input of a block."""
        if layer not in self.layers:
            return Prompted(tokens)
        block = tower.blocks[layer]
        kept_prompts, kept_tokens, choice_seeds = draws or (None, None, None)
        intra_frame, inter_frame = self._of_layer(self.intra_frame, layer), self._of_layer(self.inter_frame, layer)
        details = {"frame_sizes": tokens.frame_sizes}
        read = block.read(tokens.joined)
        if intra_frame is not None:
            cls, patches = tokens.parts_of(read)
            if self.chooses_at_random:
                if choice_seeds is None:  # in evaluation each frame and layer has its patches, the same in every video
                    of_layer = fold_in(torch.zeros_like(tokens.real[:, 0], dtype=torch.int64), layer)
                    choice_seeds = row_seeds(fold_in(of_layer, CHOICE), tokens.real.shape[1])
                intra = intra_frame(tokens, patches, None, kept_prompts, choice_seeds)
            else:
                attention_map = block.class_attention(cls, patches)
                intra = intra_frame(tokens, patches, attention_map, kept_prompts)
                details.update(
                    attention_map=attention_map,
                    temporal_dynamics=intra.temporal_dynamics,
                    region_scores=intra.region_scores,
                )
            tokens, regions = intra.tokens, intra.region_weights
            read = block.read(tokens.joined)
            details["discriminative_regions"] = regions
        else:
            regions = torch.zeros(tokens.patches.shape[:3], dtype=tokens.patches.dtype, device=tokens.patches.device)
        if inter_frame is None or tokens.patches.shape[1] < 2:
            return Prompted(tokens, read=read, details=details)
        inter = inter_frame(tokens.parts_of(read)[1], regions, tokens.real, kept_tokens)
        temporal = inter.tokens
        if self.time_embedding is not None:
            temporal = temporal + self.time_embedding.gaps[:, None]
        details.update(
            frame_variation=inter.frame_variation,
            num_temporal_prompts=inter.num_temporal_prompts,
            temporal_prompts=temporal,
        )
        extra = Extra.of_gaps(temporal, mask=inter.mask)
        return Prompted(tokens, extra, carry=self.carry, read=read, details=details)

    def measures(self, layers: Sequence[Mapping[str, Tensor]], real: Tensor) -> Measures:
        """Over the gaps between real frames, in all prompted layers: by them a gate that closes is seen.

        Returns:
            ``tokens_per_gap`` (N^t), ``gaps_without_tokens`` (N^t = 0) and ``frame_variation`` (W^t); nothing with
            η = 0 or videos of one frame.
        """
        gated = [layer for layer in layers if "frame_variation" in layer]
        found: dict[str, Tensor] = {}
        for length in dict.fromkeys(layer["frame_variation"].shape[1] for layer in gated):  # it falls with each merging
            alike = [layer for layer in gated if layer["frame_variation"].shape[1] == length]
            tokens = torch.stack([layer["num_temporal_prompts"] for layer in alike])  # (layers, B, T − 1)
            variation = torch.stack([layer["frame_variation"] for layer in alike])
            gaps = alike[0]["frame_sizes"][:, 1:] > 0
            totals = {
                "tokens_per_gap": total(tokens, gaps),
                "gaps_without_tokens": total(tokens == 0, gaps),
                "frame_variation": total(variation, gaps),
            }
            found = add_up(found, totals)
        return found

    @property
    def chooses_at_random(self) -> bool:
        """Whether regions are chosen at random."""
        first = self._of_layer(self.intra_frame, self.layers[0])
        return first is not None and first.at_random

    def _of_layer(self, prompters: nn.Module | None, layer: int) -> nn.Module | None:
        return prompters[self.layers.index(layer)] if isinstance(prompters, nn.ModuleList) else prompters


def build_prompting(tower: ClipVisionTower, settings: StopSettings, num_frames: int) -> StopPrompting:
    """The prompters of one model.

    Args:
        tower: whose tokens are prompted.
        settings: see `StopSettings`.
        num_frames: T; only the time embedding depends on it.

    Raises:
        UserError: naming a setting that is out of range.
    """
    layers = (0,) if settings.prompting == "once" else parse_layers(settings.prompt_layers) or range(tower.num_layers)
    if layers[-1] >= tower.num_layers:
        raise UserError(f"--prompt_layers names layer {layers[-1]}: this CLIP has layers 0 to {tower.num_layers - 1}")

    def prompters(build: Callable[[ClipVisionTower, StopSettings], nn.Module]) -> nn.Module:
        if settings.prompters == "shared":
            return build(tower, settings)
        return nn.ModuleList(build(tower, settings) for _ in layers)

    without_intra, without_inter = ABLATIONS[settings.ablate]
    return StopPrompting(
        None if without_intra else prompters(_intra_frame),
        None if without_inter else prompters(_inter_frame),
        TimeEmbedding(num_frames, tower.width, not without_inter) if settings.time_embedding else None,
        layers,
        carry=settings.prompting == "once",
    )


def _intra_frame(tower: ClipVisionTower, settings: StopSettings) -> IntraFramePrompting:
    return IntraFramePrompting(
        tower.width,
        tower.grid,
        settings.num_regions,
        settings.alpha,
        normalize_dynamics=settings.dynamics_norm == "frame",
        straight_through=settings.selection_gradient == "straight_through",
        prompter=SpatialPrompter(
            tower.width,
            tower.grid,
            settings.spatial_width,
            settings.spatial_hidden,
            settings.prompt_dropout,
            settings.spatial_reduce,
        ),
        at_random=settings.selection == "random",
        of_differences=settings.dynamics_input == "differences",
    )


def _inter_frame(tower: ClipVisionTower, settings: StopSettings) -> InterFramePrompting:
    return InterFramePrompting(
        tower.width,
        tower.grid,
        settings.eta,
        settings.beta,
        settings.epsilon,
        prompter=TemporalPrompter(
            tower.width,
            tower.grid,
            InterFramePrompting.max_tokens(settings.eta),
            settings.temporal_width,
            settings.prompt_dropout,
        ),
        constant=settings.token_count == "constant",
    )


def build(clip: LoadedCLIP, settings: StopSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """STOP around a frozen CLIP."""
    tower = clip.vision_tower()
    if settings.attention_scope == "joint":
        scope, readout = JointScope(mean_of_frames=settings.frame_weight == "mean"), ClassToken()
    else:
        scope, readout = FrameScope(), Mean()
    encoder = VideoEncoder(tower, scope, readout, build_prompting(tower, settings, num_frames), settings.merge_before)
    if settings.side_adapters:  # drawn behind the prompters, whose first values are the same without them
        add_side_adapters(tower, settings.side_adapters)
    return VideoTextModel(build_text_encoder(clip, settings, max_words), encoder, CosineHead(clip.logit_scale))


def build_text_encoder(clip: LoadedCLIP, settings: StopSettings, max_words: int) -> TextEncoder:
    """CLIP's text side, with what the settings put into it.

    K text prompts stand at no positions, so that captions keep all of `max_words` and the first layer's are learned
    vectors as they are [ours].
    """
    if not settings.text_prompts and not settings.side_adapters:
        return TextEncoder(clip.frozen_text_tower(), clip.tokenizer, max_words)
    text = clip.text_tower()
    if settings.side_adapters:
        add_side_adapters(text, settings.side_adapters)
    prompts = DeepTextPrompts(text, settings.text_prompts, take_positions=False) if settings.text_prompts else None
    return TextEncoder(text, clip.tokenizer, max_words, prompts)


def changed(checkpoint: Mapping[str, Any]) -> str | None:
    """What this code does otherwise than the one that trained a checkpoint; see `Method`.

    Until there was ``--frame_weight``, weight decay acted on N^s and N^t, and the floor of W^t did not follow the scale
    of N^t's kernel.
    """
    kernel = checkpoint["model"].get("video_encoder.prompting.inter_frame.dynamics.weight")
    if kernel is None or "frame_weight" in checkpoint["identity"]:
        return None
    power = kernel[0].numel() * kernel.square().mean().item()
    return (
        f"the floor below which a gap counts as still follows the scale of N^t's kernel now, which weight decay no "
        f"longer acts on; with this kernel it is {power:.2f} times what it was in training"
    )


METHOD = Method(
    "intra-frame spatial and inter-frame temporal prompts (CVPR 2025)",
    StopSettings,
    build,
    trains=True,
    properties=Properties(still=True, any_length=True, order_blind=False),
    changed=changed,
)
