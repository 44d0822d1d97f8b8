"""How far the losses of one and of two processes lie apart, on the demo's toy files.

  bash scripts/demo.sh                                        # makes the files
  .venv/bin/python scripts/compare_processes.py --record docs/results/processes.json

Both compute the same step: of the same batch, with the same draws. In fp64 they agree to rounding; in fp32 a rounding
may flip which regions are chosen and how many tokens a gap gets, from where on the two differ visibly.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.runtime.run_folder import describe_machine, git_commit

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    *("--do_train", "--max_frames", "8", "--max_words", "20", "--num_thread_reader", "1", "--mask_same_video"),
    *("--method", "stop", "--spatial_width", "32", "--spatial_hidden", "64", "--temporal_width", "32"),
    *("--prompt_dropout", "0", "--lr", "3e-3", "--epochs", "1", "--batch_size", "36", "--n_display", "1"),
]


def losses(toy: Path, folder: Path, processes: int, precision: str, seed: int) -> list[float]:
    """The loss of each step of an epoch on some processes."""
    files = [
        *("--pretrained_clip_name", toy / "clip", "--packed", toy / "frames", "--output_dir", folder),
        *("--train_csv", toy / "dataset" / "train.csv", "--data_path", toy / "dataset" / "MSRVTT_data.json"),
        *("--val_csv", toy / "dataset" / "test.csv"),
    ]
    launcher = [] if processes == 1 else ["-m", "modules.runtime.launch", "--processes", str(processes)]
    command = [sys.executable, *launcher, "main_task_retrieval.py", *map(str, files), *FLAGS]
    command += ["--precision", precision, "--seed", str(seed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    if finished.returncode:
        sys.exit(finished.stderr)
    entries = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [entry["loss"] for entry in entries if entry["kind"] == "train"]


def compare(toy: Path, precision: str, seed: int) -> dict:
    """The largest relative difference of the losses up to some steps."""
    with tempfile.TemporaryDirectory() as name:
        one, two = (losses(toy, Path(name) / str(n), n, precision, seed) for n in (1, 2))
    apart = [abs(a - b) / abs(a) for a, b in zip(one, two, strict=True)]
    return {"precision": precision, "seed": seed} | {f"to_step_{n}": max(apart[:n]) for n in (1, 10, 20, len(apart))}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", type=Path, default=Path("runs/toy"), metavar="FOLDER", help="what the demo made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the differences as JSON")
    args = parser.parse_args(argv)
    if not (args.toy / "frames").is_dir():
        sys.exit(f"{args.toy} does not hold the demo's files: run bash scripts/demo.sh first")
    rows = []
    for precision in ("fp32", "fp64"):
        for seed in args.seeds:
            rows.append(compare(args.toy.resolve(), precision, seed))
            print(" ".join(f"{k} {v:.1e}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
    if args.record is not None:
        content = {"rows": rows, "flags": FLAGS, "git_commit": git_commit(), "machine": describe_machine()}
        args.record.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
