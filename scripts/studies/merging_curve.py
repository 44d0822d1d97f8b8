"""The curve of R@1 over what a training step takes: its points, their runs, and what is compared with what."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from modules.methods.base import parse_layers
from preprocess.pretrain_toy_clip import MODEL_CONFIG
from scripts.studies.runner import BUDGET, FRAMES, LEVELS, STOP, Run, runs_of

SEEDS = (1, 2, 3, 4, 5)
LAYERS = MODEL_CONFIG["vision_cfg"]["layers"]  # of the toy CLIP
FP32 = ("--precision", "fp32")
COSTS = "costs"  # what a record has them under, beside the runs
NEAR = 0.05  # a share of seconds by which a point may lie beyond the unmerged ones that it is compared with


@dataclass(frozen=True)
class Point:
    """One setting of STOP on the curve.

    Attributes:
        name: of its runs.
        label: in tables and in the picture.
        family: what it varies, one of `scripts.studies.merging_picture.FAMILIES`.
        frames: of a video.
        merge_frames, prompt_layers, prompting: as the flags have them.
    """

    name: str
    label: str
    family: str
    frames: int = FRAMES
    merge_frames: str = ""
    prompt_layers: str = ""
    prompting: str = "per_layer"

    @property
    def flags(self) -> tuple[str, ...]:
        """What it adds to STOP at its defaults."""
        given = {
            "--merge_frames": self.merge_frames,
            "--prompt_layers": self.prompt_layers,
            "--prompting": "" if self.prompting == "per_layer" else self.prompting,
        }
        return tuple(part for flag, value in given.items() if value for part in (flag, value))

    @property
    def cost_key(self) -> str:
        """What its seconds and FLOPs are called in the record."""
        return f"{self.name}/frames{self.frames}"

    @property
    def frames_by_layer(self) -> tuple[int, ...]:
        """How many frames, merged ones for one, each layer reads."""
        merged, frames, found = parse_layers(self.merge_frames), self.frames, []
        for layer in range(LAYERS):
            frames = (frames + 1) // 2 if layer in merged else frames
            found.append(frames)
        return tuple(found)

    @property
    def prompted(self) -> str:
        """Before which layers prompts are made, in words."""
        return "0, then carried" if self.prompting == "once" else self.prompt_layers.replace(",", ", ") or "all"

    def run(self, level: str, seed: int) -> Run:
        """Its training."""
        return Run(level, self.name, self.frames, seed, ("--do_train", *STOP, *BUDGET, *FP32, *self.flags))


UNMERGED = Point("defaults", "8 frames", "unmerged")
FEWER = tuple(Point("defaults", f"{frames} frames", "fewer", frames) for frames in (4, 6))
# The most telling first. 8·4·2·2 frames in the layers are as many as 4 in each, 8·8·4·4 as 6 in each. 16·8·4·4 are as
# many as 8 in each, but attention over the 16 takes more; merged before the first layer 16 cost what 8 do.
POINTS = (
    UNMERGED,
    Point("merged 1, 2", "merge 1, 2", "merged", merge_frames="1,2"),
    FEWER[0],
    Point("prompted 0, 2 merged 2", "prompt 0, 2; merge 2", "both", merge_frames="2", prompt_layers="0,2"),
    Point("merged 2", "merge 2", "merged", merge_frames="2"),
    FEWER[1],
    Point("merged 1, 2", "16 frames, merge 1, 2", "twice", 2 * FRAMES, merge_frames="1,2"),
    Point("merged 0", "16 frames, merge 0", "twice", 2 * FRAMES, merge_frames="0"),
    Point("prompted 0, 2", "prompt 0, 2", "prompted", prompt_layers="0,2"),
    Point("merged 1", "merge 1", "merged", merge_frames="1"),
    Point("merged 1, 2, 3", "merge 1, 2, 3", "merged", merge_frames="1,2,3"),
    Point("merged 2, 3", "merge 2, 3", "merged", merge_frames="2,3"),
    # prompted not where frames have just been merged, for the comparison
    Point("prompted 1, 3 merged 2", "prompt 1, 3; merge 2", "both", merge_frames="2", prompt_layers="1,3"),
    Point("prompted 1, 3", "prompt 1, 3", "prompted", prompt_layers="1,3"),
    Point("once", "once", "prompted", prompting="once"),
    Point("merged 3", "merge 3", "merged", merge_frames="3"),
)


def all_runs() -> Iterator[Run]:
    """Every run: all of a seed before the next, so that what is done can be compared; the frozen CLIP once."""
    for level in reversed(LEVELS):
        yield Run(level, "zero-shot", FRAMES, SEEDS[0], ("--do_eval", "--method", "zero_shot", *FP32))
    for seed in SEEDS:
        for point in POINTS:
            for level in reversed(LEVELS):
                yield point.run(level, seed)


def accuracy(record: dict[str, Any], level: str, point: Point) -> dict[int, float]:
    """R@1 of a point, by seed."""
    return {run["seed"]: run["metrics"]["t2v_R1"] for run in runs_of(record, level, point.name, point.frames)}


def ratio_of(record: dict[str, Any], key: str) -> float | None:
    """Seconds of a point's step (`Point.cost_key`, or the floor's) over the unmerged one's; None if not measured."""
    return record.get(COSTS, {}).get("ratio", {}).get(key)


def beside(record: dict[str, Any], level: str, point: Point) -> list[float]:
    """R@1 of a point less that of the unmerged frames, of each seed that has both."""
    unmerged = accuracy(record, level, UNMERGED)
    return [value - unmerged[seed] for seed, value in accuracy(record, level, point).items() if seed in unmerged]


def beside_fewer(record: dict[str, Any], level: str, point: Point) -> list[float]:
    """R@1 of a point less that of as many frames, unmerged, as take its seconds, of each seed that has both.

    What so many frames get is read off between the numbers of frames that were trained, on a straight line from one to
    the next; nothing is said of a point that costs less or more than all of these.
    """
    seconds = ratio_of(record, point.cost_key)
    unmerged = [(ratio_of(record, other.cost_key), other) for other in (*FEWER, UNMERGED)]
    if seconds is None or any(ratio is None for ratio, _ in unmerged):
        return []
    unmerged.sort(key=lambda pair: pair[0])
    low, high = unmerged[0][0], unmerged[-1][0]
    if not low * (1 - NEAR) <= seconds <= high * (1 + NEAR):
        return []
    at = min(max(seconds, low), high)
    (left, fewer), (right, more) = next(pair for pair in pairwise(unmerged) if at <= pair[1][0])
    share = (at - left) / (right - left) if right > left else 0.0
    of_fewer, of_more = accuracy(record, level, fewer), accuracy(record, level, more)
    return [
        value - ((1 - share) * of_fewer[seed] + share * of_more[seed])
        for seed, value in accuracy(record, level, point).items()
        if seed in of_fewer and seed in of_more
    ]
