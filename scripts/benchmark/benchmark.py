"""The measurements behind `scripts/benchmark.sh`, and their tables.

bash scripts/benchmark.sh [--quick] [--methods NAMES] [--videos DIR] [--ranks N] [--compile]
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from common.errors import UserError
from common.files import write_whole
from modules.methods import METHODS
from modules.runtime.run_folder import cpu_name, git_commit
from scripts.benchmark import data, model
from scripts.benchmark.counts import measure_counts
from scripts.benchmark.flops import FORMULA, count_flops
from scripts.benchmark.model import (
    FLOOR,
    ONCE,
    ONCE_MERGED,
    PER_LAYER,
    PER_LAYER_MERGED,
    REDUCED,
    SUBJECTS,
    TEXT,
    TEXT_OVER_PER_LAYER,
    Setup,
)

# what is wanted at most, of a CPU in fp32 and of a GPU in bf16; None for nothing
BARS: dict[str, tuple[float, float | None]] = {
    "encode_ratio.once": (1.08, 1.25),
    "encode_ratio.per_layer": (1.25, 1.6),
    "encode_ratio.once_merged": (0.65, None),
    "encode_ratio.per_layer_merged": (0.76, None),
    "train_step_ratio.once": (1.0, 1.35),
    "train_step_ratio.per_layer": (1.3, 1.8),
    "train_step_ratio.once_merged": (0.62, None),
    "train_step_ratio.per_layer_merged": (0.8, None),
    "peak_memory_ratio.once": (0.75, 1.2),
    "peak_memory_ratio.per_layer": (1.0, None),
    "peak_memory_ratio.once_merged": (0.5, None),
    "peak_memory_ratio.per_layer_merged": (0.62, None),
    TEXT_OVER_PER_LAYER: (1.06, 1.06),
}
# and of what a training step of the published batch asks of a GPU: of a first version's operations 73% (once) and 39%
# (per_layer), of its bytes 91% and 67%
COUNT_BARS = {
    "count.operations.once": 1_007,
    "count.operations.per_layer": 3_057,
    "count.gigabytes.once": 261,
    "count.gigabytes.per_layer": 487,
}
WITH_BARS = (FLOOR, ONCE, PER_LAYER, ONCE_MERGED, PER_LAYER_MERGED)  # whose memory has a bar
NAMES = {
    FLOOR: "frozen CLIP (the floor)",
    ONCE: "STOP, --prompting once",
    PER_LAYER: "STOP, --prompting per_layer",
    TEXT: "the same, --text_prompts 8",
    REDUCED: "the same, --spatial_reduce 64",
    ONCE_MERGED: "STOP, --prompting once, --merge_frames 4,8",
    PER_LAYER_MERGED: "STOP, --prompting per_layer, --merge_frames 4,8",
}
COUNT_COLUMNS = ("operations", "wanted", "GB read and written", "wanted", "TFLOP without attention")
# Dense bf16 FLOP/s by their maker's data sheets, of GPUs whose name begins so; the first that fits counts
GPU_PEAKS = {
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA A100": 312e12,
}
AIM = 0.4  # of a Hopper's peak
SHARE_BAR = 0.8  # of the FLOP/s that the frozen CLIP reaches, on a Hopper
FITTED_FROM = 12  # frames, below which a step has too little to do for its growth to show
BATCH_ON_CPU, BATCH_ON_GPU = 4, 128  # videos, at which what is wanted is wanted
COUNTED = Setup(BATCH_ON_GPU, 12, "cpu", "bf16", threads=1)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        setup: of speed and memory. rounds: of speed, after one that warms up.
        subjects: of speed. weighed: of memory. apart: of which each has a process.
        methods: that are measured instead of all else; none for all else.
        counts: whether calls of a training step are counted.
        lengths: numbers of frames of the growth. repeated_for: seconds that steps of each are repeated for.
        clips, clip_seconds: made for the loader. batches: measured of the loader.
        ranks: pairs that are ranked in blocks.
    """

    setup: Setup
    rounds: int
    subjects: tuple[str, ...]
    weighed: tuple[str, ...]
    apart: bool
    methods: tuple[str, ...]
    counts: bool
    lengths: tuple[int, ...]
    repeated_for: float
    clips: int
    clip_seconds: int
    batches: int
    ranks: int


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer, nothing counted: a first look")
    parser.add_argument(
        "--methods", default="", help="only speed and memory of these methods, such as vop,lora, or all, at defaults"
    )
    parser.add_argument("--count", action="store_true", help="only what a step asks of a GPU, which takes none")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: fp32 on a CPU, bf16 on a GPU")
    parser.add_argument(
        "--batch_size", type=int, help=f"videos (default: {BATCH_ON_CPU}, --quick 1, on a GPU {BATCH_ON_GPU})"
    )
    parser.add_argument("--num_frames", type=int, default=12, help="T, of speed and memory (default: 12)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (default: all cores)")
    parser.add_argument("--compile", action="store_true", help="floor and STOP both through torch.compile")
    parser.add_argument("--clip", type=Path, help="an open_clip model folder (default: a random ViT-B/32)")
    parser.add_argument("--videos", type=Path, help="folder of videos for the loader (default: some are made)")
    parser.add_argument("--ranks", type=int, help="pairs ranked in blocks (default: 20000, --quick 5000)")
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"), help="default: benchmark.json")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    if arguments.videos is not None and not arguments.videos.is_dir():
        parser.error(f"--videos {arguments.videos}: no such folder")
    if not arguments.output.resolve().parent.is_dir():
        parser.error(f"--output {arguments.output}: its folder is not there")
    arguments.methods = list(METHODS) if arguments.methods == "all" else arguments.methods.split(",")
    arguments.methods = tuple(dict.fromkeys(name.strip() for name in arguments.methods if name.strip()))
    if unknown := [name for name in arguments.methods if name not in METHODS]:
        parser.error(f"--methods {', '.join(unknown)}: no such method; there are {', '.join(METHODS)}, and all")
    for name in ("batch_size", "threads", "ranks"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, found {value}")
    if arguments.num_frames < 2:
        parser.error(f"--num_frames must be at least 2 for there to be a gap, found {arguments.num_frames}")
    return arguments


def make_plan(arguments: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device == "cuda"
    batch = arguments.batch_size or (BATCH_ON_GPU if on_gpu else 1 if arguments.quick else BATCH_ON_CPU)
    precision = arguments.precision or ("bf16" if on_gpu else "fp32")
    setup = Setup(batch, arguments.num_frames, device, precision, arguments.threads, arguments.compile, arguments.clip)
    methods = arguments.methods
    if arguments.quick:
        ranks = arguments.ranks or 5000
        return Plan(setup, 1, WITH_BARS, WITH_BARS, False, methods, arguments.count, (4, 8), 0.0, 2, 5, 4, ranks)
    # on a CPU memory takes a process each and growth by the square: what is measured is what tells most of it
    weighed, lengths = (SUBJECTS, (4, 8, 12, 24, 48, 64)) if on_gpu else (WITH_BARS, (4, 12, 24, 64))
    rounds, ranks = 20 if on_gpu else 3, arguments.ranks or 20_000
    return Plan(setup, rounds, SUBJECTS, weighed, not on_gpu, methods, True, lengths, 2.0, 6, 12, 24, ranks)


def machine(setup: Setup) -> dict[str, str | int | bool]:
    """Where and with what this is measured."""
    name = torch.cuda.get_device_name() if setup.device == "cuda" else cpu_name()
    return {
        "device": setup.device,
        "device_name": name,
        "precision": setup.precision,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": setup.threads,
        "cores": os.cpu_count() or 1,
        "batch_size": setup.batch_size,
        "num_frames": setup.num_frames,
        "compiled": setup.compiled,
        "git_commit": git_commit() or "unknown",
    }


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table and an empty line."""
    for cells in (titles, ["---"] * len(titles), *rows):
        print(f"| {' | '.join(cells)} |")
    print(flush=True)


def say(what: str) -> None:
    """Tell, beside the tables, what is going on."""
    print(f"benchmark: {what} …", file=sys.stderr, flush=True)


def print_beside_the_floor(setup: Setup, names: Sequence[str], results: Mapping[str, float]) -> None:
    """Print seconds, memory and their ratios, a row a subject; what was not measured of one stays empty."""
    print(f"## Beside the frozen CLIP, {setup.batch_size} videos of {setup.num_frames} frames\n")
    rows = []
    for name in names:
        cells = [NAMES.get(name, f"`--method {name}`")]
        for what, form in (("encode_seconds", ".3f"), ("train_step_seconds", ".3f"), ("peak_memory_mib", ".0f")):
            value = results.get(f"{what}.{name}")
            ratio = results.get(f"{what.rpartition('_')[0]}_ratio.{name}")
            cells += ["" if value is None else format(value, form), "" if ratio is None else f"{ratio:.2f}"]
        rows.append(cells)
    print_table(["", "encode, s", "ratio", "training step, s", "ratio", "peak memory of a step, MiB", "ratio"], rows)


def benchmark_model(plan: Plan) -> dict[str, float]:
    """Measure and print speed, memory and arithmetic."""
    setup = plan.setup
    say(f"encoding and training, {plan.rounds} rounds in turns")
    results = model.in_own_process(model.measure_speed, setup, plan.rounds, plan.subjects)
    say("memory")
    results |= model.measure_memory(setup, plan.weighed, plan.apart)
    print_beside_the_floor(setup, plan.subjects, results)
    on_gpu = setup.device == "cuda"
    rows = [[name, f"{results[name]:.2f}", wanted(name, on_gpu)] for name in BARS if name in results]
    print_table(["ratio", "measured", f"wanted of {BATCH_ON_GPU if on_gpu else BATCH_ON_CPU} videos"], rows)
    return results | print_arithmetic(setup, plan.subjects, results)


def wanted(ratio: str, on_gpu: bool) -> str:
    """One of `BARS`, in words; empty where there is none."""
    bar = BARS[ratio][on_gpu]
    return "" if bar is None else f"≤ {bar:.2f}"


def count_cells(results: Mapping[str, float], name: str) -> list[str]:
    """The cells of `COUNT_COLUMNS` of a subject."""
    cells = []
    for what, form in (("operations", ",d"), ("gigabytes", ",.0f")):
        bar = COUNT_BARS.get(f"count.{what}.{name}")
        cells += [format(results[f"count.{what}.{name}"], form), "" if bar is None else f"≤ {bar:,}"]
    return [*cells, f"{results[f'count.teraflops.{name}']:.1f}"]


def benchmark_methods(plan: Plan) -> dict[str, float]:
    """Measure and print speed and memory of the methods asked for; of one that trains nothing, encoding alone."""
    say(f"encoding and training of {', '.join(plan.methods)}, {plan.rounds} rounds in turns with the frozen CLIP")
    results = model.measure_methods(plan.setup, plan.rounds, plan.methods)
    say("memory")
    names = (FLOOR, *plan.methods)
    trained = [name for name in names if f"train_step_seconds.{name}" in results]
    results |= model.measure_memory(plan.setup, trained, plan.apart)
    print_beside_the_floor(plan.setup, names, results)
    return results


def print_arithmetic(setup: Setup, names: Sequence[str], results: Mapping[str, float]) -> dict[str, float]:
    """Print model FLOPs, what is reached of them a second, and of the device's peak where that is known."""
    print(FORMULA + "\n")
    peak = None
    if setup.device == "cuda" and setup.precision == "bf16":
        name = torch.cuda.get_device_name()
        peak = next((value for begin, value in GPU_PEAKS.items() if name.startswith(begin)), None)
    rows, more = [], {}
    counted = count_flops(setup, names)
    floor = counted[FLOOR].train / results[f"train_step_seconds.{FLOOR}"]
    for name, flops in counted.items():
        reached = flops.train / results[f"train_step_seconds.{name}"]
        more |= {f"encode_tflop.{name}": flops.encode / 1e12, f"train_step_tflop.{name}": flops.train / 1e12}
        more[f"train_step_tflops.{name}"] = reached / 1e12
        if peak is not None:
            more[f"train_step_mfu.{name}"] = reached / peak
        if name != FLOOR:
            more[f"train_step_tflops_ratio.{name}"] = reached / floor
        share = "" if peak is None else f"{reached / peak:.1%}"
        rows.append(
            [NAMES[name], f"{flops.train / 1e12:.3f}", f"{reached / 1e12:.3f}", f"{reached / floor:.2f}", share]
        )
    print_table(["training step", "model TFLOP", "TFLOP/s", "beside the floor's", "of the dense bf16 peak"], rows)
    if peak is not None:
        print(f"Wanted on a Hopper GPU: {SHARE_BAR} of the floor's share, with {AIM:.0%} of the peak as the aim.\n")
    return more


def benchmark_counts() -> dict[str, float]:
    """Count and print what a training step of the published batch asks of a GPU; no time is measured."""
    say("operations, bytes and FLOPs of a training step, by fake tensors")
    results = measure_counts(COUNTED)
    print(f"## Calls of a training step, {COUNTED.batch_size} videos of {COUNTED.num_frames} frames, bf16\n")
    print_table(["", *COUNT_COLUMNS], [[NAMES[name], *count_cells(results, name)] for name in SUBJECTS])
    return results


def benchmark_growth(plan: Plan) -> dict[str, float]:
    """Measure and print how a training step grows with the number of frames."""
    say(f"steps of {plan.lengths[0]} to {plan.lengths[-1]} frames")
    rows = model.in_own_process(model.measure_growth, plan.setup, plan.lengths, plan.repeated_for)
    print("## A training step of one video by its frames, per_layer\n")
    table = []
    for row in rows:
        seconds = [f"{value:.2f}" for value in (row.floor_seconds, row.seconds, row.checkpointed_seconds)]
        memory = [f"{value:.0f}" for value in (row.memory, row.checkpointed_memory)]
        table.append([str(row.num_frames), *seconds, *memory])
    kept = "with --checkpoint_activations"
    print_table(["frames", "floor, s", "STOP, s", f"{kept}, s", "STOP, MiB", f"{kept}, MiB"], table)
    results = {}
    for row in rows:
        results |= {
            f"growth_floor_seconds.{row.num_frames}": row.floor_seconds,
            f"growth_seconds.{row.num_frames}": row.seconds,
            f"growth_mib.{row.num_frames}": row.memory,
            f"growth_checkpointed_seconds.{row.num_frames}": row.checkpointed_seconds,
            f"growth_checkpointed_mib.{row.num_frames}": row.checkpointed_memory,
        }
    fitted = [row for row in rows if row.num_frames >= FITTED_FROM] or rows
    if len(fitted) == 1:
        fitted = rows
    lengths = [row.num_frames for row in fitted]
    powers = {
        "floor_seconds": model.exponent(lengths, [row.floor_seconds for row in fitted]),
        "seconds": model.exponent(lengths, [row.seconds for row in fitted]),
        "mib": model.exponent(lengths, [row.memory for row in fitted]),
        "checkpointed_mib": model.exponent(lengths, [row.checkpointed_memory for row in fitted]),
    }
    print(
        f"From {lengths[0]} to {lengths[-1]} frames, by least squares: the floor's seconds grow as "
        f"T^{powers['floor_seconds']:.2f}, STOP's as T^{powers['seconds']:.2f}, its memory as T^{powers['mib']:.2f}, "
        f"with --checkpoint_activations as T^{powers['checkpointed_mib']:.2f}. Attention over the whole video takes "
        "time by the square of T, and no memory by it, since its matrix is never kept; all else is the same for "
        "each frame.\n"
    )
    return results | {f"growth_exponent.{name}": power for name, power in powers.items()}


def benchmark_loader(plan: Plan, videos: Path | None, results: dict[str, float]) -> dict[str, float]:
    """Measure and print frames a second of the loader, beside what a step takes."""
    setup = data.LoaderSetup(plan.setup.num_frames, 224, num_workers=2, batch_size=4, num_batches=plan.batches)
    say("the training loader: making, compressing, packing and reading videos")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if videos is None:
            videos = folder / data.ORIGINAL
            data.make_clips(videos, plan.clips, plan.clip_seconds)
        data.prepare(videos, folder)
        speeds = {source: data.frames_per_second(videos, folder, source, setup) for source in data.SOURCES}
    print(f"## The training loader, {setup.num_workers} workers\n")
    texts = {
        data.ORIGINAL: "original videos",
        data.COMPRESSED: "compressed videos (compress_video.py)",
        data.JPEG: "packed frames (pack_frames.py)",
        data.RAW: "packed frames (pack_frames.py --format raw)",
    }
    print_table(["reads", "frames a second"], [[texts[source], f"{speed:.0f}"] for source, speed in speeds.items()])
    frames = plan.setup.batch_size * plan.setup.num_frames
    rows = []
    needs = {f"loader_needed.{name}": frames / results[f"train_step_seconds.{name}"] for name in (ONCE, PER_LAYER)}
    for name in (ONCE, PER_LAYER):
        at_aim = AIM * GPU_PEAKS["NVIDIA H200"] / (results[f"train_step_tflop.{name}"] * 1e12 / frames)
        rows.append([NAMES[name], f"{needs[f'loader_needed.{name}']:.0f}", f"{at_aim:.0f}"])
    print_table(
        ["a training step takes, frames a second", "here", "by arithmetic, at 40% of a Hopper GPU's peak"], rows
    )
    return {f"loader_frames_per_second.{source}": speed for source, speed in speeds.items()} | needs


def benchmark_ranks(plan: Plan) -> dict[str, float]:
    """Measure and print the time and memory of an evaluation's ranks."""
    say(f"ranks of {plan.ranks} pairs")
    small = data.ranks_milliseconds(1000)
    seconds, peak = model.in_own_process(data.large_ranks, plan.ranks)
    print("## Similarity and ranks, both directions, on the CPU\n")
    rows = [
        ["1,000 × 1,000, ranks of a given matrix", f"{small:.1f} ms", ""],
        [f"{plan.ranks:,} × {plan.ranks:,}, from embeddings, in blocks", f"{seconds:.1f} s", f"{peak / 1024:.2f} GiB"],
    ]
    print_table(["", "time", "peak memory of the whole process"], rows)
    return {
        "ranks_milliseconds.1000": small,
        f"ranks_seconds.{plan.ranks}": seconds,
        f"ranks_peak_mib.{plan.ranks}": peak,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit status."""
    arguments = parse_arguments(argv)
    plan = make_plan(arguments)
    start = time.perf_counter()
    results = machine(COUNTED if arguments.count else plan.setup)
    print("# Benchmark\n\n" + ", ".join(f"{name} {value}" for name, value in results.items()) + "\n", flush=True)
    status = 0
    try:
        if plan.methods:
            results |= benchmark_methods(plan)
        elif plan.counts:
            results |= benchmark_counts()
        if not plan.methods and not arguments.count:
            results |= benchmark_model(plan)
            results |= benchmark_growth(plan)
            results |= benchmark_loader(plan, arguments.videos, results)
            results |= benchmark_ranks(plan)
    except UserError as error:
        print(f"benchmark: {error}; what was measured until then is kept", file=sys.stderr)
        status = 1
    results["seconds"] = round(time.perf_counter() - start, 1)
    text = json.dumps(results, indent=2) + "\n"
    write_whole(arguments.output, lambda file: file.write(text.encode()))
    print(f"{results['seconds']:.0f} s; {arguments.output} holds all of it")
    return status


if __name__ == "__main__":
    sys.exit(main())
