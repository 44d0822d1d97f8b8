"""The parts of `scripts/gpu_check.sh` that measure, each for a process of its own.

.venv/bin/python scripts/gpu/parts.py benchmark|trace|compiled --results FILE [--batch_size VIDEOS] [--clip FOLDER]

A part prints its tables and writes what it found to a JSON file, what is found first before the rest.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.files import write_whole
from scripts.benchmark import benchmark, model
from scripts.benchmark.model import FLOOR, PER_LAYER
from scripts.gpu import step_trace

NUM_FRAMES = 12
COMPILED = (FLOOR, PER_LAYER)  # compiling takes long, and a part has minutes
ROUNDS_COMPILED = 10

Save = Callable[[Mapping[str, Any]], None]


def run_benchmark(plan: benchmark.Plan, save: Save) -> None:
    """Speed, memory and share of the GPU's peak beside the frozen CLIP, then how a step grows with the frames."""
    results = benchmark.machine(plan.setup) | benchmark.benchmark_model(plan)
    save(results)
    save(results | benchmark.benchmark_growth(plan))


def run_trace(plan: benchmark.Plan, save: Save) -> None:
    """What the GPU does in a training step."""
    found = step_trace.measure(plan.setup)
    save(found)
    print(step_trace.describe(found, plan.setup))


def run_compiled(plan: benchmark.Plan, save: Save) -> None:
    """Speed with --compile, of the floor and STOP at its defaults."""
    results = model.measure_speed(plan.setup, ROUNDS_COMPILED, COMPILED)
    save(results)
    print("Both through torch.compile:\n")
    benchmark.print_beside_the_floor(plan.setup, COMPILED, results)
    save(results | benchmark.print_arithmetic(plan.setup, COMPILED, results))


PARTS: dict[str, Callable[[benchmark.Plan, Save], None]] = {
    "benchmark": run_benchmark,
    "trace": run_trace,
    "compiled": run_compiled,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--results", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--batch_size", type=int, default=benchmark.BATCH_ON_GPU, help="videos")
    parser.add_argument("--clip", type=Path, help="an open_clip model folder (default: a random ViT-B/32)")
    arguments = parser.parse_args(argv)
    flags = ["--device", "cuda", "--batch_size", str(arguments.batch_size), "--num_frames", str(NUM_FRAMES)]
    flags += ["--clip", str(arguments.clip)] if arguments.clip is not None else []
    flags += ["--compile"] if arguments.part == "compiled" else []
    plan = benchmark.make_plan(benchmark.parse_arguments(flags))

    def save(results: Mapping[str, Any]) -> None:
        text = json.dumps(results, indent=2) + "\n"
        write_whole(arguments.results, lambda file: file.write(text.encode()))

    PARTS[arguments.part](plan, save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
