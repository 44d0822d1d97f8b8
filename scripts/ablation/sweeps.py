"""What an ablation trains: STOP with and without its halves, and over a list of values of each of its settings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.settings import all_settings
from modules.methods.stop.stop import StopSettings
from scripts.studies.runner import DEFAULTS, FRAMES, STEP, differences, spread, trainings_of, with_error

PROMPTS, MERGE = "prompts", "merge_frames"
NOTHING = "none"  # of a list of layers
# what each sweep is called: in tables and pictures, and on the axis of its values
SWEEPS = {
    PROMPTS: ("Prompts", "halves of STOP"),
    "num_regions": ("Regions", "N_s, patches a frame"),
    "alpha": ("Attention against dynamics", "α"),
    "beta": ("Weight of regions", "β"),
    "eta": ("Temporal tokens", "η, at most ⌈η⌉ a gap"),
    MERGE: ("Merged frames", "before layers"),
}
# what --ablate leaves out where only this half is to be there; nothing where both are
HALVES = {"intra": "inter", "inter": "intra", "both": "none"}
ACCURACIES = {"t2v_R1": "text→video R@1, %", "top1": "top-1, %"}


@dataclass(frozen=True)
class Point:
    """A value of a sweep.

    Attributes:
        sweep: one of `SWEEPS`.
        value: as tables show it.
        name: of its runs; points of several sweeps that are STOP at its defaults share them.
        flags: what it adds to STOP at its defaults.
    """

    sweep: str
    value: str
    name: str
    flags: tuple[str, ...]


def make_points(lists: Mapping[str, Sequence[str]], none: Sequence[str], none_name: str = "no prompts") -> list[Point]:
    """The points of all sweeps.

    Args:
        lists: the values of each sweep but `PROMPTS`; those that are missing or empty are left out.
        none: the flags of a model without any prompts.
        none_name: of its runs.
    """
    points = [Point(PROMPTS, "none", none_name, tuple(none))]
    for value, left_out in HALVES.items():
        both = left_out == "none"
        points.append(
            Point(PROMPTS, value, DEFAULTS if both else f"{value} alone", () if both else ("--ablate", left_out))
        )
    former = all_settings(StopSettings())
    for sweep in SWEEPS:
        for value in lists.get(sweep, ()):
            given = "" if value == NOTHING else value
            is_default = given == "" if sweep == MERGE else float(given) == former[sweep]
            name = f"merged {value.replace(',', ', ')}" if sweep == MERGE else f"{sweep} {value}"
            flags = () if is_default else (f"--{sweep}", given)
            points.append(Point(sweep, value.replace(",", ", "), DEFAULTS if is_default else name, flags))
    return points


def distinct(points: Sequence[Point]) -> Iterator[Point]:
    """The points, those of one name once."""
    yield from {point.name: point for point in points}.values()


def runs_at(record: Mapping[str, Any], level: str, point: Point) -> list[Mapping[str, Any]]:
    """The runs of a point that a record holds, a seed each.

    level: of the toy dataset, or what another dataset is called.
    """
    runs = trainings_of(record)
    return [
        run for run in runs if (run["level"], run["name"], run.get("frames", FRAMES)) == (level, point.name, FRAMES)
    ]


def accuracies(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Text→video R@1 of retrieval, top-1 of recognition."""
    return [run["metrics"][accuracy_key(runs)] for run in runs]


def accuracy_key(runs: Sequence[Mapping[str, Any]]) -> str:
    """The one of `ACCURACIES` that runs have."""
    return next(key for key in ACCURACIES if key in runs[0]["metrics"])


def seconds(record: Mapping[str, Any], point: Point, runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Of a training step of a point.

    As measured in turns with the others' if the record has that, as trainings at different hours cannot be compared;
    else the least over those of the point's runs that trained, whatever else the machine did in others, and none where
    the record's trainings ran on several machines.
    """
    if STEP in record:
        return record[STEP]["seconds"].get(point.name)
    if len({run.get("machine") for run in trainings_of(record) if "seconds_per_step" in run}) > 1:
        return None
    return min((run["seconds_per_step"] for run in runs if "seconds_per_step" in run), default=None)


def table(record: Mapping[str, Any], levels: Sequence[str], points: Sequence[Point]) -> str:
    """A table a level: a row a point that has a run; nothing of a level without one."""
    return "\n\n".join(filter(None, (_level_table(record, level, points) for level in levels)))


def _level_table(record: Mapping[str, Any], level: str, points: Sequence[Point]) -> str:
    rows, title = [], ""
    bases = runs_at(record, level, next(point for point in points if point.name == DEFAULTS))
    for point in points:
        if not (runs := runs_at(record, level, point)):
            continue
        title = ACCURACIES[accuracy_key(runs)]
        taken = seconds(record, point, runs)
        beside = [] if point.name == DEFAULTS else differences(runs, bases, accuracy_key(runs))
        cells = [
            *(SWEEPS[point.sweep][0], point.value, str(len(runs)), spread(accuracies(runs))),
            with_error(beside, sign="+"),
            "" if taken is None else f"{taken:.2f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return ""
    heading = f"| {level} | | runs | {title} | beside the defaults | s a step |"
    return "\n".join([heading, "|---|---|---|---|---|---|", *rows])
