"""Everything worth measuring on a machine with a GPU, in one command of a few minutes, without a network.

bash scripts/gpu_check.sh [--minutes M] [--batch_size VIDEOS] [--output FILE]

Parts, each in a process of its own with a limit of time: whatever becomes of one, the others are run and what was found
is kept, in a JSON file and, as text, in one beside it. Parts for which no time is left are left out, and said to be.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "torchvision", "open_clip", "numpy", "safetensors", "av", "cv2", "PIL", "tqdm", "tensorboard")
NEEDED_BY_TESTS = ("pytest", "xdist")
SHORTEST = 20.0  # seconds, in less of which no part gets anywhere
KILLING = 3.0  # seconds in which a process that is killed is gone, unless its GPU hangs
ENDING = 2 + KILLING  # seconds for what comes behind the last part
TESTS = ROOT / "tests" / "gpu"


@dataclass(frozen=True)
class Part:
    """Something that is measured.

    Attributes:
        name: of it.
        command: what runs it, to which the file for its results is added.
        seconds: that it may take.
        read: its results, of that file.
    """

    name: str
    command: list[str]
    seconds: float
    read: Callable[[Path], dict[str, Any]]


@dataclass
class Report:
    """What was found, which is on the disk after every part.

    Attributes:
        output: the JSON file; the text has its name and ``.txt``.
        content: of the JSON. text: of the text, in pieces.
    """

    output: Path
    content: dict[str, Any]
    text: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Add to the text, and show it."""
        self.text.append(text + "\n")
        print(text, flush=True)

    def save(self) -> None:
        """Write both files."""
        both = ((self.output, json.dumps(self.content, indent=2) + "\n"), (self.text_file, "".join(self.text)))
        for path, text in both:
            write_whole(path, lambda file, text=text: file.write(text.encode()))

    @property
    def text_file(self) -> Path:
        """Beside the JSON."""
        return self.output.with_suffix(".txt")


def make_parts(python: str, batch_size: int) -> list[Part]:
    """All parts in their order: first what takes seconds, last what may take longest."""
    measure = [python, str(ROOT / "scripts" / "gpu" / "parts.py")]

    def measuring(name: str, seconds: float) -> Part:
        command = [*measure, name, "--batch_size", str(batch_size), "--results"]
        return Part(name, command, seconds, lambda path: json.loads(path.read_text(encoding="utf-8")))

    def testing(name: str, seconds: float) -> Part:
        # in this process alone, whatever the suite's own options are
        command = [python, "-m", "pytest", str(TESTS / f"test_gpu_{name}.py"), "-o", "addopts=", "-v", "-rs"]
        return Part(f"tests_{name}", [*command, "-p", "no:cacheprovider", "--junitxml"], seconds, read_junit)

    return [
        testing("steps", 90),
        testing("runs", 150),
        measuring("benchmark", 210),
        measuring("trace", 90),
        testing("methods", 90),
        testing("compile", 150),
        measuring("compiled", 240),
    ]


def read_junit(path: Path) -> dict[str, Any]:
    """How many tests passed, were skipped and failed, and what the last ones say; of pytest's ``--junitxml``."""
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    skipped = sum(case.find("skipped") is not None for case in cases)
    failed = {
        case.get("name"): (end.get("message") or "")[:500]
        for case in cases
        for end in case
        if end.tag in ("failure", "error")
    }
    return {
        "passed": len(cases) - skipped - len(failed),
        "skipped": skipped,
        "failed": failed,
        "seconds_of": {case.get("name"): round(float(case.get("time", 0)), 1) for case in cases},
    }


def run_part(part: Part, seconds: float, folder: Path) -> tuple[dict[str, Any], str]:
    """Run a part to its end, or end it and all that it started.

    Args:
        seconds: that it may take.
        folder: for what it leaves.

    Returns:
        ``outcome`` (done, failed or timed out), ``seconds``, ``exit_status`` and, as far as there are any, ``results``;
        and what it printed.
    """
    results, printed = folder / f"{part.name}.results", folder / f"{part.name}.txt"
    start = time.monotonic()
    with printed.open("wb") as file:
        process = subprocess.Popen(
            [*part.command, str(results)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            outcome = "done" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            outcome = "timed out"
        finally:  # also what it has left running
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILLING)
    found = {"outcome": outcome, "seconds": round(time.monotonic() - start, 1), "exit_status": process.poll()}
    if results.exists():
        try:
            found["results"] = part.read(results)
        except (ValueError, ElementTree.ParseError) as error:
            found["unreadable"] = str(error)
    return found, printed.read_text(encoding="utf-8", errors="replace")


def run_parts(parts: Sequence[Part], report: Report, deadline: float) -> bool:
    """Run parts until a time, by `time.monotonic`, and report each.

    Returns:
        Whether all that were run were done.
    """
    found: dict[str, Any] = report.content.setdefault("parts", {})
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            left = deadline - time.monotonic()
            report.say(f"\n# {part.name}\n")
            if left < SHORTEST:
                found[part.name] = {"outcome": "skipped", "why": "the time was up"}
                report.say("skipped: the time was up; more is given with --minutes")
            else:
                found[part.name], printed = run_part(part, min(part.seconds, left), Path(folder))
                report.say(f"{printed.rstrip()}\n\n{describe(found[part.name])}".lstrip())
            report.save()
    return all(part["outcome"] in ("done", "skipped") for part in found.values())


def describe(found: Mapping[str, Any]) -> str:
    """How a part ended, in a line."""
    kept = "" if found["outcome"] == "done" or "results" not in found else "; what it had found until then is kept"
    return f"{found['outcome']} after {found['seconds']:.0f} s (exit status {found['exit_status']}){kept}"


def find_missing() -> list[str]:
    """What this Python cannot import and some part needs, each with the reason."""
    missing = []
    for name in (*NEEDED, *NEEDED_BY_TESTS):
        try:
            importlib.import_module(name)
        except ImportError as error:  # also of what it needs itself
            missing.append(f"{name} ({error})")
    return missing


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="that all of it may take (default: 9)")
    parser.add_argument("--batch_size", type=int, default=128, help="videos a step, of what is measured (default: 128)")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_check.json"), help="default: runs/gpu_check.json")
    arguments = parser.parse_args(argv)
    if arguments.minutes <= 0:
        parser.error(f"--minutes must be above 0, found {arguments.minutes}")
    if arguments.batch_size < 1:
        parser.error(f"--batch_size must be at least 1, found {arguments.batch_size}")
    if arguments.output.suffix == ".txt":
        parser.error(
            f"--output {arguments.output}: the JSON file, beside which the text goes into one that ends in .txt"
        )
    return arguments


def describe_machine() -> dict[str, Any]:
    """The GPU and what runs on it."""
    import torch

    from modules.runtime.run_folder import cpu_name, git_commit

    gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": gpu.name,
        "gpus": torch.cuda.device_count(),
        "compute_capability": f"{gpu.major}.{gpu.minor}",
        "gpu_memory_gib": round(gpu.total_memory / 2**30, 1),
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "git_commit": git_commit() or "unknown",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Check, and return the exit status: 0 if everything that was run was done."""
    deadline = time.monotonic() - ENDING
    arguments = parse_arguments(argv)
    deadline += 60 * arguments.minutes
    if missing := find_missing():
        print(
            f"gpu_check: {sys.executable} cannot import {', '.join(missing)}: install requirements.txt (bash "
            "scripts/setup.sh makes .venv), or name a Python that has it all (PYTHON=python3.12 bash "
            "scripts/gpu_check.sh)",
            file=sys.stderr,
        )
        return 1
    import torch

    if not torch.cuda.is_available():
        print(
            f"gpu_check: torch {torch.__version__} of {sys.executable} finds no CUDA GPU here (nvidia-smi shows those "
            "of the machine): there is nothing to check. What a training step asks of a GPU is counted without one by "
            "bash scripts/benchmark.sh --count",
            file=sys.stderr,
        )
        return 1
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    report = Report(arguments.output, {"machine": describe_machine()})
    report.say("# GPU check\n\n" + ", ".join(f"{name} {value}" for name, value in report.content["machine"].items()))
    all_done = run_parts(make_parts(sys.executable, arguments.batch_size), report, deadline)
    report.content["seconds"] = round(time.monotonic() - start, 1)
    ends = "\n".join(f"{name}: {found['outcome']}" for name, found in report.content["parts"].items())
    report.say(f"\n# All parts\n\n{ends}\n\n{report.content['seconds']:.0f} s; {report.output} and {report.text_file}")
    report.save()
    return 0 if all_done else 1


if __name__ == "__main__":
    sys.exit(main())
