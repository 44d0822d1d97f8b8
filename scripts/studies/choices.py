"""Studies on the toy testbed: each of STOP's open choices against its alternative, and accuracy over frames.

  bash scripts/study_toy.sh                        # everything; continues where it stopped
  python scripts/studies/choices.py --table        # prints what docs/method.md has of it

See `scripts.studies.runner` for how a training is done and what it reports.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.studies.runner import BUDGET, FRAMES, LEVELS, RESULTS, STOP, Run, run_study, runs_of, spread

RECORD = RESULTS / "study_toy.json"
SEEDS = (1, 2, 3)
CURVE = (3, 4, 6, 8, 12)  # frames
SHOWN = 3  # standard errors: of eighteen differences one would be more than two of them by chance
CURVES = {  # over frames: the names of runs, and of rows
    "zero-shot": "zero-shot",
    "meanP": "clip4clip meanP",
    "seqTransf": "clip4clip seqTransf",
    "defaults": "STOP",
    "frame scope": "STOP, frame scope",
    "own, equal width": "STOP, own, equal width",
}
ZERO_SHOT = ("--do_eval", "--method", "zero_shot")
CLIP4CLIP = ("--method", "clip4clip", "--lr", "1e-3", "--coef_lr", "1", "--sim_header")
# what each choice adds to STOP at its defaults, which is the first
CHOICES = {
    "defaults": (),
    "sum": ("--frame_weight", "sum"),
    "text prompts 8": ("--text_prompts", "8"),
    "side adapters 8": ("--side_adapters", "8"),
    "spatial reduce 16": ("--spatial_reduce", "16"),
    "own, equal width": ("--prompters", "own", "--spatial_reduce", "0"),
    "own, equal total": (
        *("--prompters", "own", "--spatial_reduce", "0"),
        *("--spatial_width", "8", "--spatial_hidden", "16", "--temporal_width", "14"),
    ),
    "bf16": ("--precision", "bf16"),
    "fp16": ("--precision", "fp16"),
    "frame scope": ("--attention_scope", "frame"),
}


def all_runs() -> list[Run]:
    """Every run: all choices of a seed before the next, so that what is done can be compared; the slow fp16 last."""
    runs = [run for seed in SEEDS for run in choice_runs(seed)] + [run for seed in SEEDS for run in curve_runs(seed)]
    return sorted(runs, key=lambda run: "fp16" in run.flags)


def choice_runs(seed: int) -> Iterator[Run]:
    """Each choice on both levels."""
    for level in reversed(LEVELS):
        for name, flags in CHOICES.items():
            precision = () if "--precision" in flags else ("--precision", "fp32")
            yield Run(level, name, FRAMES, seed, ("--do_train", *STOP, *BUDGET, *precision, *flags))


def curve_runs(seed: int) -> Iterator[Run]:
    """Methods over the number of frames, zero-shot once; of STOP's the choices have those with `FRAMES`."""

    def run(name: str, frames: int, *flags: str) -> Run:
        return Run("events", name, frames, seed, ("--do_train", *flags, *BUDGET, "--precision", "fp32"))

    for frames in CURVE:
        if seed == SEEDS[0]:
            yield Run("events", "zero-shot", frames, seed, (*ZERO_SHOT, "--precision", "fp32"))
        if frames != FRAMES:
            yield run("defaults", frames, *STOP)
        yield run("seqTransf", frames, *CLIP4CLIP, "seqTransf")
        if frames >= FRAMES:  # what is blind to order; and what is better than the defaults there
            yield run("meanP", frames, *CLIP4CLIP, "meanP")
        if frames > FRAMES:
            for name in ("own, equal width", "frame scope"):
                yield run(name, frames, *STOP, *CHOICES[name])


def choices_table(record: dict[str, Any], level: str) -> str:
    """A row a choice."""
    lines = [
        f"| {level} | seeds | R@1 | against the defaults | motion | s a step | tokens a gap | trained |",
        "|---|---|---|---|---|---|---|---|",
    ]
    values = Level.of(record, level)
    for name in CHOICES:
        runs = runs_of(record, level, name, FRAMES)
        if not runs:
            continue
        at = [fmean(run.get(f"tokens_per_gap_at_the_{when}", 0.0) for run in runs) for when in ("start", "end")]
        cells = [
            name,
            str(len(runs)),
            spread([run["metrics"]["t2v_R1"] for run in runs]),
            values.against_defaults(name),
            spread([run["metrics"]["motion_accuracy"] for run in runs]),
            f"{min(run['seconds_per_step'] for run in runs):.2f}",
            f"{at[0]:.2f} → {at[1]:.2f}",
            f"{runs[0]['metrics']['trainable_parameters']:,}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Level:
    """R@1 of every choice on a level, of the seeds that all choices have.

    Attributes:
        values: (choices, seeds), the defaults first. names: of the choices.
    """

    values: np.ndarray
    names: list[str]

    @classmethod
    def of(cls, record: dict[str, Any], level: str) -> "Level":
        """That of a record; of a choice without any run nothing."""
        runs = {name: runs_of(record, level, name, FRAMES) for name in CHOICES}
        found = {name: {run["seed"]: run["metrics"]["t2v_R1"] for run in of} for name, of in runs.items() if of}
        seeds = sorted(set.intersection(*(set(of) for of in found.values()))) if found else []
        values = np.array([[of[seed] for seed in seeds] for of in found.values()]).reshape(len(found), len(seeds))
        return cls(values, list(found))

    def against_defaults(self, name: str) -> str:
        """Mean difference ± its standard error, marked where it is more than `SHOWN` times that; "" where unknown.

        The error is estimated from all choices together: what is left of R@1 beside a mean of each choice and one of
        each seed. Of three differences of one choice alone it would be little more than chance.
        """
        choices, seeds = self.values.shape
        place = self.names.index(name)
        if min(choices, seeds) < 2 or not place:
            return ""
        rest = self.values - self.values.mean(axis=1, keepdims=True) - self.values.mean(axis=0) + self.values.mean()
        variance = (rest**2).sum() / ((choices - 1) * (seeds - 1))
        mean, error = (self.values[place] - self.values[0]).mean(), sqrt(2 * variance / seeds)
        shown = f"{mean:+.1f} ± {error:.1f}"
        return f"**{shown}**" if abs(mean) > SHOWN * error else shown


def curve_table(record: dict[str, Any]) -> str:
    """A row a method, a column a number of frames."""
    lines = [
        "| events, R@1 (motion) | " + " | ".join(f"{frames} frames" for frames in CURVE) + " |",
        "|---" * (1 + len(CURVE)) + "|",
    ]
    for name, title in CURVES.items():
        cells = []
        for frames in CURVE:
            runs = runs_of(record, "events", name, frames)
            values = [spread([run["metrics"][key] for run in runs]) for key in ("t2v_R1", "motion_accuracy")]
            cells.append(f"{values[0]} ({values[1]})" if runs else "")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables(record: dict[str, Any]) -> str:
    """All tables, as docs/method.md has them."""
    return "\n\n".join([*(choices_table(record, level) for level in LEVELS), curve_table(record)])


def main(argv: Sequence[str] | None = None) -> None:
    """Study, then print the tables."""
    runs = all_runs()
    quick = [run for run in runs if run.seed == SEEDS[0] and run.frames == min(CURVE)]
    run_study(argv, __doc__, RECORD, runs, quick, tables)


if __name__ == "__main__":
    main()
