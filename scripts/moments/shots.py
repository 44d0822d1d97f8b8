"""Joins toy test videos to long ones: a made list of shots, of which is known when each one is.

  .venv/bin/python scripts/moments/shots.py --dataset runs/toy/dataset --output_dir runs/demo_search/videos

A video has twelve shots of 3 s each, those of a test set in a folder of its own: there every caption has one shot.
Leaves ``shots.json``: the shots with video, caption, start and end in seconds; and ``generic.txt``: what is said of any
picture in the toy world, for the judge of whether anything stands out.
"""

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.errors import UserError
from common.progress import Progress
from preprocess.make_toy_dataset import write_video
from preprocess.toy.shapes import all_position_captions

SHOTS = 12  # of a video
SHOTS_FILE, GENERIC_FILE = "shots.json", "generic.txt"
VERSION = 1  # raise it whenever the list changes


def read_frames(path: Path) -> np.ndarray:
    """All frames of a video: (n, H, W, 3) uint8 RGB."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def make_list(rows: Sequence[dict[str, str]], shots: int, seed: int) -> list[tuple[str, list[dict[str, str]]]]:
    """The videos to make, by name, each with the rows of the test list that are its shots, in a drawn order."""
    videos = []
    for name in sorted({row.get("set", "1") for row in rows}, key=int):
        of_set = [row for row in rows if row.get("set", "1") == name]
        order = np.random.default_rng([seed, int(name)]).permutation(len(of_set))
        parts = [[of_set[place] for place in order[at : at + shots]] for at in range(0, len(of_set), shots)]
        videos += [(f"set{name}/joined{number:02}.mp4", part) for number, part in enumerate(parts)]
    return videos


def join(dataset: Path, output_dir: Path, shots: int = SHOTS, seed: int = 0) -> Path:
    """Make the videos, or find them made of the same dataset and list; returns the list of shots.

    Raises:
        UserError: if there is no toy dataset, or the folder holds something else.
    """
    if not (dataset / "dataset.json").is_file():
        raise UserError(f"--dataset {dataset} is no toy dataset: make it with preprocess/make_toy_dataset.py")
    settings = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["settings"]
    made_of = {"dataset": settings, "shots": shots, "seed": seed, "version": VERSION}
    listed = output_dir / SHOTS_FILE
    if listed.is_file() and json.loads(listed.read_text(encoding="utf-8"))["made_of"] == made_of:
        return listed
    if output_dir.exists():
        if any(output_dir.iterdir()) and not listed.is_file():
            raise UserError(f"--output_dir {output_dir} holds something else: give another folder")
        shutil.rmtree(output_dir)
    with (dataset / "test.csv").open(newline="", encoding="utf-8") as file:
        videos = make_list(list(csv.DictReader(file)), shots, seed)
    found = []
    with Progress(len(videos), "joining", "video", "videos") as progress:
        for name, rows in videos:
            parts = [read_frames(dataset / "videos" / f"{row['video_id']}.mp4") for row in rows]
            bounds = np.cumsum([0, *map(len, parts)]) / settings["fps"]
            path = output_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, np.concatenate(parts), settings["fps"], settings["quantiser"])
            for row, start, end in zip(rows, bounds[:-1], bounds[1:], strict=True):
                shot = {"video": name, "caption": row["sentence"], "start": float(start), "end": float(end)}
                found.append(shot)
            progress.update()
    (output_dir / GENERIC_FILE).write_text("\n".join(all_position_captions()) + "\n", encoding="utf-8")
    listed.write_text(json.dumps({"made_of": made_of, "shots": found}, indent=1) + "\n", encoding="utf-8")
    return listed


def main(argv: Sequence[str] | None = None) -> int:
    """Make the videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="a toy dataset")
    parser.add_argument("--output_dir", type=Path, required=True, help="the videos go here")
    parser.add_argument("--shots", type=int, default=SHOTS, help=f"of a video ({SHOTS})")
    arguments = parser.parse_args(argv)
    try:
        listed = join(arguments.dataset, arguments.output_dir, arguments.shots)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"shots with known times: {listed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
