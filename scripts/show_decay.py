"""Shows what weight decay on N^s and N^t does to the gate: tokens a gap over a training with ten times the decay.

  git worktree add ../before 62d4934      # the last commit in which it acted on them and the floor did not follow
  .venv/bin/python scripts/show_decay.py --before ../before

Both codes train STOP at the demo's setting on the demo's files (`bash scripts/demo.sh` makes them), with ten times the
decay, since the demo takes 180 steps and MSR-VTT 7,030; all that differs else is set alike. Writes
docs/results/decay.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.runtime.run_folder import describe_machine

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "results" / "decay.json"
FLAGS = (
    *("--do_train", "--max_frames", "8", "--max_words", "20", "--num_thread_reader", "0", "--mask_same_video"),
    *("--method", "stop", "--spatial_width", "32", "--spatial_hidden", "64", "--temporal_width", "32"),
    *("--prompt_dropout", "0", "--lr", "3e-3", "--epochs", "5", "--batch_size", "36", "--weight_decay", "2"),
    *("--epsilon", "0.005", "--precision", "fp32", "--seed", "1"),
)
COLUMNS = 7
AS_BEFORE = ("--frame_weight", "sum")  # of the newer code
# Runs a training of the code in the folder that it starts in, and writes what the gate did: older code does not log it
PROGRAM = """
import json, sys
sys.path.insert(0, "")
import main_task_retrieval
name = next(name for name in ("modules.methods.stop.inter_frame", "modules.inter_frame") if name in sys.modules)
gate = sys.modules[name].InterFramePrompting
forward, layers = gate.forward, []
def counted(self, read, regions, real, keys):
    out = forward(self, read, regions, real, keys)
    if self.training:
        layers.append(out.num_temporal_prompts[real[:, 1:]].double().mean().item())
        norms.append(self.dynamics.weight.detach().square().sum().item())
    return out
norms = []
gate.forward = counted
status = main_task_retrieval.main(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    json.dump({"tokens_per_gap": layers, "squared_norm": norms}, file)
sys.exit(status)
"""
NUM_LAYERS = 4  # of the toy CLIP, each of which asks the gate once a step


def gate_of(code: Path, toy: Path, more: Sequence[str] = ()) -> dict:
    """Tokens a gap, and the squared norm of N^t's kernel beside its first value, at each step of a training."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [
            *("--pretrained_clip_name", toy / "clip", "--features_path", toy / "dataset" / "videos"),
            *("--train_csv", toy / "dataset" / "train.csv", "--data_path", toy / "dataset" / "MSRVTT_data.json"),
            *("--val_csv", toy / "dataset" / "test.csv", "--output_dir", folder / "run"),
        ]
        command = [sys.executable, "-c", PROGRAM, str(folder / "gate.json"), *map(str, files), *FLAGS, *more]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
        finished = subprocess.run(command, cwd=code, env=environment, stderr=subprocess.PIPE, text=True)
        if finished.returncode:
            sys.exit(finished.stderr[-3000:])
        found = json.loads((folder / "gate.json").read_text(encoding="utf-8"))
    tokens, norms = found["tokens_per_gap"], found["squared_norm"][::NUM_LAYERS]
    steps = [sum(tokens[at : at + NUM_LAYERS]) / NUM_LAYERS for at in range(0, len(tokens), NUM_LAYERS)]
    described = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    commit = subprocess.run(described, cwd=code, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "git_commit": commit,
        "tokens_per_gap": [round(value, 4) for value in steps],
        "squared_norm": [round(value / norms[0], 4) for value in norms],
    }


def table(content: Mapping) -> str:
    """What docs/method.md says, in Markdown."""
    length = len(content["before"]["tokens_per_gap"])
    places = [round(place * (length - 1) / (COLUMNS - 1)) for place in range(COLUMNS)]
    lines = [
        "| at step | " + " | ".join(str(place + 1) for place in places) + " |",
        "|---" * (COLUMNS + 1) + "|",
    ]
    for when, title in (("before", "with decay on N^s, N^t"), ("after", "without, as it is now")):
        for name, words, digits in (("tokens_per_gap", "tokens a gap", 2), ("squared_norm", "N^t's squared norm", 2)):
            cells = [f"{content[when][name][place]:.{digits}f}" for place in places]
            lines.append(f"| {title}: {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="a checkout of the older code")
    parser.add_argument("--toy", type=Path, default=Path("runs/toy"), metavar="FOLDER", help="what the demo made")
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="what was measured")
    parser.add_argument("--table", action="store_true", help="print the table of what was measured, and stop")
    args = parser.parse_args(argv)
    if args.table:
        print(table(json.loads(args.record.read_text(encoding="utf-8"))))
        return
    if args.before is None:
        parser.error("give --before, a checkout of the older code, or --table")
    content = {
        "before": gate_of(args.before, args.toy.resolve()),
        "after": gate_of(ROOT, args.toy.resolve(), AS_BEFORE),
    }
    content |= {"flags": FLAGS, "machine": describe_machine()}
    args.record.write_text(json.dumps(content) + "\n", encoding="utf-8")
    print(table(content))


if __name__ == "__main__":
    main()
