"""The demo's tables, and motion accuracy on the toy dataset.

  .venv/bin/python scripts/demo_table.py retrieval "zero-shot=runs/demo/zero_shot" "STOP=runs/demo/stop"
  .venv/bin/python scripts/demo_table.py recognition "zero-shot=runs/demo_recognition/zero_shot" …

``--record FILE`` also writes what the table rests on as JSON: metrics, settings, versions, commit and machine of each
run.

Motion accuracy of a retrieval run, from its saved embeddings: of the captions of the right object, one a motion, is the
right one nearest? Six compete in the level ``motions``, and twelve in the level ``events``, where two events in one
order are a motion of their own, wrong if either event is, or their order. It is added to the run's ``results.json`` as
``motion_accuracy``, in percent.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.tasks.metrics import rounded
from modules.tasks.thinned import say_thinned
from preprocess.toy.events import LEVELS
from preprocess.toy.shapes import Level

COLUMNS = {
    "retrieval": [
        ("t→v R@1", "t2v_R1"),
        ("R@5", "t2v_R5"),
        ("R@10", "t2v_R10"),
        ("v→t R@1", "v2t_R1"),
        ("R@5", "v2t_R5"),
        ("R@10", "v2t_R10"),
        ("motion", "motion_accuracy"),
    ],
    "recognition": [("top-1", "top1"), ("top-5", "top5"), ("mean class", "mean_class")],
}
LEGENDS = {
    "retrieval": "R@K: queries with the right answer among the first K; t→v: texts look for their video, v→t: videos "
    "look for their text.",
    "recognition": "top-K: videos whose class is among the first K of the model's ranking; mean class: the mean over "
    "classes of a class's top-1.",
}
NUMBERS = {6: "six", 12: "twelve"}


def level_of(captions: Sequence[str]) -> Level:
    """The level of the toy dataset that has these captions.

    Raises:
        ValueError: if none has all of them.
    """
    unknown = {level.name: sorted(set(captions) - set(level.captions)) for level in LEVELS.values()}
    for name, others in unknown.items():
        if not others:
            return LEVELS[name]
    first = min(unknown.values(), key=len)[0]
    raise ValueError(f"caption {first!r} ends in none of the motions of an object of the toy dataset")


def motion_accuracy(text: np.ndarray, video: np.ndarray, captions: Sequence[str]) -> float:
    """How often the right motion wins among the captions of the right object, in percent.

    Args:
        text: (N, E), of the captions, of which equal ones have equal embeddings.
        video: (N, E), in the order of their captions.
        captions: N captions, "OBJECT MOTION"; each pair of an object and a motion at least once, in any set.

    Raises:
        ValueError: if a caption has no motion in it, or an object lacks one.
    """
    level = level_of(captions)
    parts = {f"{thing} {motion}": (thing, motion) for thing in level.objects for motion in level.motions}
    rows = {caption: row for row, caption in enumerate(captions)}
    right = 0
    for row, caption in enumerate(captions):
        thing, motion = parts[caption]
        rivals = [f"{thing} {m}" for m in level.motions]
        if missing := [rival for rival in rivals if rival not in rows]:
            raise ValueError(f"no caption {missing[0]!r}: motion accuracy compares all motions of an object")
        nearest = int(np.argmax(text[[rows[rival] for rival in rivals]] @ video[row]))
        right += level.motions[nearest] == motion
    return 100 * right / len(captions)


def read_results(run: Path) -> dict:
    """A run's ``results.json``."""
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def read_captions(run: Path) -> list[str]:
    """The captions of a run's saved embeddings."""
    return (run / "features" / "captions.txt").read_text(encoding="utf-8").splitlines()


def footnote(task: str, run: Path) -> str:
    """What the motions of a table are, with the bounds that they have."""
    if task == "retrieval":
        count = len(level_of(read_captions(run)).motions)
        says = f"Motion: the right one of an object's {NUMBERS[count]} motions; "
    else:
        count, says = 6, "Top-1 over six motions: "
    return f"{says}chance is {100 / count:.1f}, and no model that ignores the order of frames can pass 50."


def add_motion_accuracy(run: Path) -> dict:
    """Complete a run's ``results.json`` from its embeddings, and return it."""
    features = run / "features"
    accuracy = motion_accuracy(np.load(features / "text.npy"), np.load(features / "video.npy"), read_captions(run))
    results = read_results(run) | rounded({"motion_accuracy": accuracy})
    temporary = run / ".results.json.partial"
    temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, run / "results.json")
    return results


def table(task: str, rows: dict[str, dict]) -> str:
    """A table of results, a row a name; those of a thinned test set have a mark and a line below."""
    marks = {name: say_thinned(results) for name, results in rows.items()}
    width = max(len(name) + (2 if marks[name] else 0) for name in rows)
    lines = [" " * width + "".join(f"{title:>11}" for title, _ in COLUMNS[task]) + "    trained"]
    for name, results in rows.items():
        cells = "".join(f"{results[key]:11.1f}" for _, key in COLUMNS[task])
        lines.append(f"{name + ' *' * bool(marks[name]):<{width}}{cells}{results['trainable_parameters']:11,}")
    lines += [f"* {name}: {mark}" for name, mark in marks.items() if mark]
    return "\n".join(lines)


def record(rows: dict[str, dict], runs: dict[str, Path]) -> dict:
    """What a table rests on: results and configuration of each run; paths of a machine are left out."""
    configs = {name: json.loads((run / "config.json").read_text(encoding="utf-8")) for name, run in runs.items()}
    for config in configs.values():
        config["settings"] = {k: v for k, v in config["settings"].items() if not str(v).startswith("/")}
    return {name: {"results": rows[name], **configs[name]} for name in runs}


def main(argv: Sequence[str] | None = None) -> None:
    """Complete the runs' results and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(COLUMNS))
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="what a row is called, and its run folder")
    parser.add_argument("--record", type=Path, metavar="FILE", help="also write what the table rests on, as JSON")
    args = parser.parse_args(argv)
    named = {name: Path(folder) for name, folder in (run.split("=", 1) for run in args.runs)}
    read = add_motion_accuracy if args.task == "retrieval" else read_results
    rows = {name: read(folder) for name, folder in named.items()}
    print(table(args.task, rows))
    print("All in percent but the last column, trained parameters.")
    print(LEGENDS[args.task])
    print(footnote(args.task, next(iter(named.values()))))
    if args.record is not None:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record(rows, named), indent=2, ensure_ascii=False)
        args.record.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
