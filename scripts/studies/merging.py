"""The study of merged frames on the toy testbed: R@1 against seconds and FLOPs of a training step.

  bash scripts/merge_toy.sh                        # trains; continues where it stopped
  python scripts/studies/merging.py --time         # measures seconds and FLOPs of a step of each point, in turns
  python scripts/studies/merging.py --picture      # draws docs/pictures/merging_toy.png of what is done
  python scripts/studies/merging.py --table        # prints what docs/merging.md has of it

What is varied is before which layers frames are merged and prompts are made, and how many frames there are. See
`scripts.studies.runner` for how a training is done and what it reports.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.errors import UserError
from common.files import lock_folder, write_whole
from scripts.benchmark.model import FLOOR
from scripts.studies import choices
from scripts.studies.costs import measure_costs, vit_teraflops
from scripts.studies.merging_curve import (
    COSTS,
    LAYERS,
    POINTS,
    SEEDS,
    UNMERGED,
    all_runs,
    beside,
    beside_fewer,
)
from scripts.studies.runner import (
    FRAMES,
    LEVELS,
    RESULTS,
    ROOT,
    Action,
    Places,
    read_record,
    read_records,
    run_study,
    runs_of,
    with_error,
    write_record,
)

RECORD = RESULTS / "study_merging.json"
PICTURE = ROOT / "docs" / "pictures" / "merging_toy.png"
SIZE, QUICK_SIZE = (36, 9), (2, 1)  # of the timing: videos of a step, and rounds
FEW = 4  # points of what is quick


def accuracy_table(record: dict[str, Any], level: str) -> str:
    """A row a point that has a run."""
    lines = [
        f"| {level} | seeds | R@1 | beside 8 frames | beside as many frames as take its seconds "
        "| seconds, FLOPs of 8 frames' | motion |",
        "|---|---|---|---|---|---|---|",
    ]
    frozen = runs_of(record, level, "zero-shot", FRAMES)
    if frozen:
        metrics, costs = frozen[0]["metrics"], relative_costs(record, FLOOR)
        lines.append(f"| frozen CLIP |  | {metrics['t2v_R1']:.1f} |  |  | {costs} | {metrics['motion_accuracy']:.1f} |")
    for point in POINTS:
        runs = runs_of(record, level, point.name, point.frames)
        if not runs:
            continue
        unmerged = point.family in ("unmerged", "fewer")
        cells = [
            point.label,
            str(len(runs)),
            with_error([run["metrics"]["t2v_R1"] for run in runs]),
            "" if point is UNMERGED else with_error(beside(record, level, point), sign="+"),
            "" if unmerged else with_error(beside_fewer(record, level, point), sign="+"),
            relative_costs(record, point.cost_key),
            with_error([run["metrics"]["motion_accuracy"] for run in runs]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def relative_costs(record: dict[str, Any], key: str) -> str:
    """Seconds and FLOPs of a point's step over those of the unmerged one; nothing where they were not measured."""
    costs = record.get(COSTS, {})
    if key not in costs.get("ratio", {}):
        return ""
    return f"{costs['ratio'][key]:.2f}, {costs['gigaflops'][key] / costs['gigaflops'][UNMERGED.cost_key]:.2f}"


def cost_table(record: dict[str, Any]) -> str:
    """A row a point, of what a training step takes; nothing where it has not been measured."""
    if COSTS not in record:
        return ""
    costs = record[COSTS]
    lines = [
        f"| a step of {costs['batch_size']} videos | frames in each layer | prompted before | s | of 8 frames' "
        "| GFLOPs | of 8 frames' |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [("frozen CLIP", (FRAMES,) * LAYERS, "", FLOOR)]
    rows += [(point.label, point.frames_by_layer, point.prompted, point.cost_key) for point in POINTS]
    for label, frames, prompted, key in rows:
        if key in costs["ratio"]:
            flops, unmerged = costs["gigaflops"][key], costs["gigaflops"][UNMERGED.cost_key]
            cells = [
                *(label, "·".join(map(str, frames)), prompted),
                *(f"{costs['seconds'][key]:.2f}", f"{costs['ratio'][key]:.2f}"),
                *(f"{flops:.1f}", f"{flops / unmerged:.2f}"),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def vit_table(record: dict[str, Any]) -> str:
    """What a step of ViT-B/32 takes at the settings that a default could be; nothing without counts."""
    counted = record.get(COSTS, {}).get("vit_b32_teraflops", {})
    if not counted:
        return ""
    lines = ["| ViT-B/32 | TFLOPs a step of a video | of the first |", "|---|---|---|"]
    first = next(iter(counted.values()))
    lines += [f"| {name} | {flops:.2f} | {flops / first:.2f} |" for name, flops in counted.items()]
    return "\n".join(lines)


def tables(record: dict[str, Any]) -> str:
    """All of docs/merging.md's, of the runs of this study and of the other that they share."""
    parts = [*(accuracy_table(record, level) for level in LEVELS), cost_table(record), vit_table(record)]
    return "\n\n".join(part for part in parts if part)


def tables_of(toy: dict[str, Any], merging: dict[str, Any] | None) -> str:
    """The same, of the two records; of runs in both this study's count."""
    return tables({**toy, **(merging or {})})


def measure(places: Places, others: Sequence[Path], quick: bool) -> None:
    """Measure seconds and FLOPs of a step of all points, and write them to the record.

    Raises:
        BlockingIOError: a study runs, which would slow this down and write to the same record.
    """
    places.runs.mkdir(parents=True, exist_ok=True)
    points, size = (POINTS[:FEW], QUICK_SIZE) if quick else (POINTS, SIZE)
    with lock_folder(places.runs):
        costs = measure_costs(
            {point.cost_key: point.run(LEVELS[0], SEEDS[0]) for point in points}, UNMERGED.cost_key, *size, count=True
        )
        costs |= {} if quick else {"vit_b32_teraflops": vit_teraflops()}
        write_record(places.record, read_record(places.record) | {COSTS: costs})
    print(cost_table({COSTS: costs}))


def draw(places: Places, others: Sequence[Path], quick: bool) -> None:
    """Draw the curve of what is done."""
    from scripts.studies.merging_picture import picture  # matplotlib is slow to import, and needed here only

    path = PICTURE if places.record == RECORD else places.record.parent / PICTURE.name
    try:
        content = picture(read_records([*others, places.record]))
    except UserError as error:
        sys.exit(str(error))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))
    print(f"wrote {path}")


ACTIONS = {
    "time": Action("measure seconds and FLOPs of a step of each point, in turns, and stop", measure),
    "picture": Action("draw the curve of what is done, and stop", draw),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Study, then print the tables."""
    runs = list(all_runs())
    few = {"zero-shot", *(point.name for point in POINTS[:FEW])}
    quick = [run for run in runs if run.seed == SEEDS[0] and run.frames == FRAMES and run.name in few]
    run_study(argv, __doc__, RECORD, runs, quick, tables, [choices.RECORD], ACTIONS)


if __name__ == "__main__":
    main()
