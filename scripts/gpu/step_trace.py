"""What a GPU does in STOP's training steps: which kernels take longest, how long none runs, what the CPU waits for.

The steps are a run's own: loss, gradient, clipping, AdamW and what is read back of them, on a batch that is copied from
page-locked memory. torch's profiler records them; its trace, a list of events in Chrome's format, is read here.
"""

import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from dataloaders.batches import collate
from dataloaders.items import Item
from dataloaders.samples import Sample
from modules.runtime.compute import Compute
from modules.runtime.precision import choose_precision
from modules.runtime.processes import Processes
from modules.tasks.retrieval import RetrievalTask
from modules.training.step import Step
from modules.training.trainer import TrainSettings
from scripts.benchmark.model import PER_LAYER, Setup, build, make_frames

Event = Mapping[str, Any]

STEPS_NAME = "recorded steps"  # what they stand under in the trace
WARMING_UP, RECORDED, TIMED = 3, 3, 5  # steps
MOST_EXPENSIVE = 10  # kernels
CALLS = ("cuda_runtime", "cuda_driver")  # the trace's categories of what the CPU asks of the GPU
WAIT = "Synchronize"  # part of the names of those in which it waits
WITHOUT_NAME = "outside of any operation"


def make_step(setup: Setup) -> Callable[[], float]:
    """A training step of STOP at its defaults, as a run takes it; each call takes one and returns its loss."""
    device = torch.device(setup.device)
    clip = setup.load_clip()
    model = build(PER_LAYER, clip, setup).to(device).train()
    frames = make_frames(replace(setup, device="cpu"), clip.image_size)
    items = [_make_item(index, video, setup.num_frames) for index, video in enumerate(frames)]
    batch, _ = collate(items)
    keys, step_key = torch.arange(setup.batch_size), torch.arange(1)
    if device.type == "cuda":
        batch, keys, step_key = batch.pin_memory(), keys.pin_memory(), step_key.pin_memory()
    task = RetrievalTask(None, None, mask_same_video=False, batch_size=setup.batch_size, num_workers=0)
    compute = Compute(Processes(0, 1, device), choose_precision(setup.precision, device))
    default = TrainSettings()
    step = Step(
        model, task, compute, default.lr, default.weight_decay, default.max_grad_norm, 1000, default.warmup_proportion
    )

    def take() -> float:
        moved = [key.to(device, non_blocking=True) for key in (keys, step_key)]
        gradient = step.differentiate(batch.to(device), *moved)
        step.update(gradient.outcome)
        return gradient.loss

    return take


def _make_item(index: int, frames: torch.Tensor, num_frames: int) -> Item:
    caption = f"video number {index} of something that moves about"
    sample = Sample(str(index), f"video{index}", Path(f"video{index}.mp4"), (caption,))
    return Item(index=index, sample=sample, caption=caption, frames=frames, num_frames=num_frames)


def record(take: Callable[[], object]) -> tuple[list[Event], float]:
    """The events of `RECORDED` steps on the GPU, and the seconds of a step that nobody records."""
    for _ in range(WARMING_UP):
        take()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(TIMED):
        take()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / TIMED
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        take()  # in which the recording itself gets going
        torch.cuda.synchronize()
        with record_function(STEPS_NAME):
            for _ in range(RECORDED):
                take()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8"))["traceEvents"], seconds


def summarize(events: Iterable[Event], num_steps: int) -> dict[str, Any]:
    """What the GPU did in recorded steps.

    Args:
        events: of a trace; times are in microseconds.
        num_steps: how many stand under `STEPS_NAME`.

    Returns:
        All of a step, on average:

        - ``seconds``, from the first step's beginning to the end of the last kernel; ``busy_seconds``, in which any
          kernel ran; ``idle_share``, of the time in which none did; ``kernels_called``;
        - ``kernels``: those that took most, each with ``name``, ``seconds``, ``calls`` and ``share`` of what all took;
        - ``waits``: how often the CPU waited for the GPU; ``waits_in``: how often in which operation, most first;
        - ``read_back``: copies from the GPU to the CPU.

    Raises:
        ValueError: if the steps or their kernels are not among the events.
    """
    timed = [event for event in events if event.get("ph") == "X"]
    steps = next((e for e in timed if e.get("cat") == "user_annotation" and e["name"] == STEPS_NAME), None)
    if steps is None:
        raise ValueError(f"the trace has no {STEPS_NAME!r}")
    begin, end = steps["ts"], steps["ts"] + steps["dur"]
    # nothing is given to the GPU behind the steps: what begins there was theirs
    kernels = [event for event in timed if event.get("cat") == "kernel" and event["ts"] >= begin]
    if not kernels:
        raise ValueError("the trace has no kernel")
    end = max(end, *(kernel["ts"] + kernel["dur"] for kernel in kernels))
    copies = [event for event in timed if event.get("cat") == "gpu_memcpy" and begin <= event["ts"]]
    calls = [
        event for event in timed if event.get("cat") in CALLS and begin <= event["ts"] < steps["ts"] + steps["dur"]
    ]
    waits = [call for call in calls if WAIT in call["name"]]
    busy = covered((kernel["ts"], kernel["ts"] + kernel["dur"]) for kernel in kernels)
    waits_in = Counter(operation_of(wait, timed) for wait in waits)
    return {
        "seconds": (end - begin) / num_steps / 1e6,
        "busy_seconds": busy / num_steps / 1e6,
        "idle_share": 1 - busy / (end - begin),
        "kernels_called": len(kernels) / num_steps,
        "kernels": most_expensive(kernels, num_steps),
        "waits": len(waits) / num_steps,
        "waits_in": {name: count / num_steps for name, count in waits_in.most_common()},
        "read_back": sum(event["name"].startswith("Memcpy DtoH") for event in copies) / num_steps,
    }


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """How much lies within any of some intervals, which may overlap."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def most_expensive(kernels: Sequence[Event], num_steps: int) -> list[dict[str, Any]]:
    """The kernels that took most, see `summarize`; calls of one name are one."""
    durations: defaultdict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        durations[kernel["name"]].append(kernel["dur"])
    everything = sum(map(sum, durations.values()))
    ranked = sorted(durations.items(), key=lambda item: -sum(item[1]))[:MOST_EXPENSIVE]
    return [
        {
            "name": name,
            "seconds": sum(taken) / num_steps / 1e6,
            "calls": len(taken) / num_steps,
            "share": sum(taken) / everything,
        }
        for name, taken in ranked
    ]


def operation_of(call: Event, timed: Sequence[Event]) -> str:
    """The innermost operation in which the CPU made a call."""
    around = [
        event
        for event in timed
        if event.get("cat") == "cpu_op"
        and event["tid"] == call["tid"]
        and event["ts"] <= call["ts"] <= event["ts"] + event["dur"]
    ]
    return min(around, key=lambda event: event["dur"])["name"] if around else WITHOUT_NAME


def measure(setup: Setup) -> dict[str, Any]:
    """`summarize` of STOP's training steps, with what it says of a step that nobody records.

    Returns:
        Also ``unrecorded_seconds``, and ``unrecorded_idle_share``, of these the part that the kernels of a recorded one
        would not fill: recording makes the CPU slower, and not the GPU.
    """
    take = make_step(setup)
    events, seconds = record(take)
    found = summarize(events, RECORDED)
    idle = max(0.0, 1 - found["busy_seconds"] / seconds)
    return {"unrecorded_seconds": seconds, "unrecorded_idle_share": idle, **found}


def describe(found: Mapping[str, Any], setup: Setup) -> str:
    """What was measured, as Markdown."""
    waits = ", ".join(f"{name} {count:g}" for name, count in found["waits_in"].items())
    lines = [
        f"## A training step of STOP, {setup.batch_size} videos of {setup.num_frames} frames, {setup.precision}",
        "",
        f"{found['unrecorded_seconds']:.4f} s a step; kernels run in {found['busy_seconds']:.4f} s of it, so that the "
        f"GPU idles for {found['unrecorded_idle_share']:.1%}. Recorded, which slows the CPU, a step takes "
        f"{found['seconds']:.4f} s and the GPU idles for {found['idle_share']:.1%}.",
        "",
        f"{found['kernels_called']:,.0f} kernels a step. The CPU waits for the GPU {found['waits']:g} times a step"
        f"{f' ({waits})' if waits else ''}; {found['read_back']:g} copies go from the GPU to the CPU.",
        "",
        "| kernel | ms a step | calls | share of all kernels |",
        "| --- | --- | --- | --- |",
    ]
    for kernel in found["kernels"]:
        name = kernel["name"].replace("|", "\\|")
        cells = [f"`{name[:120]}`", f"{1000 * kernel['seconds']:.2f}", f"{kernel['calls']:g}", f"{kernel['share']:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
