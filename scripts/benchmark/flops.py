"""Model FLOPs of a forward pass and of a training step, of the frozen CLIP and of STOP, by formula."""

from collections.abc import Iterable
from dataclasses import dataclass

from modules.clip.loader import LoadedCLIP
from modules.model.text_encoder import TextEncoder
from modules.model.video_text import VideoTextModel
from scripts.benchmark.model import FLOOR, Setup, build

FORMULA = """Model FLOPs, two a multiplication with addition. D width, E embedding, p patch side, P patches a frame,
T frames, R = T·P, S tokens of a sequence, K tokens that are keys and values only, L blocks, H heads:
  embedding        2·3·p²·D·R
  block, linears   Q·(20·D² for query, output and MLP) + (S + K)·(4·D² for key and value)
  block, attention 4·Q·(S + K)·D
                   Q = S, in STOP's last block 1; floor: S = P + 1, K = 0, T sequences;
                   STOP: S = 1 + R, K = (T−1)·N_max in the prompted blocks, and with `once` S grows by K after the first
  prompters        N^s, N^t: 2·27·D at each patch of a frame or gap; A: 2·H·D a patch
                   P^s: 2·(27·C·w + 9·w²) a patch, C = D, or behind a Linear C < D and 2·D·C more; and
                   2·(w·h + h·D) a chosen patch, and in training as much a patch for the selection's gradient;
                   P^t: 2·(D·v + 5·v² + 2·P·v + 27·v²) a patch of a gap, 2·v·N_max·P and
                   2·v·D·N_max a gap
  text prompts     the blocks of the text tower on W words with K prompts, as STOP's, and its projection
  training step    2 × linears and, for the floor, embedding of the frozen CLIP (no gradient of weights),
                   3 × attention and prompters (also before the first block, whose input needs no gradient: < 1%)"""


@dataclass(frozen=True)
class ModelFlops:
    """Floating-point operations, by what their gradients take.

    Attributes:
        frozen: products with frozen weights, whose gradient is one product more.
        trained: products of two things that have gradients, which are two products more.
        without_gradient: the rest of a forward pass.
        in_training: what no forward pass has in evaluation.
    """

    frozen: float
    trained: float
    without_gradient: float
    in_training: float = 0

    @property
    def encode(self) -> float:
        """Of encoding."""
        return self.frozen + self.trained + self.without_gradient

    @property
    def train(self) -> float:
        """Of a training step."""
        return 2 * self.frozen + 3 * self.trained + self.without_gradient + self.in_training


def floor_flops(clip: LoadedCLIP, setup: Setup) -> ModelFlops:
    """Of `encode_image` on the frames; see `FORMULA`."""
    visual = clip.model.visual
    width, patches, layers = visual.conv1.out_channels, visual.grid_size[0] ** 2, len(visual.transformer.resblocks)
    tokens = patches + 1
    frames = setup.batch_size * setup.num_frames
    embedding = 2 * visual.conv1.weight.numel() * patches
    linears = layers * tokens * 24 * width**2 + 2 * visual.proj.numel()
    return ModelFlops(frames * (embedding + linears), frames * layers * 4 * tokens**2 * width, 0)


def stop_flops(model: VideoTextModel, setup: Setup) -> ModelFlops:
    """Of STOP's video encoder in the joint scope on the frames; see `FORMULA`."""
    encoder = model.video_encoder
    tower, prompting = encoder.tower, encoder.prompting
    width, patches, frames = tower.width, tower.num_patches, setup.num_frames
    embedding = 2 * tower.conv1.weight.numel() * patches * frames
    frozen, trained, without, selection = 2 * tower.proj.numel(), 0.0, float(embedding), 0.0
    carried: list[int] = []  # the gaps of tokens that go along, in units of N_max
    for layer in range(tower.num_layers):
        if layer in encoder.merge_before and frames > 1:
            frames = (frames + 1) // 2
            carried = [gap // 2 for gap in carried if gap % 2]
        extra = 0
        if layer in prompting.layers:
            made, maps, projected = prompter_flops(model, frames)
            trained, without, selection = trained + made, without + maps, selection + projected
            if prompting.carry:
                carried = list(range(frames - 1))
            else:
                extra = (frames - 1) * prompting.inter_frame.num_slots
        tokens = 1 + frames * patches + len(carried) * prompting.inter_frame.num_slots
        queries = 1 if layer == tower.num_layers - 1 else tokens
        frozen += 20 * width**2 * queries + 4 * width**2 * (tokens + extra)
        trained += 4 * width * queries * (tokens + extra)
    batch = setup.batch_size
    text_frozen, text_attention = text_flops(model.text_encoder)
    return ModelFlops(
        batch * (frozen + text_frozen), batch * (trained + text_attention), batch * without, batch * selection
    )


def prompter_flops(model: VideoTextModel, frames: int) -> tuple[float, float, float]:
    """Of prompting a layer's input of so many frames.

    Returns:
        Of what has gradients, of A, which has none, and of the gradient of the selection.
    """
    encoder = model.video_encoder
    tower, intra, inter = encoder.tower, encoder.prompting.intra_frame, encoder.prompting.inter_frame
    width, patches = tower.width, tower.num_patches
    gaps, regions = frames - 1, frames * patches
    w, h = intra.prompter.linear_in.in_features, intra.prompter.linear_in.out_features
    v, c = inter.prompter.reduce.out_features, intra.prompter.conv_in.in_channels
    behind = 2 * (w * h + h * width)
    reduce = 0 if c == width else 2 * width * c
    spatial = regions * (54 * width + reduce + 2 * (27 * c * w + 9 * w**2)) + frames * intra.num_regions * behind
    temporal = gaps * patches * (54 * width + 2 * (width * v + 5 * v**2 + 2 * patches * v + 27 * v**2))
    temporal += gaps * inter.num_slots * 2 * v * (patches + width)
    return spatial + temporal, regions * 2 * tower.blocks[0].num_heads * width, regions * behind


def text_flops(encoder: TextEncoder) -> tuple[float, float]:
    """Of embedding a caption where the text side trains, else 0: products with frozen weights, and attention."""
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        return 0, 0
    tower, words = encoder.tower, encoder.max_words
    keys = words + encoder.prompting.learned.shape[1]
    linears = tower.num_layers * tower.width**2 * (20 * words + 4 * keys) + 2 * tower.text_projection.numel()
    return linears, tower.num_layers * 4 * tower.width * words * keys


def count_flops(setup: Setup, names: Iterable[str]) -> dict[str, ModelFlops]:
    """`ModelFlops` of each of `names`: the floor and STOP's."""
    clip = setup.load_clip()
    return {
        name: floor_flops(clip, setup) if name == FLOOR else stop_flops(build(name, clip, setup), setup)
        for name in names
    }
