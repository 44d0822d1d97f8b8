"""Do the patches that STOP chooses follow motion? Where they lie on the toy videos, and what may help.

  bash scripts/patches_toy.sh                      # trains and measures, prints; continues where it stopped
  python scripts/studies/patches.py --table        # prints what is done

Of every test video it is known which pixels show the object that moves, one that stands still and, on the level
`events`, the object at rest and one that drifts. A share is how much of the chosen patches' area shows it; over the
share that it has of all patches, that says how many times as often as chance it is chosen. Shares are measured in each
layer before and after training: with the prompters' first values, and with those of the last checkpoint.

What may help is α (how attention and dynamics are weighed), the normalisation of M, the convolution N^s that M is made
by, and N_s. See `scripts.studies.runner` for how a training is done and what it reports.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from dataloaders.datasets import RETRIEVAL
from dataloaders.items import EvaluationDataset, VideoSettings
from dataloaders.video.pack_index import PackIndex
from dataloaders.video.sampling import sample_frame_indices
from modules.clip.loader import load_clip
from modules.model.video_text import VideoTextModel
from modules.program.build import build_model
from modules.program.loading import load_run
from modules.runtime.run_folder import LAST
from preprocess.make_toy_dataset import DatasetSettings, render_split
from preprocess.toy.shapes import DRIFTING, MOVING, RESTING, STILL
from scripts.studies.runner import (
    BUDGET,
    DEFAULTS,
    FRAMES,
    LEVELS,
    RESULTS,
    STOP,
    Places,
    Run,
    differences,
    run_study,
    runs_of,
    with_error,
)

RECORD = RESULTS / "patches.json"
SEEDS = (1, 2, 3)
SHARES = "patches"  # what a run has them under, beside its metrics
BACKGROUND = "background"
THINGS = (MOVING, RESTING, DRIFTING, STILL, BACKGROUND)
TIMES = ("before", "after")
BATCH = 36
# what each adds to STOP at its defaults, which is the first: a training of `scripts.studies.choices` or
# `scripts.ablation.ablate` whose files are there is taken as it is, but its record alone would not do, since what is
# measured is the model
CHOICES = {
    DEFAULTS: (),
    "alpha 0": ("--alpha", "0"),
    "alpha 0.25": ("--alpha", "0.25"),
    "alpha 0.75": ("--alpha", "0.75"),
    "alpha 1": ("--alpha", "1"),
    "M as it is": ("--dynamics_norm", "none"),
    "N^s untrained": ("--selection_gradient", "none"),
    "N^s of differences": ("--dynamics_input", "differences"),
    "num_regions 2": ("--num_regions", "2"),
    "num_regions 12": ("--num_regions", "12"),
}

Cover = Mapping[str, np.ndarray]  # how much of each patch a thing covers, (…, P) in [0, 1], by its name
# a thing's share of the chosen patches and of all patches, by layer and name
Shares = list[dict[str, tuple[float, float]]]


def all_runs() -> list[Run]:
    """Every run: all choices of a seed before the next."""
    return [run for seed in SEEDS for run in seed_runs(seed)]


def seed_runs(seed: int) -> Iterator[Run]:
    """Each choice on both levels."""
    for level in reversed(LEVELS):
        for name, flags in CHOICES.items():
            yield Run(level, name, FRAMES, seed, ("--do_train", *STOP, *BUDGET, "--precision", "fp32", *flags))


def cover_of_patches(where: Cover, frames: Sequence[int], grid: int) -> dict[str, np.ndarray]:
    """How much of each patch things cover, and what is left to the background; together all of it.

    Args:
        where: how much of each pixel, (T, S, S) in [0, 1], by name; things that overlap share it.
        frames: the ones to look at.
        grid: G; S is a multiple of it.

    Returns:
        (frames, G·G) each, by name.
    """

    def patches(covered: np.ndarray) -> np.ndarray:
        size = covered.shape[-1] // grid
        return covered.reshape(len(covered), grid, size, grid, size).mean((2, 4)).reshape(len(covered), -1)

    pixels = {name: covered[list(frames)] for name, covered in where.items()}
    total = sum(pixels.values())
    pixels = {name: covered / np.maximum(total, 1) for name, covered in pixels.items()}
    return {name: patches(covered) for name, covered in (pixels | {BACKGROUND: 1 - np.minimum(total, 1)}).items()}


def shares_of(chosen: np.ndarray, cover: Cover) -> dict[str, tuple[float, float]]:
    """Of each thing its share of the chosen patches' area, and its share of all patches'.

    Args:
        chosen: (…, P) bool.
        cover: likewise, by name.
    """
    return {name: (float(covered[chosen].mean()), float(covered.mean())) for name, covered in cover.items()}


def read_cover(dataset: Path, grid: int) -> dict[str, dict[str, np.ndarray]]:
    """Where things are in the frames that models see of each test video, by its id: (T, P) each, by name."""
    settings = DatasetSettings(**json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["settings"])
    seen = sample_frame_indices(settings.num_frames, FRAMES)
    videos = enumerate(render_split(settings, "test"), settings.num_train)
    return {f"video{number}": cover_of_patches(video.where, seen, grid) for number, video in videos}


@torch.no_grad()
def chosen_by(model: VideoTextModel, dataset: EvaluationDataset) -> Iterator[np.ndarray]:
    """The patches that a model chooses in each layer, (L, B, T, P) bool, of a batch of videos at a time."""
    model.eval()
    for start in range(0, len(dataset), BATCH):
        items = [dataset.read(at) for at in range(start, min(start + BATCH, len(dataset)))]
        frames = torch.stack([item.frames for item in items])
        lengths = torch.tensor([item.num_frames for item in items])
        layers = model.encode_video(frames, lengths, return_details=True)["layers"]
        yield torch.stack([layer["discriminative_regions"] > 0.5 for layer in layers]).numpy()


def measure_model(model: VideoTextModel, dataset: EvaluationDataset, cover: Mapping[str, Cover]) -> Shares:
    """The shares in each layer, over all videos of a dataset."""
    chosen = np.concatenate(list(chosen_by(model, dataset)), axis=1)  # (L, N, T, P)
    covers = [cover[sample.video_id] for sample in dataset.samples]
    together = {name: np.stack([of[name] for of in covers]) for name in covers[0]}  # (N, T, P)
    return [shares_of(of_layer, together) for of_layer in chosen]


def measure_run(run: Run, places: Places) -> dict[str, Shares]:
    """The shares before and after the training of a run."""
    toy = places.of(run.level)
    clip = load_clip(str(places.clip(run.level, run.clip)))
    cover = read_cover(toy / "dataset", clip.vision_tower().grid)
    settings = RETRIEVAL["msrvtt"].settings(packed=toy / "frames", val_csv=toy / "dataset" / "test.csv")
    samples = RETRIEVAL["msrvtt"].read_eval(settings).samples
    pack = PackIndex.open(toy / "frames")
    dataset = EvaluationDataset(samples, VideoSettings(run.frames, clip.image_size, seed=0, pack=pack))
    after = load_run(places.runs / run.key / "training" / LAST, clip=clip, device="cpu")
    before = build_model(after.method, after.settings, clip, run.frames, after.max_words, run.seed)
    models = zip(TIMES, (before, after.model), strict=True)
    return {time: measure_model(model, dataset, cover) for time, model in models}


def measured_of(record: Mapping[str, Any], level: str, name: str) -> list[dict[str, Shares]]:
    """What `measure_run` found, of each seed."""
    runs = runs_of(record, level, name, FRAMES)
    return [run[SHARES] for run in runs if run["seed"] in SEEDS and SHARES in run]


def ratios(record: Mapping[str, Any], level: str, name: str, thing: str, time: str) -> list[list[float]]:
    """How many times as often as chance a thing is chosen: of each seed that is measured, in each layer."""
    measured = measured_of(record, level, name)
    of_layers = [[layer[thing] for layer in one[time]] for one in measured if thing in one[time][0]]
    return [[share / chance for share, chance in layers] for layers in of_layers]


def layers_table(record: Mapping[str, Any], level: str) -> str:
    """STOP at its defaults: a row a thing, a column a layer."""
    rows = []
    for thing in THINGS:
        before, after = (ratios(record, level, DEFAULTS, thing, time) for time in TIMES)
        if not before:
            continue
        first = measured_of(record, level, DEFAULTS)[0]
        cells = [
            f"{with_error(list(one), 2)} → {with_error(list(other), 2)}"
            for one, other in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True)
        ]
        rows.append(f"| {thing} | {100 * first['before'][0][thing][1]:.1f}% | {' | '.join(cells)} |")
    if not rows:
        return ""
    count = rows[0].count("→")
    heading = " | ".join(f"layer {layer}" for layer in range(count))
    return "\n".join([f"| {level}, defaults | of all patches | {heading} |", "|---" * (2 + count) + "|", *rows])


def choices_table(record: Mapping[str, Any], level: str) -> str:
    """A row a choice: R@1, and means over layers."""
    things = [thing for thing in THINGS if ratios(record, level, DEFAULTS, thing, "after")]
    rows, bases = [], runs_of(record, level, DEFAULTS, FRAMES)
    for name in CHOICES:
        runs = [run for run in runs_of(record, level, name, FRAMES) if run["seed"] in SEEDS]
        if not runs:
            continue
        beside = "" if name == DEFAULTS else with_error(differences(runs, bases), sign="+")
        cells = [name, str(len(runs)), with_error([run["metrics"]["t2v_R1"] for run in runs]), beside]
        for thing in things:
            means = [[fmean(layers) for layers in ratios(record, level, name, thing, time)] for time in TIMES]
            cells.append(" → ".join(with_error(of_seeds, 2) for of_seeds in means))
        rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return ""
    heading = f"| {level} | runs | R@1 | beside the defaults | {' | '.join(things)} |"
    return "\n".join([heading, "|---" * (4 + len(things)) + "|", *rows])


def tables(record: dict[str, Any]) -> str:
    """All tables: how many times as often as chance things are chosen, before → after training."""
    parts = [table(record, level) for level in LEVELS for table in (layers_table, choices_table)]
    return "\n\n".join(part for part in parts if part)


def main(argv: Sequence[str] | None = None) -> None:
    """Study, then print the tables."""
    runs = all_runs()
    few = list(CHOICES)[:2]
    quick = [run for run in runs if run.seed == SEEDS[0] and run.name in few]
    run_study(argv, __doc__, RECORD, runs, quick, tables, more={SHARES: measure_run}, base=DEFAULTS)


if __name__ == "__main__":
    main()
