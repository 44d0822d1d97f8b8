"""The long, random trials behind `scripts/soak.sh`, and their table.

    bash scripts/soak.sh [--quick] [--seed N]

Runs are the tests' tiny ones: a few toy videos and a random CLIP of 3×3 patches, on the CPU in fp32.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path[:0] = [str(Path(__file__).resolve().parents[number]) for number in (2, 1)]  # the repository, its tests

import av  # noqa: F401  # before decord, as in tests/helpers/__init__.py
import torch

from dataloaders.bad_videos import SKIPPED
from helpers import launching
from helpers.paths import ROOT
from helpers.runs import checkpoint, first_difference, state_of
from helpers.tiny import TINY_TRAINING, make_tiny_files, retrieval_flags
from modules.runtime.interruption import EXIT_CODE
from modules.runtime.run_folder import INTERRUPTED, METRICS
from soak_videos import measure_growth, soak_mutations

LEAVING_LIMIT = 10.0  # seconds in which a run told to stop has saved and left
GROWTH_LIMIT = 50.0  # MB
MAX_INTERRUPTIONS = 5  # of one run
STEPS_PER_EPOCH = 5
# 50 steps, each with a checkpoint, evaluations between them, and a bad video now and then, read by a worker:
# interruptions hit all of these
INTERRUPTED_RUN = [
    *(*TINY_TRAINING, "--epochs", "10", "--batch_size", "4", "--save_steps", "1"),
    *("--num_thread_reader", "1", "--max_bad_fraction", "1"),
]
COMPARED_RUN = [*TINY_TRAINING, "--epochs", "4", "--batch_size", "4", "--max_bad_fraction", "1"]
KINDS = ("kill -9", "kill -9 of one of two processes", "SIGTERM", "SIGINT")


@dataclass
class Row:
    """A line of the table.

    Attributes:
        what: was tried. tried, held: how often, and how often it went well.
        note: further figures.
    """

    what: str
    tried: int
    held: int
    note: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def main() -> int:
    """Run all trials, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--seed", type=int, default=None, help="of all random choices (default: from the clock)")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "soak" / "soak.json")
    args = parser.parse_args()
    seed = int(time.time()) if args.seed is None else args.seed
    share = 10 if args.quick else 1
    print(f"seed {seed}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        flags = make_inputs(work)
        rows = [
            *try_interruptions(flags, work, 40 // share, random.Random(seed)),
            try_mutations(work, 500 // share, seed),
            try_decodes(work, 20_000 // share, seed),
            *compare_processes(flags, work),
        ]
    minutes = (time.monotonic() - start) / 60
    print(f"\n{table(rows)}\n\nseed {seed}, {minutes:.1f} minutes, torch {torch.__version__}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"seed": seed, "minutes": minutes, "rows": [vars(row) for row in rows]}
    args.output.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if all(row.held == row.tried for row in rows) else 1


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| tried | times | held | |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {row.what} | {row.tried:,} | {row.held:,} | {row.note} |" for row in rows])


def make_inputs(folder: Path) -> list[str]:
    """Flags for a few toy videos, of which one is no video, and a tiny random CLIP."""
    make_tiny_files(folder)
    (folder / "dataset" / "videos" / "video3.mp4").write_bytes(b"no video")  # of the training list
    return retrieval_flags(folder)


def start(flags: list[str], output_dir: Path, processes: int) -> subprocess.Popen:
    """Start a training."""
    launcher = launching.under_torchrun(processes) if processes > 1 else []
    words = [*launcher, launching.RETRIEVAL, *flags, "--output_dir", output_dir]
    with (output_dir.parent / f"{output_dir.name}.txt").open("ab") as output:
        return launching.start(*words, environment=launching.ENVIRONMENT, stdout=output, stderr=output)


def finish(flags: list[str], output_dir: Path, processes: int) -> float:
    """Run a training to its end; its seconds.

    Raises:
        RuntimeError: if it fails.
    """
    begin = time.monotonic()
    if status := start(flags, output_dir, processes).wait(timeout=300):
        output = (output_dir.parent / f"{output_dir.name}.txt").read_text()
        raise RuntimeError(f"a run that nothing interrupted ended with {status}:\n{output[-3000:]}")
    return time.monotonic() - begin


def try_interruptions(flags: list[str], work: Path, count: int, draw: random.Random) -> list[Row]:
    """Interrupt runs at random moments and continue them by the same command, until they end by themselves.

    A run may be interrupted several times. It has survived if its tensors and its log are those of an uninterrupted
    run, to the bit; all interruptions of one that has not count as not survived.
    """
    command = [*flags, *INTERRUPTED_RUN]
    references = {processes: work / f"reference{processes}" for processes in (1, 2)}
    seconds = {processes: finish(command, folder, processes) for processes, folder in references.items()}
    tried, survived, moments, slowest, left_late = Counter(), Counter(), Counter(), 0.0, 0
    chain = 0
    while sum(tried.values()) < count:
        chain += 1
        processes = 2 if chain % 3 == 0 else 1
        folder, kinds = work / f"chain{chain}", []
        while len(kinds) < MAX_INTERRUPTIONS and sum(tried.values()) + len(kinds) < count:
            before = read_log(folder)
            process = start(command, folder, processes)
            kind = KINDS[1] if processes == 2 and draw.random() < 0.7 else draw.choice((KINDS[0], *KINDS[2:]))
            try:
                # the later of two draws: a good part of a run is the start of Python and torch
                process.wait(max(draw.uniform(0.0, seconds[processes]) for _ in range(2)))
                break  # it came to its end
            except subprocess.TimeoutExpired:
                moment = moment_of(folder, before)
            kind, ending = interrupt(process, kind, folder, draw)
            kinds.append(kind)
            moments[moment] += 1
            if ending is not None:
                slowest = max(slowest, ending)
                left_late += ending > LEAVING_LIMIT
            print(f"run {chain}: {kind}, in {moment}", flush=True)
        try:
            finish(command, folder, processes)
            problem = difference(folder, references[processes])
        except RuntimeError as error:
            problem = str(error)
        print(f"run {chain}: {'as if uninterrupted' if problem is None else problem}", flush=True)
        tried.update(kinds)
        survived.update(kinds if problem is None else [])
        shutil.rmtree(folder)
    where = ", ".join(f"{number} in {moment}" for moment, number in moments.most_common())
    rows = [Row(f"training: {kind}", tried[kind], survived[kind]) for kind in KINDS if tried[kind]]
    told = sum(tried[kind] for kind in KINDS[2:])
    rows[0].note = f"of all {sum(moments.values())}: {where}"
    rows.append(
        Row(
            f"saved and left within {LEAVING_LIMIT:.0f} s of a signal",
            told,
            told - left_late,
            f"slowest {slowest:.1f} s",
            {"slowest_seconds": slowest},
        )
    )
    return rows


def read_log(folder: Path) -> str:
    """What a run has logged, over all of its starts."""
    log = folder / "log.txt"
    return log.read_text(encoding="utf-8") if log.exists() else ""


def moment_of(folder: Path, before: str) -> str:
    """What a run seems to be doing, from its log beyond what was there when it was started."""
    lines = read_log(folder)[len(before) :].splitlines()
    steps = [re.search(r" epoch \d+/\d+ step (\d+)/", line) for line in lines]
    if not any(steps):
        return "the start"
    if list(folder.glob(".*.partial")):
        return "the writing of a file"
    return "an evaluation" if steps[-1] and int(steps[-1][1]) % STEPS_PER_EPOCH == 0 else "a step"


def interrupt(process: subprocess.Popen, kind: str, folder: Path, draw: random.Random) -> tuple[str, float | None]:
    """Interrupt a run, and wait until it is gone.

    Returns:
        The kind that it became: a launcher without processes yet is killed itself, and its processes end with it. For a
        run that was told to stop, also the seconds it took to leave; infinite if it did not leave as it should.
    """
    ranks = children_of(process.pid)
    if kind.startswith("kill -9"):
        one_rank = kind == KINDS[1] and ranks
        os.kill(draw.choice(ranks) if one_rank else process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        return (KINDS[1] if one_rank else KINDS[0]), None
    begin = time.monotonic()
    # before the program has come to listen, Python's own handlers end it
    listening = all(map(handles_signals, ranks or [process.pid]))
    process.send_signal(getattr(signal, kind))
    status = process.wait(timeout=60)
    seconds = time.monotonic() - begin
    ended = status == 0  # by itself, at that moment
    # torchrun has codes of its own: what it hides is in the folder
    told = (folder / INTERRUPTED).exists() if ranks else status == EXIT_CODE
    return kind, seconds if told or ended or not listening else float("inf")


def handles_signals(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return False
    caught = int(re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def children_of(pid: int) -> list[int]:
    """The processes that torchrun started for a run, by their command."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            command = Path(f"/proc/{child}/cmdline")
            if command.exists() and b"main_task" in command.read_bytes():
                found.append(int(child))
    return found


def difference(folder: Path, reference: Path) -> str | None:
    """What differs between two finished runs, seconds apart; None if nothing does."""
    for name in ("last.pt", "best.pt"):
        if place := first_difference(*(state_of(path, name) for path in (folder, reference))):
            return f"{name} differs at {place}"
    for name in (METRICS, SKIPPED):
        if (folder / name).read_bytes() != (reference / name).read_bytes():
            return f"{name} differs"
    left = [path.name for path in (folder / INTERRUPTED, *folder.glob(".*.partial")) if path.exists()]
    return f"{', '.join(left)} left behind" if left else None


def try_mutations(work: Path, count: int, seed: int) -> Row:
    """Read videos whose bytes were changed; see `soak_videos`."""
    counts = soak_mutations(count, seed, work / "mutations")
    for name, why in (*counts.uncontained, *counts.wrongly_good):
        print(f"{name}: {why}", flush=True)
    failed = {name for name, _ in (*counts.uncontained, *counts.wrongly_good)}
    note = (
        f"{counts.bad} refused, {counts.good} good to a strict decoder as well; of their decoders {counts.crashed} "
        f"crashed and {counts.hung} hung"
    )
    return Row(
        "videos with flipped, cut or spliced bytes", counts.tried, counts.tried - len(failed), note, vars(counts)
    )


def try_decodes(work: Path, count: int, seed: int) -> Row:
    """Read many videos in one worker; see `soak_videos`."""
    growth = measure_growth(count, seed, work / "decodes")
    grown = growth.worker_growth_mb + growth.child_growth_mb
    held = growth.decodes if grown <= GROWTH_LIMIT else 0
    return Row("decodes in one worker, grown by at most 50 MB", growth.decodes, held, f"{grown:.1f} MB", vars(growth))


def compare_processes(flags: list[str], work: Path) -> list[Row]:
    """The same training on 1, 2 and 4 processes: losses in fp32, weights in fp64."""
    found: dict[str, list[float]] = {"fp32": [], "fp64": []}
    for precision, differences in found.items():
        folders = {processes: work / f"{precision}_{processes}" for processes in (1, 2, 4)}
        for processes, folder in folders.items():
            finish([*flags, *COMPARED_RUN, "--precision", precision], folder, processes)
        measure = loss_difference if precision == "fp32" else weight_difference
        differences += [measure(folders[processes], folders[1]) for processes in (2, 4)]
        print(f"{precision}: 2 and 4 processes differ from one by {differences}", flush=True)
    return [
        Row(
            "2 and 4 processes against one, losses in fp32 within 1e-4",
            2,
            sum(value < 1e-4 for value in found["fp32"]),
            f"largest relative difference {max(found['fp32']):.1e}",
            {"difference": found["fp32"]},
        ),
        Row(
            "2 and 4 processes against one, final weights in fp64 within 1e-8",
            2,
            sum(value < 1e-8 for value in found["fp64"]),
            f"largest difference {max(found['fp64']):.1e}",
            {"difference": found["fp64"]},
        ),
    ]


def loss_difference(folder: Path, reference: Path) -> float:
    """Largest relative difference of a loss; infinite where the steps differ."""
    ours, theirs = (
        {entry["step"]: entry["loss"] for entry in map(json.loads, (path / METRICS).open()) if "loss" in entry}
        for path in (folder, reference)
    )
    if ours.keys() != theirs.keys():
        return float("inf")
    return max(abs(ours[step] - theirs[step]) / abs(theirs[step]) for step in theirs)


def weight_difference(folder: Path, reference: Path) -> float:
    """Largest difference of a weight."""
    ours, theirs = (checkpoint(path)["model"] for path in (folder, reference))
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


if __name__ == "__main__":
    sys.exit(main())
