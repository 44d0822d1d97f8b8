"""Seconds and memory of STOP's training step and encoding, beside those of the frozen CLIP on the same frames.

The floor is open_clip's own ``encode_image``: forward for encoding; forward and backward to its input for a training
step. STOP is at its defaults, but for what a row's name says, with every slot of every gap filled; a training step has
the contrastive loss, the gradients, their clipping and AdamW in it. Where the text side trains, a step also embeds a
caption a video; else captions are embedded once in a training and left out. Weights are random, which changes no time.
"""

import ctypes
import gc
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from modules.clip.loader import LoadedCLIP, load_clip
from modules.clip.vision import ClipVisionTower
from modules.methods.stop.stop import StopSettings, build
from modules.model.text_encoder import TextEncoder
from modules.model.video_text import VideoTextModel
from modules.runtime.precision import choose_precision
from modules.tasks.losses import symmetric_contrastive_loss
from modules.training.optimization import build_optimizer

FLOOR, ONCE, PER_LAYER, TEXT, REDUCED = "floor", "once", "per_layer", "text_prompts", "spatial_reduce"
ONCE_MERGED, PER_LAYER_MERGED = "once_merged", "per_layer_merged"
# what each one of STOP sets
STOPS: dict[str, dict[str, Any]] = {
    ONCE: {"prompting": "once"},
    PER_LAYER: {},
    TEXT: {"text_prompts": 8},
    REDUCED: {"spatial_reduce": 64},
    ONCE_MERGED: {"prompting": "once"},
    PER_LAYER_MERGED: {},
}
MERGED = (ONCE_MERGED, PER_LAYER_MERGED)  # before the second and the last third of the layers
SUBJECTS = (FLOOR, *STOPS)
TEXT_OVER_PER_LAYER = "train_step_of_text_prompts_over_per_layer"
MAX_WORDS = 32
WARMED_UP_TO = 12  # frames
MAX_REPEATS = 5  # of a length of the growth
PAGE_MIB = 2**-8  # less is not seen in resident memory


class SlotsNotFilled(UserError):
    """The frames made here do not fill every slot, so that STOP would be measured with fewer tokens."""


@dataclass(frozen=True)
class Setup:
    """What is measured.

    Attributes:
        batch_size, num_frames: videos, and frames of each.
        device: "cpu" or "cuda".
        precision: fp32 or bf16.
        threads: of the CPU.
        compiled: the floor and STOP both through torch.compile.
        clip: an open_clip model folder; None for a ViT-B/32 with random weights.
        checkpointed: STOP computes activations again for the gradients.
        blank: frames hold nothing, for those who look at shapes alone.
    """

    batch_size: int
    num_frames: int
    device: str
    precision: str
    threads: int
    compiled: bool = False
    clip: Path | None = None
    checkpointed: bool = False
    blank: bool = False

    def load_clip(self) -> LoadedCLIP:
        """The frozen CLIP, on the device."""
        torch.manual_seed(0)
        if self.clip is not None:
            loaded = load_clip(str(self.clip))
        else:
            logging.disable(logging.WARNING)  # that there are no weights
            model = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False)
            logging.disable(logging.NOTSET)
            mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
            tokenizer = open_clip.get_tokenizer("ViT-B-32")
            loaded = LoadedCLIP(model.eval().requires_grad_(False), tokenizer, mean, std)
        loaded.model.to(self.device)
        return loaded


@dataclass(frozen=True)
class Subject:
    """Something whose time and memory is measured.

    Attributes:
        encode: encodes the frames.
        train: one training step.
        count_slots: temporal tokens in the gap of any prompted layer that has least; None for the floor.
        num_slots: how many there can be.
    """

    encode: Callable[[], object]
    train: Callable[[], object]
    count_slots: Callable[[], int] | None = None
    num_slots: int = 0

    def check_slots(self) -> None:
        """See that no slot is empty.

        Raises:
            SlotsNotFilled: if one is.
        """
        if self.count_slots is not None and (least := self.count_slots()) < self.num_slots:
            raise SlotsNotFilled(f"a gap has {least} of {self.num_slots} tokens; the measurement needs all")


def make_frames(setup: Setup, size: int) -> Tensor:
    """Videos that change about as much in each gap as in any other, of noise: (B, T, 3, S, S) uint8.

    So do their frames merged in pairs.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (setup.batch_size, setup.num_frames, 3, size, size)
    if setup.blank:
        return torch.empty(shape, dtype=torch.uint8, device=setup.device)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(setup.device)


def make_floor(clip: LoadedCLIP, setup: Setup) -> Subject:
    """open_clip's own encode_image of the frames."""
    precision = choose_precision(setup.precision, torch.device(setup.device))
    frames = make_frames(setup, clip.image_size).flatten(0, 1)
    frames = ClipVisionTower(clip.model.visual, clip.mean, clip.std).to(setup.device).normalize(frames)
    encode_image = torch.compile(clip.model.encode_image, dynamic=False) if setup.compiled else clip.model.encode_image

    @torch.no_grad()
    def encode() -> None:
        with precision.autocast():
            encode_image(frames)

    def train() -> None:
        frames.requires_grad_(True)
        frames.grad = None
        with precision.autocast():
            out = encode_image(frames)
        out.float().square().sum().backward()
        frames.requires_grad_(False)

    return Subject(encode, train)


def build_stop(clip: LoadedCLIP, setup: Setup, name: str) -> VideoTextModel:
    """One of `STOPS`."""
    max_words = min(MAX_WORDS, clip.model.context_length)
    layers = clip.model.visual.transformer.layers
    merges = f"{layers // 3},{2 * layers // 3}" if name in MERGED else ""
    return build(clip, StopSettings(**STOPS[name], merge_frames=merges), setup.num_frames, max_words)


def make_stop(model: VideoTextModel, clip: LoadedCLIP, setup: Setup) -> Subject:
    """A STOP made of the CLIP, in the joint scope."""
    precision = choose_precision(setup.precision, torch.device(setup.device))
    model = model.to(setup.device)
    model.video_encoder.checkpoint_activations = setup.checkpointed
    inter_frame = model.video_encoder.prompting.inter_frame
    with torch.no_grad():  # N^t sees one gap at a time: changes that are alike then give variation that is alike
        inter_frame.dynamics.weight[:, :, [0, 2]] = 0
    frames = make_frames(setup, clip.image_size)
    num_frames = torch.full((setup.batch_size,), setup.num_frames, device=setup.device)
    keys = torch.arange(setup.batch_size, device=setup.device)
    width = clip.model.visual.proj.shape[1]
    generator = torch.Generator().manual_seed(1)
    kept = F.normalize(torch.randn(setup.batch_size, width, generator=generator), dim=-1).to(setup.device)
    captions = [f"video number {number} of something that moves about" for number in range(setup.batch_size)]
    text_trains = any(parameter.requires_grad for parameter in model.text_encoder.parameters())
    parameters = [p for _, p in model.trainable_parameters()]
    # so small a rate that the slots stay filled
    optimizer = build_optimizer(model.how_parameters_train(), lr=1e-8, weight_decay=0.2)
    if setup.compiled:
        model.video_encoder.compile(dynamic=False)

    @torch.no_grad()
    def encode() -> None:
        model.eval()
        with precision.autocast():
            model.encode_video(frames, num_frames)

    def train() -> None:
        model.train()
        with precision.autocast():
            video = model.encode_video(frames, num_frames, keys)["embedding"]
            text = model.encode_text(captions, keys) if text_trains else kept
        symmetric_contrastive_loss(model.similarity(text, video)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def count_slots() -> int:
        model.eval()
        with precision.autocast():
            layers = model.encode_video(frames, num_frames, return_details=True)["layers"]
        return min(int(layer["num_temporal_prompts"].min()) for layer in layers if "num_temporal_prompts" in layer)

    return Subject(encode, train, count_slots, inter_frame.num_slots)


def make_subject(name: str, clip: LoadedCLIP, setup: Setup) -> Subject:
    """One of `SUBJECTS`."""
    return make_floor(clip, setup) if name == FLOOR else make_stop(build_stop(clip, setup, name), clip, setup)


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of a call, to the end of what it started on the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of calls that take turns, by name; a first round, which warms up, is left out."""
    for call in calls.values():
        seconds_of(call, device)
    taken = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(seconds_of(call, device))
    return taken


def ratios(taken: Mapping[str, Sequence[float]], floor: str) -> dict[str, float]:
    """Median over the rounds of each one's seconds divided by the floor's in the same round."""
    return {
        name: statistics.median(one / low for one, low in zip(seconds, taken[floor], strict=True))
        for name, seconds in taken.items()
    }


def measure_speed(setup: Setup, rounds: int) -> dict[str, float]:
    """Seconds and ratios of encoding and of a training step.

    Returns:
        ``encode_seconds.NAME`` and ``train_step_seconds.NAME`` (medians), ``encode_ratio.NAME`` and
        ``train_step_ratio.NAME`` of `SUBJECTS`, and `TEXT_OVER_PER_LAYER`.

    Raises:
        SlotsNotFilled: if STOP would have less to do than it can have.
    """
    torch.set_num_threads(setup.threads)
    clip = setup.load_clip()
    subjects = {name: make_subject(name, clip, setup) for name in SUBJECTS}
    for subject in subjects.values():
        subject.check_slots()
    results = {}
    for what, calls in (
        ("encode", {name: subject.encode for name, subject in subjects.items()}),
        ("train_step", {name: subject.train for name, subject in subjects.items()}),
    ):
        taken = in_turns(calls, rounds, setup.device)
        results |= {f"{what}_seconds.{name}": statistics.median(seconds) for name, seconds in taken.items()}
        results |= {f"{what}_ratio.{name}": ratio for name, ratio in ratios(taken, FLOOR).items() if name != FLOOR}
    return results | {TEXT_OVER_PER_LAYER: ratios(taken, PER_LAYER)[TEXT]}


class PeakMemory:
    """The most memory that this process, or its GPU, held since `start`, less what it held then; in MiB.

    On a CPU this is Linux' high-water mark of the resident memory, which is lowered to what is resident at the start,
    after glibc has given back what it had kept of things that are gone.
    """

    def __init__(self, device: str):
        self.device = device
        self.held = 0.0

    def start(self) -> None:
        """Begin."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.held = torch.cuda.memory_allocated() / 2**20
            return
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.held = _resident("VmRSS")

    def stop(self) -> float:
        """End, and return it."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() / 2**20 - self.held
        return max(_resident("VmHWM") - self.held, PAGE_MIB)


def _resident(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 2**10
    raise OSError(f"/proc/self/status has no {field}")


def in_own_process(function: Callable, *arguments: object):
    """The result of a function of a module, called in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_of_training(name: str, setup: Setup) -> float:
    """Peak memory of two training steps of one of `SUBJECTS`, in MiB over what is held after loading."""
    torch.set_num_threads(setup.threads)
    subject = make_subject(name, setup.load_clip(), setup)
    memory = PeakMemory(setup.device)
    memory.start()
    for _ in range(2):
        subject.train()
    return memory.stop()


def measure_memory(setup: Setup) -> dict[str, float]:
    """``peak_memory_mib.NAME`` of `SUBJECTS`, each in a process of its own, and ``peak_memory_ratio.NAME``."""
    peaks = {name: in_own_process(peak_of_training, name, setup) for name in SUBJECTS}
    return {f"peak_memory_mib.{name}": peak for name, peak in peaks.items()} | {
        f"peak_memory_ratio.{name}": peak / peaks[FLOOR] for name, peak in peaks.items() if name != FLOOR
    }


@dataclass(frozen=True)
class Growth:
    """A training step of one video of some length, `per_layer`.

    Attributes:
        num_frames: T.
        floor_seconds: of the frozen CLIP. seconds, checkpointed_seconds: of STOP.
        memory, checkpointed_memory: of STOP, in MiB over what is held after loading.
    """

    num_frames: int
    floor_seconds: float
    seconds: float
    checkpointed_seconds: float
    memory: float
    checkpointed_memory: float


def measure_growth(setup: Setup, lengths: Sequence[int], repeated_for: float) -> list[Growth]:
    """Growth over some numbers of frames, rising; to be called in a process of its own.

    repeated_for: seconds that steps of one length are repeated for, a few times at most.
    """
    torch.set_num_threads(setup.threads)
    clip = setup.load_clip()
    rows = []
    memory = PeakMemory(setup.device)
    for length in lengths:
        row = []
        for name, checkpointed in ((FLOOR, False), (PER_LAYER, False), (PER_LAYER, True)):
            subject = make_subject(
                name, clip, replace(setup, batch_size=1, num_frames=length, checkpointed=checkpointed)
            )
            subject.check_slots()
            if length <= WARMED_UP_TO or setup.compiled or setup.device == "cuda":
                subject.train()  # a step of more frames takes so long that its warming up does not show
            memory.start()
            taken = [seconds_of(subject.train, setup.device)]
            peak = memory.stop()
            while sum(taken) < repeated_for and len(taken) < MAX_REPEATS:
                taken.append(seconds_of(subject.train, setup.device))
            row.append((statistics.median(taken), peak))
        (floor, _), (plain, plain_memory), (again, again_memory) = row
        rows.append(Growth(length, floor, plain, again, plain_memory, again_memory))
    return rows


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float:
    """p of values that grow as length^p: the slope of the line through their logarithms, by least squares."""
    return statistics.linear_regression([math.log(x) for x in lengths], [math.log(y) for y in values]).slope


FORMULA = """Model FLOPs, two a multiplication with addition. D width, E embedding, p patch side, P patches a frame,
T frames, R = T·P, S tokens of a sequence, K tokens that are keys and values only, L blocks, H heads:
  embedding        2·3·p²·D·R
  block, linears   Q·(20·D² for query, output and MLP) + (S + K)·(4·D² for key and value)
  block, attention 4·Q·(S + K)·D
                   Q = S, in STOP's last block 1; floor: S = P + 1, K = 0, T sequences;
                   STOP: S = 1 + R, K = (T−1)·N_max in the prompted blocks, and with `once` S grows by K after the first
  prompters        N^s, N^t: 2·27·D at each patch of a frame or gap; A: 2·H·D a patch
                   P^s: 2·(27·C·w + 9·w²) a patch, C = D, or behind a Linear C < D and 2·D·C more; and
                   2·(w·h + h·D) a chosen patch, and as much a patch for the gradient of the selection;
                   P^t: 2·(D·v + 5·v² + 2·P·v + 27·v²) a patch of a gap, 2·v·N_max·P and
                   2·v·D·N_max a gap
  text prompts     the blocks of the text tower on W words with K prompts, as STOP's, and its projection
  training step    2 × linears and, for the floor, embedding of the frozen CLIP (no gradient of weights),
                   3 × attention and prompters (also before the first block, whose input needs no gradient: < 1%)"""


@dataclass(frozen=True)
class ModelFlops:
    """Floating-point operations of one forward pass, by what their gradients take.

    Attributes:
        frozen: products with frozen weights, whose gradient is one product more.
        trained: products of two things that have gradients, which are two products more.
        without_gradient: the rest.
    """

    frozen: float
    trained: float
    without_gradient: float

    @property
    def train(self) -> float:
        """Of a training step."""
        return 2 * self.frozen + 3 * self.trained + self.without_gradient


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
    frozen, trained, without = 2 * tower.proj.numel(), 0.0, float(embedding)
    carried: list[int] = []  # the gaps of tokens that go along, in units of N_max
    for layer in range(tower.num_layers):
        if layer in encoder.merge_before and frames > 1:
            frames = (frames + 1) // 2
            carried = [gap // 2 for gap in carried if gap % 2]
        extra = 0
        if layer in prompting.layers:
            made, unused = prompter_flops(model, frames)
            trained, without = trained + made, without + unused
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
    return ModelFlops(batch * (frozen + text_frozen), batch * (trained + text_attention), batch * without)


def prompter_flops(model: VideoTextModel, frames: int) -> tuple[float, float]:
    """Of prompting a layer's input of so many frames: products that have gradients, and those that have none."""
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
    return spatial + temporal, regions * (behind + 2 * tower.blocks[0].num_heads * width)


def text_flops(encoder: TextEncoder) -> tuple[float, float]:
    """Of embedding a caption where the text side trains, else 0: products with frozen weights, and attention."""
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        return 0, 0
    tower, words = encoder.tower, encoder.max_words
    keys = words + encoder.prompting.learned.shape[1]
    linears = tower.num_layers * tower.width**2 * (20 * words + 4 * keys) + 2 * tower.text_projection.numel()
    return linears, tower.num_layers * 4 * tower.width * words * keys


def count_flops(setup: Setup) -> dict[str, ModelFlops]:
    """`ModelFlops` of each of `SUBJECTS`."""
    clip = setup.load_clip()
    counted = {FLOOR: floor_flops(clip, setup)}
    for name in STOPS:
        counted[name] = stop_flops(build_stop(clip, setup, name), setup)
    return counted
