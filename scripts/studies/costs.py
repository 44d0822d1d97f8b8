"""What a training step of the points of a study takes: seconds in turns, and FLOPs counted.

Trainings at different hours on a shared machine cannot be compared by their seconds: here one step of each takes its
turn, some rounds of it, and a ratio is the median over the rounds of the seconds in the same round. A step is the
benchmark's: encoding, of captions too where the text side trains, the contrastive loss, the gradients, their clipping
and AdamW, without reading videos. The CLIPs are of the right shape with random weights, which changes no time.

FLOPs are those of matrix products and convolutions, attention's among them, as `scripts.benchmark.counts` counts them
on tensors without values; attention is written out for that.
"""

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import main_task_retrieval
from dataloaders.datasets import RETRIEVAL
from modules.clip.loader import LoadedCLIP
from modules.methods.stop.stop import StopSettings
from modules.program.arguments import Arguments, parse_arguments
from modules.program.build import build_model
from modules.runtime.run_folder import describe_machine, git_commit
from preprocess import pretrain_toy_clip
from scripts.benchmark.counts import count_step
from scripts.benchmark.model import FLOOR, Setup, Subject, in_turns, make_floor, make_trainable, ratios
from scripts.studies.runner import MAX_WORDS, OF_FILES, Run

THREADS = 1  # as a study's trainings have
VIT_FRAMES = 12
# settings that ViT-B/32 could have by default: STOP's, and the frames of a video
VITS: dict[str, tuple[dict[str, Any], int]] = {
    "12 frames": ({}, VIT_FRAMES),
    "6 frames": ({}, VIT_FRAMES // 2),
    "merge 6": ({"merge_frames": "6"}, VIT_FRAMES),
    "merge 4, 8": ({"merge_frames": "4,8"}, VIT_FRAMES),
    "merge 3, 6": ({"merge_frames": "3,6"}, VIT_FRAMES),
    "prompt 0, 6; merge 6": ({"prompt_layers": "0,6", "merge_frames": "6"}, VIT_FRAMES),
    "prompt 0, 4, 8; merge 4, 8": ({"prompt_layers": "0,4,8", "merge_frames": "4,8"}, VIT_FRAMES),
    "prompt 0, 3, 6; merge 3, 6": ({"prompt_layers": "0,3,6", "merge_frames": "3,6"}, VIT_FRAMES),
    "once": ({"prompting": "once"}, VIT_FRAMES),
    "24 frames, merge 3, 6": ({"merge_frames": "3,6"}, 2 * VIT_FRAMES),
    "24 frames, prompt 0, 3, 6; merge 3, 6": ({"prompt_layers": "0,3,6", "merge_frames": "3,6"}, 2 * VIT_FRAMES),
}


def toy_clip() -> LoadedCLIP:
    """The toy CLIP's shape."""
    model = pretrain_toy_clip.build_model().eval().requires_grad_(False)
    normal = pretrain_toy_clip.PREPROCESS_CONFIG
    return LoadedCLIP(model, pretrain_toy_clip.build_tokenizer(), normal["mean"], normal["std"])


def arguments_of(run: Run) -> Arguments:
    """The command line of a training, but for its files."""
    flags = ("--max_frames", str(run.frames), "--max_words", str(MAX_WORDS), *run.flags, "--seed", str(run.seed))
    return parse_arguments([*flags, *OF_FILES], "", RETRIEVAL, main_task_retrieval.RetrievalSettings)


def make_subject(run: Run, batch_size: int) -> Subject:
    """What a run trains, around a toy CLIP of its own."""
    given, clip = arguments_of(run), toy_clip()
    common = given.common
    model = build_model(
        given.method, given.method_settings, clip, common.max_frames, common.max_words, given.train.seed
    )
    return make_trainable(model, clip, setup_of(run, batch_size))


def setup_of(run: Run, batch_size: int) -> Setup:
    """How a run is measured."""
    return Setup(batch_size, run.frames, "cpu", "fp32", THREADS)


def gigaflops(subject: Subject) -> float:
    """Of a training step."""
    with sdpa_kernel(SDPBackend.MATH):  # one call of the fast kernel is not counted
        return count_step(subject).flops / 1e9


def vit_teraflops() -> dict[str, float]:
    """Of a training step of one video by ViT-B/32, of each of `VITS`."""
    setups = {name: Setup(1, frames, "cpu", "fp32", THREADS, blank=True) for name, (_, frames) in VITS.items()}
    clip = next(iter(setups.values())).load_clip()
    counted = {}
    for name, (settings, frames) in VITS.items():
        model = build_model("stop", StopSettings(**settings), clip, frames, MAX_WORDS, seed=0)
        counted[name] = round(gigaflops(make_trainable(model, clip, setups[name])) / 1e3, 4)
    return counted


def measure_costs(
    runs: Mapping[str, Run], base: str, batch_size: int, rounds: int, count: bool = False
) -> dict[str, Any]:
    """Seconds, and FLOPs if they are wanted, of a training step.

    Args:
        runs: a training of each point.
        base: the point whose seconds the others' are divided by, or `FLOOR`.
        batch_size: videos of a step.
        rounds: in which each has its turn, after one that warms up.
        count: FLOPs, too.

    Returns:
        ``seconds`` (medians), ``ratio`` (to `base`) and ``gigaflops`` by the runs' names, those of the frozen CLIP on
        as many frames as the first run's, forward and the gradient of its input, as ``floor``; and how it was measured.
    """
    makes: dict[str, Callable[[], Subject]] = {
        name: partial(make_subject, run, batch_size) for name, run in runs.items()
    }
    makes[FLOOR] = lambda: make_floor(toy_clip(), setup_of(next(iter(runs.values())), batch_size))
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        # apart from those that are timed: a count leaves tensors without values in the optimiser
        flops = {name: gigaflops(make()) for name, make in makes.items()} if count else {}
        taken = in_turns({name: make().train for name, make in makes.items()}, rounds, "cpu")
    finally:
        torch.set_num_threads(threads)
    return {
        "batch_size": batch_size,
        "rounds": rounds,
        "threads": THREADS,
        "seconds": {name: round(median(seconds), 4) for name, seconds in taken.items()},
        "ratio": {name: round(ratio, 4) for name, ratio in ratios(taken, base).items()},
        **({"gigaflops": {name: round(value, 3) for name, value in flops.items()}} if count else {}),
        "git_commit": git_commit(),
        "machine": describe_machine(),
    }
