"""Seconds and memory of a training step and of encoding, beside those of the frozen CLIP on the same frames.

The floor is open_clip's own ``encode_image``: forward for encoding; forward and backward to its input for a training
step. STOP is at its defaults, but for what a row's name says, with every slot of every gap filled; any other method is
at its defaults. A training step has the contrastive loss, the gradients, their clipping and AdamW in it. Where the text
side trains, a step also embeds a caption a video; else captions are embedded once in a training and left out. Weights
are random, which changes no time.
"""

import ctypes
import gc
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from modules.methods import METHODS
from modules.methods.stop.inter_frame import InterFramePrompting
from modules.methods.stop.stop import StopPrompting
from modules.model.video_text import VideoTextModel
from modules.program.build import build_model
from modules.runtime.precision import choose_precision
from modules.tasks.base import ALL
from modules.tasks.losses import symmetric_contrastive_loss
from modules.training.accumulation import Rows, backward_in_parts
from modules.training.optimization import build_optimizer

FLOOR, ONCE, PER_LAYER, TEXT, REDUCED = "floor", "once", "per_layer", "text_prompts", "spatial_reduce"
ONCE_MERGED, PER_LAYER_MERGED, TEXT_MERGED = "once_merged", "per_layer_merged", "text_prompts_merged"
STOPS = (ONCE, PER_LAYER, TEXT, REDUCED, ONCE_MERGED, PER_LAYER_MERGED)
# what is built around CLIP: a method, and what it sets; each method also by its own name
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    ONCE: ("stop", {"prompting": "once"}),
    PER_LAYER: ("stop", {}),
    TEXT: ("stop", {"text_prompts": 8}),
    REDUCED: ("stop", {"spatial_reduce": 64}),
    ONCE_MERGED: ("stop", {"prompting": "once"}),
    PER_LAYER_MERGED: ("stop", {}),
    TEXT_MERGED: ("stop", {"text_prompts": 8}),
} | {method: (method, {}) for method in METHODS}
MERGED = (ONCE_MERGED, PER_LAYER_MERGED, TEXT_MERGED)  # before the second and the last third of the layers
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
        compiled: the floor and the methods' video encoders through torch.compile.
        clip: an open_clip model folder; None for a ViT-B/32 with random weights.
        checkpointed: the methods' video encoders compute activations again for the gradients.
        blank: frames hold nothing, for those who look at shapes alone.
        accumulate: parts that a training step encodes its videos and texts in.
        max_words: tokens of a text; None for `MAX_WORDS`.
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
    accumulate: int = 1
    max_words: int | None = None

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
        train: one training step; None where nothing trains.
        count_slots: temporal tokens in the gap of any prompted layer that has least; None where there are none.
        num_slots: how many there can be.
    """

    encode: Callable[[], object]
    train: Callable[[], object] | None
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


def build(name: str, clip: LoadedCLIP, setup: Setup) -> VideoTextModel:
    """One of `MODELS`."""
    method, settings = MODELS[name]
    if name in MERGED:
        layers = clip.model.visual.transformer.layers
        settings = settings | {"merge_frames": f"{layers // 3},{2 * layers // 3}"}
    max_words = min(setup.max_words or MAX_WORDS, clip.model.context_length)
    return build_model(method, METHODS[method].settings(**settings), clip, setup.num_frames, max_words, seed=0)


def make_trainable(model: VideoTextModel, clip: LoadedCLIP, setup: Setup) -> Subject:
    """A model of any method made of the CLIP, encoding and training as its method does."""
    precision = choose_precision(setup.precision, torch.device(setup.device))
    model = model.to(setup.device)
    model.video_encoder.checkpoint_activations = setup.checkpointed
    frames = make_frames(setup, clip.image_size)
    num_frames = torch.full((setup.batch_size,), setup.num_frames, device=setup.device)
    keys = torch.arange(setup.batch_size, device=setup.device)
    width = clip.model.visual.proj.shape[1]
    generator = torch.Generator().manual_seed(1)
    kept = F.normalize(torch.randn(setup.batch_size, width, generator=generator), dim=-1).to(setup.device)
    captions = [f"video number {number} of something that moves about" for number in range(setup.batch_size)]
    text_trains = any(parameter.requires_grad for parameter in model.text_encoder.parameters())
    inter_frame = _inter_frame(model)
    if inter_frame is not None:
        # N^t sees one gap at a time and all channels alike: of noise no gap varies more than others
        with torch.no_grad():
            inter_frame.dynamics.weight.zero_()[:, :, 1, 1, 1] = 1
    if setup.compiled:
        model.video_encoder.compile(dynamic=False)

    @torch.no_grad()
    def encode() -> None:
        model.eval()
        with precision.autocast():
            model.encode_video(frames, num_frames)

    parameters = [p for _, p in model.trainable_parameters()]
    if not parameters:
        return Subject(encode, None)
    # so small a rate that the slots stay filled
    optimizer = build_optimizer(model.how_parameters_train(), lr=1e-8, weight_decay=0.2)

    def encode_videos(rows: slice) -> Tensor:
        with precision.autocast():
            return model.encode_video(frames[rows], num_frames[rows], keys[rows])["embedding"]

    def encode_texts(rows: slice) -> Tensor:
        with precision.autocast():
            return model.encode_text(captions[rows], keys[rows]) if text_trains else kept[rows]

    def loss_of(video: Tensor, text: Tensor) -> Tensor:
        return symmetric_contrastive_loss(model.similarity(text, video, keys))

    def train() -> None:
        model.train()
        if setup.accumulate == 1:
            loss_of(encode_videos(ALL), encode_texts(ALL)).backward()
        else:
            kinds = [Rows(setup.batch_size, encode) for encode in (encode_videos, encode_texts)]
            backward_in_parts(kinds, setup.accumulate, loss_of)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()

    if inter_frame is None:
        return Subject(encode, train)

    @torch.no_grad()
    def count_slots() -> int:
        model.eval()
        with precision.autocast():
            # not as it is compiled, which would be done once more for the details
            layers = model.video_encoder.forward(frames, num_frames, return_details=True)["layers"]
        return min(int(layer["num_temporal_prompts"].min()) for layer in layers if "num_temporal_prompts" in layer)

    return Subject(encode, train, count_slots, inter_frame.num_slots)


def _inter_frame(model: VideoTextModel) -> InterFramePrompting | None:
    """What decides how many tokens a gap gets, of a STOP that has one for all layers."""
    prompting = model.video_encoder.prompting
    return prompting.inter_frame if isinstance(prompting, StopPrompting) else None


def make_subject(name: str, clip: LoadedCLIP, setup: Setup) -> Subject:
    """`FLOOR`, or one of `MODELS`, which may change the CLIP it is given."""
    return make_floor(clip, setup) if name == FLOOR else make_trainable(build(name, clip, setup), clip, setup)


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


def measure_speed(setup: Setup, rounds: int, names: Sequence[str] = SUBJECTS) -> dict[str, float]:
    """Seconds and ratios of encoding and of a training step.

    Args:
        names: `FLOOR` and some of `MODELS`: a method that changes CLIP alone, of STOP's any.

    Returns:
        ``encode_seconds.NAME`` and ``train_step_seconds.NAME`` (medians), ``encode_ratio.NAME`` and
        ``train_step_ratio.NAME`` of them, without the training step where nothing trains, and `TEXT_OVER_PER_LAYER`.

    Raises:
        SlotsNotFilled: if STOP would have less to do than it can have.
    """
    torch.set_num_threads(setup.threads)
    frozen, clip = setup.load_clip(), setup.load_clip()
    subjects = {name: make_subject(name, frozen if name == FLOOR else clip, setup) for name in names}
    for subject in subjects.values():
        subject.check_slots()
    results = {}
    for what, calls in (
        ("encode", {name: subject.encode for name, subject in subjects.items()}),
        ("train_step", {name: subject.train for name, subject in subjects.items() if subject.train is not None}),
    ):
        taken = in_turns(calls, rounds, setup.device)
        results |= {f"{what}_seconds.{name}": statistics.median(seconds) for name, seconds in taken.items()}
        results |= {f"{what}_ratio.{name}": ratio for name, ratio in ratios(taken, FLOOR).items() if name != FLOOR}
    if TEXT in taken and PER_LAYER in taken:
        results[TEXT_OVER_PER_LAYER] = ratios(taken, PER_LAYER)[TEXT]
    return results


def measure_methods(setup: Setup, rounds: int, methods: Iterable[str]) -> dict[str, float]:
    """What `measure_speed` returns, of methods that each take turns with the floor in a process of its own.

    So each has a CLIP to change, and no more than two are in memory. The floor's seconds are medians over processes.
    """
    results: dict[str, float] = {}
    floors: dict[str, list[float]] = {}
    for method in methods:
        for name, value in in_own_process(measure_speed, setup, rounds, (FLOOR, method)).items():
            if name.endswith(f".{FLOOR}"):
                floors.setdefault(name, []).append(value)
            else:
                results[name] = value
    return {name: statistics.median(values) for name, values in floors.items()} | results


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


def peaks_of_training(names: Sequence[str], setup: Setup) -> dict[str, float]:
    """Peak memory of two training steps of each of `names`, in MiB over what is held after loading."""
    torch.set_num_threads(setup.threads)
    peaks = {}
    for name in names:
        subject = make_subject(name, setup.load_clip(), setup)
        memory = PeakMemory(setup.device)
        memory.start()
        for _ in range(2):
            subject.train()
        peaks[name] = memory.stop()
    return peaks


def measure_memory(setup: Setup, names: Sequence[str] = SUBJECTS, apart: bool = True) -> dict[str, float]:
    """``peak_memory_mib.NAME`` of a training step, and ``peak_memory_ratio.NAME`` to the floor's.

    Args:
        names: `FLOOR` and some of `MODELS` that train.
        apart: each in a process of its own, where none finds memory that another has left. Of a GPU, whose memory torch
            counts itself, this makes no difference.
    """
    groups = [[name] for name in names] if apart else [names]
    peaks = {}
    for group in groups:
        peaks |= in_own_process(peaks_of_training, group, setup)
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
            if not checkpointed:  # which makes the same tokens
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
