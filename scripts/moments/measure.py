"""How well moments are found in videos whose shots are known, and how often nothing stands out where nothing is.

  .venv/bin/python scripts/moments/measure.py --videos runs/demo_search/videos "zero-shot=runs/demo_search/zero_shot" …

Each NAME=FOLDER is an index of these videos. Every caption is looked for in the folder that has one shot of it. The
first moment is the right one if it is in the shot's video and the times of the two have an intersection over union of
at least 0.5. The judge is asked about every caption three times: as it is, and with the windows that show its shot, or
any shot of its object, left out, so that what is looked for is not there. Present things that do not stand out are
misses, absent ones that do are false hits. ``--record FILE`` writes it as JSON.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.errors import UserError
from modules.program.loading import Run
from scripts.moments.record import write_record
from scripts.moments.shots import GENERIC_FILE, SHOTS_FILE
from search.models import check_fingerprint, open_run
from search.queries import Query, Searcher
from search.scoring import similarities
from search.settings import JudgeSettings, ModelSettings
from search.store import read_store

RIGHT = 0.5  # intersection over union
THRESHOLDS = tuple(np.arange(-1, 4.01, 0.25).tolist())
SHOWN = 0.5, 3.0  # the thresholds in the table
ABSENT = {"its shot left out": 4, "all of its object left out": 3}  # words of a caption that a shot left out shares


def intersection_over_union(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Of two spans of time."""
    common = min(first[1], second[1]) - max(first[0], second[0])
    return max(0.0, common) / (max(first[1], second[1]) - min(first[0], second[0])) if common > 0 else 0.0


def is_right(moment: dict[str, Any], shot: dict[str, Any]) -> bool:
    """Whether a moment of an answer is a shot."""
    times = (moment["from"], moment["to"]), (shot["start"], shot["end"])
    return moment["file"].endswith(shot["video"]) and intersection_over_union(*times) >= RIGHT


def excesses(searcher: Searcher, shots: Sequence[dict[str, Any]], texts: np.ndarray) -> dict[str, list[float]]:
    """What the judge says of each caption where it is there and where it is not: standard deviations.

    Args:
        searcher: an index of the shots' videos.
        shots: with their captions, "a COLOUR SHAPE MOTION".
        texts: (n, E) the captions' embeddings.
    """
    loaded = searcher.load()
    found = similarities(loaded.embeddings, loaded.rows.rows, texts)  # (windows, n)
    files = np.array([loaded.videos[int(video)].name.partition("/")[2] for video in loaded.rows.videos])
    judged: dict[str, list[float]] = {name: [] for name in ("present", *ABSENT)}
    for place, shot in enumerate(shots):
        in_set = np.char.startswith(files, shot["video"].partition("/")[0] + "/")
        judged["present"].append(loaded.judge.excess(float(found[in_set, place].max())))
        for name, words in ABSENT.items():
            kept = in_set.copy()
            for other in shots:
                if other["caption"].split()[:words] == shot["caption"].split()[:words]:
                    seen = (loaded.rows.starts < other["end"]) & (loaded.rows.ends > other["start"])
                    kept &= ~(seen & (files == other["video"]))
            judged[name].append(loaded.judge.excess(float(found[kept, place].max())))
    return judged


def curve(judged: dict[str, list[float]]) -> list[dict[str, float]]:
    """Misses and false hits in percent at each threshold."""
    return [
        {"threshold": bar, "misses": 100 * float(np.mean(np.array(judged["present"]) < bar))}
        | {name: 100 * float(np.mean(np.array(judged[name]) >= bar)) for name in ABSENT}
        for bar in THRESHOLDS
    ]


def measure(index_dir: Path, shots: Sequence[dict[str, Any]], generic: Path) -> dict[str, Any]:
    """What an index of the shots' videos finds.

    Raises:
        UserError: if it cannot be opened.
    """
    store = read_store(index_dir)
    recorded = store.settings
    store.close()
    run: Run = open_run(recorded, ModelSettings())
    check_fingerprint(index_dir, recorded, ModelSettings(), run)
    searcher = Searcher(index_dir, run.embed_texts, JudgeSettings(generic_texts=generic))
    root = Path(searcher.store.folders()[0]).name
    right = 0
    for shot in shots:
        folder = f"{root}/{shot['video'].partition('/')[0]}"
        moments = searcher.answer(Query(shot["caption"], folder=folder, top=1, all=True))["moments"]
        right += bool(moments) and is_right(moments[0], shot)
    judged = excesses(searcher, shots, run.embed_texts([shot["caption"] for shot in shots]))
    return {
        "queries": len(shots),
        "right": round(100 * right / len(shots), 1),
        "windows": len(searcher.load().rows.rows),
        "curve": [{name: round(value, 2) for name, value in point.items()} for point in curve(judged)],
    }


def table(record: dict[str, Any]) -> str:
    """How often the first moment is the right one."""
    lines = ["| index | queries | first moment right |", "|---|---:|---:|"]
    for name, found in record["measured"].items():
        lines.append(f"| {name} | {found['queries']:,} | {found['right']:.1f} % |")
    return "\n".join(lines)


def curve_table(record: dict[str, Any]) -> str:
    """Misses against false hits, by threshold, in percent."""
    results = record["measured"]
    names = list(results)
    heads = ["missed", *(f"false, {name}" for name in ABSENT)]
    titles = [f"{name}: {head}" for name in names for head in heads]
    lines = ["| threshold | " + " | ".join(titles) + " |", "|---:|" + "---:|" * len(titles)]
    for points in zip(*(results[name]["curve"] for name in names), strict=True):
        if not SHOWN[0] <= points[0]["threshold"] <= SHOWN[1]:
            continue
        cells = [f"{point[key]:.1f}" for point in points for key in ("misses", *ABSENT)]
        lines.append(f"| {points[0]['threshold']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="the folder that scripts/moments/shots.py made")
    parser.add_argument("--record", type=Path, metavar="FILE", help="also write the results as JSON")
    parser.add_argument("indices", nargs="+", metavar="NAME=FOLDER", help="what a row is called, and an index")
    arguments = parser.parse_args(argv)
    shots = json.loads((arguments.videos / SHOTS_FILE).read_text(encoding="utf-8"))["shots"]
    named = dict(index.split("=", 1) for index in arguments.indices)
    try:
        results = {
            name: measure(Path(folder), shots, arguments.videos / GENERIC_FILE) for name, folder in named.items()
        }
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    width = max(map(len, results))
    print(f"{'index':<{width}}   first moment right (intersection over union at least {RIGHT:g})")
    for name, found in results.items():
        print(f"{name:<{width}}   {found['right']:.1f} % of {found['queries']} queries")
    if arguments.record is not None:
        write_record(arguments.record, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
