"""The demo's tables, and motion accuracy on the toy dataset.

  python scripts/demo_table.py retrieval "zero-shot=runs/demo/zero_shot" "STOP=runs/demo/stop"
  python scripts/demo_table.py recognition "zero-shot=runs/demo_recognition/zero_shot" …

``--record FILE`` also writes what the table rests on as JSON: metrics, settings, versions, commit and machine of each
run.

Motion accuracy of a retrieval run, from its saved embeddings: of the captions of the right object, one a motion, is the
right one nearest? It is added to the run's ``results.json`` as ``motion_accuracy``, in percent.
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
from preprocess.toy_shapes import MOTIONS

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
FOOTNOTES = {
    "retrieval": "Motion: the right one of an object's six motions; ",
    "recognition": "Top-1 over six motions: ",
}


def motion_accuracy(text: np.ndarray, video: np.ndarray, captions: Sequence[str]) -> float:
    """How often the right motion wins among the captions of the right object, in percent.

    Args:
        text: (N, E), one caption for each pair of an object and a motion.
        video: (N, E), in the order of their captions.
        captions: N captions, "OBJECT MOTION".

    Raises:
        ValueError: if a caption has no motion in it, or an object lacks one.
    """
    rows: dict[tuple[str, str], int] = {}
    pairs = []
    for row, caption in enumerate(captions):
        motion = next((m for m in MOTIONS if caption.endswith(f" {m}")), None)
        if motion is None:
            raise ValueError(f"caption {caption!r} ends in none of the motions {', '.join(MOTIONS)}")
        pairs.append((caption.removesuffix(f" {motion}"), motion))
        rows[pairs[-1]] = row
    if missing := [f"{thing} {m}" for thing, _ in pairs for m in MOTIONS if (thing, m) not in rows]:
        raise ValueError(f"no caption {missing[0]!r}: motion accuracy compares all motions of an object")
    right = 0
    for row, (thing, motion) in enumerate(pairs):
        candidates = [rows[thing, m] for m in MOTIONS]
        right += MOTIONS[int(np.argmax(text[candidates] @ video[row]))] == motion
    return 100 * right / len(captions)


def read_results(run: Path) -> dict:
    """A run's ``results.json``."""
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def add_motion_accuracy(run: Path) -> dict:
    """Complete a run's ``results.json`` from its embeddings, and return it."""
    features = run / "features"
    captions = (features / "captions.txt").read_text(encoding="utf-8").splitlines()
    accuracy = motion_accuracy(np.load(features / "text.npy"), np.load(features / "video.npy"), captions)
    results = read_results(run) | rounded({"motion_accuracy": accuracy})
    temporary = run / ".results.json.partial"
    temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, run / "results.json")
    return results


def table(task: str, rows: dict[str, dict]) -> str:
    """A table of results, a row a name."""
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{title:>11}" for title, _ in COLUMNS[task]) + "    trained"]
    for name, results in rows.items():
        cells = "".join(f"{results[key]:11.1f}" for _, key in COLUMNS[task])
        lines.append(f"{name:<{width}}{cells}{results['trainable_parameters']:11,}")
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
    print(FOOTNOTES[args.task] + "chance is 16.7, and no model that ignores the order of frames can pass 50.")
    if args.record is not None:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record(rows, named), indent=2, ensure_ascii=False)
        args.record.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
