"""How fast videos are indexed: hours of video an hour and core.

  .venv/bin/python scripts/moments/speed.py "originals=FOLDER" "compressed=FOLDER"

Indexes a folder with ViT-B/32 on random weights, which takes as long as with real ones, on one thread, beside which one
process decodes; both are counted as CPU seconds. A folder of originals and one of the same videos as
``preprocess/compress_video.py`` leaves them show what decoding costs. ``--record FILE`` writes it as JSON.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from modules.clip.loader import LoadedCLIP
from modules.program.loading import Run, load_run
from scripts.moments.record import write_record
from search import indexing
from search.settings import IndexSettings, ModelSettings


def random_run(recorded: dict[str, str], settings: ModelSettings) -> Run:
    """Plain CLIP of the size of ViT-B/32."""
    model = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False).eval().requires_grad_(False)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    clip = LoadedCLIP(model, open_clip.get_tokenizer("ViT-B-32"), mean, std)
    return load_run(method="zero_shot", clip=clip, device="cpu")


def cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(folder: Path) -> dict[str, Any]:
    """Index a folder of videos anew."""
    run = random_run({}, ModelSettings())
    with tempfile.TemporaryDirectory() as index_dir:
        before, began = cpu_seconds(), time.monotonic()
        outcome = indexing.update(
            [folder], Path(index_dir) / "index", IndexSettings(), ModelSettings(), set(), load=lambda *_: run
        )
        took, used = time.monotonic() - began, cpu_seconds() - before
    return {
        "videos": outcome.added - len(outcome.bad),
        "bad": len(outcome.bad),
        "video_seconds": round(outcome.seconds, 1),
        "seconds": round(took, 1),
        "cpu_seconds": round(used, 1),
        "hours_an_hour_and_core": round(outcome.seconds / used, 2),
        "frames": run.max_frames,
    }


def table(record: dict[str, Any]) -> str:
    """A row a folder."""
    lines = ["| videos | minutes of video | CPU seconds | hours of video an hour and core |", "|---|---:|---:|---:|"]
    for name, found in record["measured"].items():
        minutes, speed = found["video_seconds"] / 60, found["hours_an_hour_and_core"]
        lines.append(f"| {name} | {minutes:.1f} | {found['cpu_seconds']:.0f} | {speed:.1f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER", help="what a row is called, and videos")
    parser.add_argument("--record", type=Path, metavar="FILE", help="also write the results as JSON")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = {name: measure(Path(folder)) for name, folder in (text.split("=", 1) for text in arguments.folders)}
    print(table({"measured": results}))
    if arguments.record is not None:
        write_record(arguments.record, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
