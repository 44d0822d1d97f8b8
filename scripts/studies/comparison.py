"""The controlled comparison: every method on both levels of the toy testbed, with one budget and rates chosen alike.

  bash scripts/compare_toy.sh                              # everything; continues where it stopped
  bash scripts/compare_toy.sh --methods stop clip4clip     # some of the rows
  python scripts/studies/comparison.py --table             # prints what docs/method.md has of it
  python scripts/studies/comparison.py --time              # measures the seconds of a step of each row, in turns
  python scripts/studies/comparison.py --picture           # draws docs/pictures/compare_toy.png

All rows have the same steps and batches. Each has the best of the same three rates: on the easy level, with the first
seed, by text→video R@1 of the last epoch on videos that are held out of the training list; no test video is among them,
and no row is trained on them. Reported is the last epoch, on four test sets. See `scripts.studies.runner`.

Three rows are controls of STOP: patches at random instead of the chosen ones, a constant number of tokens a gap, and as
many parameters without any of its structure, which are prompts that know their frame and read nothing of the video.

Trainings at different hours and on different machines cannot be compared by their seconds: those of a step are measured
apart, in turns (`scripts.studies.costs`), beside the frozen CLIP's, forward and the gradient of its input.
"""

import argparse
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.files import lock_folder
from scripts.benchmark.model import FLOOR
from scripts.studies.costs import measure_costs
from scripts.studies.runner import (
    BUDGET,
    FRAMES,
    LEVELS,
    RESULTS,
    ROOT,
    STEP,
    Places,
    Run,
    is_done,
    quick_places,
    read_record,
    spread,
    study,
    trainings_of,
    write_record,
)

RECORD = RESULTS / "compare_toy.json"
PICTURE = ROOT / "docs" / "pictures" / "compare_toy.png"
HELD_OUT = 216  # of 1,296 training videos; two sets of one video a caption
SIZE, QUICK_SIZE = (36, 9), (2, 1)  # of the timing: videos of a step, and rounds
MINUTES = 3.2  # that a training and its evaluations take on one of two cores, where none of the row is done


@dataclass(frozen=True)
class Row:
    """A method, or a form of one, of the comparison.

    Attributes:
        title: in the table.
        flags: of the main program.
        family: what the picture tells apart.
        both_clips: whether it is also trained on the second CLIP.
        trains: whether there is something to train.
    """

    title: str
    flags: tuple[str, ...]
    family: str
    both_clips: bool = False
    trains: bool = True


# the demo's sizes for a CLIP of width 64
STOP = (
    *("--method", "stop", "--spatial_width", "32", "--spatial_hidden", "64", "--temporal_width", "32"),
    *("--prompt_dropout", "0"),
)
# at their defaults, but for what does not fit a CLIP of four layers and 20 positions; dropout, which is off in all; and
# CLIP4Clip's factor of the rate inside CLIP, whose 1e-3 would leave the toy CLIP as it is
ROWS: dict[str, Row] = {
    "zero_shot": Row("zero-shot", ("--method", "zero_shot"), "frozen", both_clips=True, trains=False),
    "stop": Row("STOP", STOP, "stop", both_clips=True),
    "random_patches": Row("STOP, patches at random", (*STOP, "--selection", "random"), "control", both_clips=True),
    "constant_count": Row(
        # as many as STOP has on average
        "STOP, three tokens in every gap",
        (*STOP, "--token_count", "constant", "--eta", "3"),
        "control",
        both_clips=True,
    ),
    "unstructured": Row(
        "as many parameters, no structure",
        ("--method", "vpt", "--frame_prompts", "54", "--num_prompts", "5"),
        "control",
        both_clips=True,
    ),
    "clip4clip": Row("clip4clip meanP", ("--method", "clip4clip", "--coef_lr", "0.1"), "tuning", both_clips=True),
    "clip4clip_seqTransf": Row(
        "clip4clip seqTransf",
        ("--method", "clip4clip", "--sim_header", "seqTransf", "--coef_lr", "0.1"),
        "tuning",
        both_clips=True,
    ),
    "bias": Row("bias", ("--method", "bias"), "tuning"),
    "lora": Row("lora", ("--method", "lora"), "tuning"),
    "tempme": Row("tempme", ("--method", "tempme"), "tuning"),
    "adapter_attn": Row("adapter_attn", ("--method", "adapter_attn", "--adapter_dropout", "0"), "adapter"),
    "adapter_ffn": Row("adapter_ffn", ("--method", "adapter_ffn", "--adapter_dropout", "0"), "adapter"),
    "visual_text_adapter": Row("visual_text_adapter", ("--method", "visual_text_adapter"), "adapter"),
    "video_text_adapter": Row("video_text_adapter", ("--method", "video_text_adapter"), "adapter"),
    "unipt": Row("unipt", ("--method", "unipt"), "adapter"),
    "vpt": Row("vpt", ("--method", "vpt"), "prompt"),
    "vop": Row("vop", ("--method", "vop"), "prompt"),
    "efficient_prompt": Row(
        "efficient_prompt",
        ("--method", "efficient_prompt", "--prefix_prompts", "4", "--postfix_prompts", "4"),
        "prompt",
    ),
    "dgl_linear": Row("dgl_linear", ("--method", "dgl_linear"), "prompt"),
    "dgl_transformer": Row("dgl_transformer", ("--method", "dgl_transformer"), "prompt"),
    "upt": Row("upt", ("--method", "upt"), "prompt"),
    "stpn": Row("stpn", ("--method", "stpn"), "prompt"),
}
# 30 steps an epoch; captions have up to 10 tokens, and prompts take up to 8 of the 20 positions
OF_ALL = ("--precision", "fp32", "--max_words", "12")
SIX_EPOCHS = (*BUDGET, "--epochs", "6")


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes:
        rates: of which each row has the best.
        levels, seeds, clips: on which, with which, and on the CLIPs of which seeds. frames: of a video.
    """

    rates: tuple[str, ...] = ("1e-3", "3e-3", "1e-2")
    levels: tuple[str, ...] = LEVELS
    seeds: tuple[int, ...] = (1, 2, 3)
    clips: tuple[int, ...] = (0, 1)
    frames: int = FRAMES

    def rate_runs(self, rows: Iterable[str]) -> Iterator[Run]:
        """What the rates of some rows are chosen by."""
        for name in rows:
            if ROWS[name].trains:
                for rate in self.rates:
                    yield self.run(name, rate, self.levels[0], self.seeds[0], evaluated=("validation",))

    def runs(self, rows: Sequence[str], rates: Mapping[str, str]) -> Iterator[Run]:
        """What the table is made of: all of a seed before the next."""
        for seed in self.seeds:
            for clip in self.clips:
                for level in self.levels:
                    for name in rows:
                        seeded = ROWS[name].trains or seed == self.seeds[0]
                        if seeded and (ROWS[name].both_clips or clip == self.clips[0]):
                            yield self.run(name, rates.get(name), level, seed, clip)

    def run(
        self,
        name: str,
        rate: str | None,
        level: str,
        seed: int,
        clip: int = 0,
        evaluated: tuple[str, ...] = ("metrics", "shuffled"),
    ) -> Run:
        """A run of a row, at a rate if it trains."""
        row = ROWS[name]
        flags = ("--do_train", *row.flags, *SIX_EPOCHS, "--lr", rate) if row.trains else ("--do_eval", *row.flags)
        named = name_of(name, rate)
        return Run(level, named, self.frames, seed, (*flags, *OF_ALL), clip, evaluated)

    def chosen(self, rows: Iterable[str], record: Mapping[str, Any]) -> dict[str, str]:
        """The rates of those rows that have been trained at all of them: the best on the validation list.

        Of rates that do as well it is the smaller one.
        """
        rates = {}
        for name in rows:
            runs = [record.get(run.key, {}) for run in self.rate_runs([name])]
            if runs and all("validation" in run for run in runs):
                found = {rate: run["validation"]["t2v_R1"] for rate, run in zip(self.rates, runs, strict=True)}
                rates[name] = max(sorted(self.rates, key=float), key=found.__getitem__)
        return rates


QUICK = Plan(rates=("1e-3",), levels=LEVELS[:1], seeds=(1,), clips=(0,), frames=2)


def name_of(name: str, rate: str | None) -> str:
    """What a row at a rate is called in the record."""
    return name if rate is None else f"{name}, lr {rate}"


def say_plan(plan: Plan, rows: Sequence[str], places: Places, jobs: int) -> str:
    """How many trainings and hours there are, all of them and what is left; of a quick one no hours."""
    record = read_record(places.record)
    rates = plan.chosen(rows, record)
    unknown = {name: plan.rates[0] for name in rows if ROWS[name].trains and name not in rates}
    choosing = list(plan.rate_runs(rows))
    # of a row that has no rate yet, any stands for it; what chose the rate goes on being used
    trainings = {run.key: run for run in [*choosing, *plan.runs(rows, rates | unknown)] if run.trains}
    left = [run for run in trainings.values() if not is_done(run, places, record)]

    def hours(runs: Iterable[Run]) -> str:
        some = sum(minutes_of(run, record) for run in runs) / 60 / max(jobs, 1)
        return "" if places.more else f", some {some:.1f} hours"

    return (
        f"{len(trainings)} trainings, {len(choosing)} of them to choose rates{hours(trainings.values())}, "
        f"{max(jobs, 1)} at a time; {len(left)} of them are left{hours(left)}"
    )


def minutes_of(run: Run, record: Mapping[str, Any]) -> float:
    """What a run takes, by what those of its row took."""
    row = run.name.split(", ")[0]
    done = [each for each in trainings_of(record) if each["name"].split(", ")[0] == row]
    taken = [each["minutes"] for each in done if "minutes" in each]
    return fmean(taken) if taken else MINUTES


# --- what came out ------------------------------------------------------------------------------------------


def runs_at(record: Mapping[str, Any], name: str, level: str, clip: int = 0, plan: Plan | None = None) -> list[dict]:
    """The runs of a row at the rate that was chosen for it, a seed each."""
    plan = plan or plan_of(record)
    if ROWS[name].trains and name not in (rates := plan.chosen([name], record)):
        return []
    named = name_of(name, rates[name] if ROWS[name].trains else None)
    runs = [run for run in trainings_of(record) if (run["name"], run["level"], run["clip"]) == (named, level, clip)]
    return sorted((run for run in runs if "metrics" in run), key=lambda run: run["seed"])


def plan_of(record: Mapping[str, Any]) -> Plan:
    """The plan that a record is of: that of ``--quick`` has other frames."""
    return QUICK if any(run["frames"] == QUICK.frames for run in trainings_of(record)) else Plan()


COLUMNS = (
    "trained",
    "rate",
    "seeds",
    "R@1",
    "motion",
    "shuffled: R@1",
    "shuffled: motion",
    "s a step",
    "of zero-shot's",
    "FLOPs",
    "peak memory, MiB",
)


def table_row(record: Mapping[str, Any], name: str, level: str, clip: int) -> str | None:
    """The line of a row; None where nothing of it is done."""
    runs, frozen = runs_at(record, name, level, clip), runs_at(record, "zero_shot", level)
    if not runs:
        return None
    accuracies = [
        spread([run[order][metric] for run in runs if order in run])
        for order in ("metrics", "shuffled")
        for metric in ("t2v_R1", "motion_accuracy")
    ]
    cells = [
        ROWS[name].title,
        f"{runs[0]['metrics']['trainable_parameters']:,}",
        plan_of(record).chosen([name], record).get(name, ""),
        str(len(runs)) if ROWS[name].trains else "",
        *accuracies,
        *seconds_of_step(record, name),
        f"{runs[0]['video_gigaflops'] / frozen[0]['video_gigaflops']:.2f}" if frozen else "",
        f"{max(run['peak_memory_mb'] for run in runs):,.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def seconds_of_step(record: Mapping[str, Any], name: str) -> tuple[str, str]:
    """What a training step of a row takes, in seconds and over what the frozen CLIP does; nothing if not measured."""
    key, measured = name if ROWS[name].trains else FLOOR, record.get(STEP, {})
    if key not in measured.get("seconds", {}):
        return "", ""
    return f"{measured['seconds'][key]:.2f}", f"{measured['ratio'][key]:.2f}"


def table(record: Mapping[str, Any]) -> str:
    """One table: a line a method, for each level and CLIP."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for clip in Plan().clips:
        for level in LEVELS:
            rows = [line for name in ROWS if (line := table_row(record, name, level, clip))]
            if rows:
                title = f"**{level}**" if clip == 0 else f"**{level}, another CLIP**"
                lines += [f"| {title} " + "| " * len(COLUMNS) + "|", *rows]
    return "\n".join(lines)


CONTROLS = {
    "random_patches": "choosing patches by their scores instead of at random",
    "constant_count": "counting tokens by the variation instead of three in every gap",
    "unstructured": "STOP's structure instead of as many parameters without it",
}
ENOUGH = 3  # pairs, of fewer nothing is said


@dataclass(frozen=True)
class Gain:
    """What STOP has over a control in pairs of trainings of one seed on one CLIP.

    Attributes:
        mean: of the differences of R@1, in percent. error: its standard error. pairs: how many.
    """

    mean: float
    error: float
    pairs: int

    @property
    def shown(self) -> bool:
        """Whether it is more than twice its standard error."""
        return self.mean > 2 * self.error

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ± {self.error:.1f}"


def gain(record: Mapping[str, Any], control: str, level: str) -> Gain | None:
    """What STOP has over a control; None where fewer than `ENOUGH` pairs are done."""
    differences = []
    for clip in Plan().clips:
        accuracy = {
            name: {run["seed"]: run["metrics"]["t2v_R1"] for run in runs_at(record, name, level, clip)}
            for name in ("stop", control)
        }
        both = accuracy["stop"].keys() & accuracy[control].keys()
        differences += [accuracy["stop"][seed] - accuracy[control][seed] for seed in sorted(both)]
    if len(differences) < ENOUGH:
        return None
    return Gain(fmean(differences), stdev(differences) / sqrt(len(differences)), len(differences))


def verdict(record: Mapping[str, Any]) -> str:
    """What the controls say, in a sentence each; a last one where neither level shows that choosing and counting help.

    A gain counts as shown where it is more than twice its standard error over the pairs of seeds and CLIPs.
    """
    lines, shown = [], {}
    for control, title in CONTROLS.items():
        gains = {level: found for level in LEVELS if (found := gain(record, control, level))}
        if not gains:
            continue
        numbers = "; ".join(f"{level} {found} ({found.pairs} pairs)" for level, found in gains.items())
        where = [level for level, found in gains.items() if found.shown]
        shown[control] = (set(gains), where)
        lines.append(f"R@1 by {title}: {numbers}; a gain is shown on {' and '.join(where) or 'none'}.")
    chosen = [shown.get(control) for control in ("random_patches", "constant_count")]
    if all(found and found[0] == set(LEVELS) and not found[1] for found in chosen):
        lines.append("**Neither level shows that choosing patches and counts helps.**")
    return "\n\n".join(lines)


def tables(record: Mapping[str, Any]) -> str:
    """The table and what the controls say, as docs/method.md has them."""
    said = verdict(record)
    return table(record) + (f"\n\n{said}" if said else "")


# --- the program --------------------------------------------------------------------------------------------


def compare(plan: Plan, rows: Sequence[str], places: Places, jobs: int) -> bool:
    """Choose the rates, then train; whether all of it could be done."""
    complete = study(places, plan.rate_runs(rows), jobs)
    rates = plan.chosen(rows, read_record(places.record))
    ready = [name for name in rows if name in rates or not ROWS[name].trains]
    return study(places, plan.runs(ready, rates), jobs) and complete


def time_steps(plan: Plan, rows: Sequence[str], places: Places, batch_size: int, rounds: int) -> None:
    """Measure what a training step of each row takes, and write it to the record.

    Raises:
        BlockingIOError: a study runs, which would slow this down and write to the same record.
    """
    runs = {name: plan.run(name, plan.rates[0], plan.levels[0], plan.seeds[0]) for name in rows if ROWS[name].trains}
    places.runs.mkdir(parents=True, exist_ok=True)
    with lock_folder(places.runs):
        costs = measure_costs(runs, FLOOR, batch_size, rounds)
        write_record(places.record, read_record(places.record) | {STEP: costs})
    print("s a step: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in costs["seconds"].items()))


def two_steps(folder: Path, record: Path) -> Places:
    """Where a training takes two steps of six videos, with a CLIP that knows nothing."""
    return replace(
        quick_places(folder, record),
        dataset={"num_train": 18, "num_test_sets": 1, "num_frames": 9},
        held_out=6,
        more=("--epochs", "1", "--batch_size", "6"),
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(ROWS), default=list(ROWS), help="rows; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    parser.add_argument("--table", action="store_true", help="print the table of what is done, and stop")
    parser.add_argument("--time", action="store_true", help="measure the seconds of a step of each, in turns, and stop")
    parser.add_argument("--picture", action="store_true", help="draw docs/pictures/compare_toy.png, and stop")
    parser.add_argument("--record", type=Path, metavar="FILE", help="what is done (default: docs/results/…)")
    parser.add_argument("--quick", action="store_true", help="every row, two steps of each on a few videos, elsewhere")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, then print the table."""
    args = parse(argv)
    record = args.record or RECORD
    if args.table:
        print(tables(read_record(record)))
        return
    if args.picture:
        from scripts.studies.comparison_picture import draw

        draw(read_record(record), PICTURE)
        print(f"drew {PICTURE}")
        return
    if args.quick:
        folder = ROOT / "runs" / f"{RECORD.stem}_quick"
        shutil.rmtree(folder, ignore_errors=True)
        plan, jobs, places = QUICK, 0, two_steps(folder, args.record or folder / "record.json")
    else:
        runs = ROOT / "runs"
        plan, jobs = Plan(), args.jobs
        places = Places(runs / "toy", runs / "comparison", record, held_out=HELD_OUT)
    places.record.parent.mkdir(parents=True, exist_ok=True)
    if not args.time:
        print(say_plan(plan, args.methods, places, jobs), flush=True)
    try:
        if args.time:
            time_steps(plan, args.methods, places, *(QUICK_SIZE if args.quick else SIZE))
            return
        complete = compare(plan, args.methods, places, jobs)
    except BlockingIOError:
        sys.exit(f"another study writes to {places.runs}: wait for it, or end it")
    print(tables(read_record(places.record)))
    if not complete:
        sys.exit("some runs failed, see above: the same command tries them again")


if __name__ == "__main__":
    main()
