"""What a training step of the points of the study of merged frames takes: seconds in turns, and FLOPs counted.

Trainings at different hours on a shared machine cannot be compared by their seconds: here one step of each takes its
turn, some rounds of it, and a ratio is the median over the rounds of the seconds in the same round. A step is the
benchmark's: encoding, the contrastive loss, the gradients, their clipping and AdamW, without reading videos. The CLIPs
are of the right shape with random weights, which changes no time.

FLOPs are those of matrix products and convolutions, attention's among them, as `scripts.benchmark.counts` counts them
on tensors without values; attention is written out for that.
"""

from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import main_task_retrieval
from dataloaders.datasets import RETRIEVAL
from modules.clip.loader import LoadedCLIP
from modules.methods.stop.stop import StopSettings, build
from modules.program.arguments import parse_arguments
from modules.runtime.run_folder import describe_machine, git_commit
from preprocess.pretrain_toy_clip import PREPROCESS_CONFIG, build_model, build_tokenizer
from scripts.benchmark.counts import count_step
from scripts.benchmark.model import FLOOR, Setup, Subject, in_turns, make_floor, make_trainable, ratios
from scripts.studies.runner import OF_FILES, Run

THREADS = 1  # as a study's trainings have
MAX_WORDS = 20
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
    model = build_model().eval().requires_grad_(False)
    return LoadedCLIP(model, build_tokenizer(), PREPROCESS_CONFIG["mean"], PREPROCESS_CONFIG["std"])


def settings_of(run: Run) -> StopSettings:
    """STOP's, as a training has them."""
    flags = [*run.flags, "--seed", str(run.seed), *OF_FILES]
    return parse_arguments(flags, "", RETRIEVAL, main_task_retrieval.RetrievalSettings).method_settings


def make_subject(clip: LoadedCLIP, settings: StopSettings, setup: Setup) -> Subject:
    """A STOP on so many videos of so many frames."""
    return make_trainable(build(clip, settings, setup.num_frames, MAX_WORDS), clip, setup)


def gigaflops(subject: Subject) -> float:
    """Of a training step."""
    with sdpa_kernel(SDPBackend.MATH):  # one call of the fast kernel is not counted
        return count_step(subject).flops / 1e9


def vit_teraflops() -> dict[str, float]:
    """Of a training step of one video by ViT-B/32, of each of `VITS`."""
    setups = {name: Setup(1, frames, "cpu", "fp32", THREADS, blank=True) for name, (_, frames) in VITS.items()}
    clip = next(iter(setups.values())).load_clip()
    return {
        name: round(gigaflops(make_subject(clip, StopSettings(**settings), setups[name])) / 1e3, 4)
        for name, (settings, _) in VITS.items()
    }


def measure_costs(runs: Mapping[str, Run], unmerged: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Seconds and FLOPs of a training step.

    Args:
        runs: a training of each point.
        unmerged: the point whose seconds the others' are divided by.
        batch_size: videos of a step.
        rounds: in which each has its turn, after one that warms up.

    Returns:
        ``seconds`` (medians), ``ratio`` (to `unmerged`) and ``gigaflops`` by the runs' names, those of the frozen CLIP
        on the frames of `unmerged`, forward and the gradient of its input, as ``floor``; and how it was measured.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        clip, subjects, flops = toy_clip(), {}, {}
        for name, run in runs.items():
            setup, settings = Setup(batch_size, run.frames, "cpu", "fp32", THREADS), settings_of(run)
            # apart from the one that is timed: a count leaves tensors without values in the optimiser
            flops[name] = gigaflops(make_subject(clip, settings, setup))
            subjects[name] = make_subject(clip, settings, setup)
        setup = Setup(batch_size, runs[unmerged].frames, "cpu", "fp32", THREADS)
        flops[FLOOR] = gigaflops(make_floor(clip, setup))
        subjects[FLOOR] = make_floor(clip, setup)
        taken = in_turns({name: subject.train for name, subject in subjects.items()}, rounds, "cpu")
    finally:
        torch.set_num_threads(threads)
    return {
        "batch_size": batch_size,
        "rounds": rounds,
        "threads": THREADS,
        "seconds": {name: round(median(seconds), 4) for name, seconds in taken.items()},
        "ratio": {name: round(ratio, 4) for name, ratio in ratios(taken, unmerged).items()},
        "gigaflops": {name: round(value, 3) for name, value in flops.items()},
        "git_commit": git_commit(),
        "machine": describe_machine(),
    }
