"""The tables of docs/speed.md, from what the benchmark wrote."""

import re
from collections.abc import Mapping
from typing import Any

from scripts.benchmark import benchmark
from scripts.benchmark.model import (
    FLOOR,
    ONCE,
    ONCE_MERGED,
    PER_LAYER,
    PER_LAYER_MERGED,
    SUBJECTS,
    TEXT_OVER_PER_LAYER,
)

NAMES = {
    name: re.sub(r"--\w+ \w+(,\d+)*", r"`\g<0>`", title) for name, title in benchmark.NAMES.items()
}  # flags as code
WHAT = {"encode": "encoding", "train_step": "training step", "peak_memory": "peak memory of a step"}
FORMS = {
    ONCE: "`once`",
    PER_LAYER: "`per_layer`",
    ONCE_MERGED: "`once`, `--merge_frames 4,8`",
    PER_LAYER_MERGED: "`per_layer`, `--merge_frames 4,8`",
}
RATIOS = {f"{what}_ratio.{form}": f"{title}, {named}" for what, title in WHAT.items() for form, named in FORMS.items()}
RATIOS[TEXT_OVER_PER_LAYER] = "training step, `--text_prompts 8` beside `per_layer`"
GROWTH = {
    "growth_floor_seconds": "floor, s",
    "growth_seconds": "training step, s",
    "growth_mib": "peak memory, MiB",
    "growth_checkpointed_seconds": "step with `--checkpoint_activations`, s",
    "growth_checkpointed_mib": "its peak memory, MiB",
}
LOADER = {
    "original": "original videos",
    "compressed": "compressed videos",
    "packed_jpeg": "packed frames",
    "packed_raw": "packed frames, `--format raw`",
}

Content = Mapping[str, Any]


def speed(content: Content) -> str:
    """Seconds, memory and their ratios, a row a subject."""
    title = f"{content['batch_size']} videos of {content['num_frames']} frames, ViT-B/32"
    lines = [
        f"| {title} | encoding, s | ratio | training step, s | ratio | peak memory of a step, MiB | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in SUBJECTS if f"encode_seconds.{name}" in content):
        cells = [NAMES[name]]
        for what, unit in (("encode", "seconds"), ("train_step", "seconds"), ("peak_memory", "mib")):
            ratio = content.get(f"{what}_ratio.{name}")
            value = content.get(f"{what}_{unit}.{name}")
            form = ".2f" if unit == "seconds" else ",.0f"
            cells += ["" if value is None else format(value, form), "" if ratio is None else f"{ratio:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bars(content: Content, gpu: Content | None = None) -> str:
    """What was reached beside what is wanted; empty where nothing was measured.

    Args:
        content: of a CPU.
        gpu: what `scripts/gpu_check.sh` leaves; None where there was no GPU.
    """
    on_gpu = {} if gpu is None else gpu["parts"].get("benchmark", {}).get("results", {})
    lines = ["| ratio | model FLOPs | CPU, fp32 | wanted | CUDA GPU, bf16 | wanted |", "|---|---|---|---|---|---|"]
    for name, title in RATIOS.items():
        reached = [f"{measured[name]:.2f}" if name in measured else "" for measured in (content, on_gpu)]
        wanted = [benchmark.wanted(name, on_gpu=column) for column in (False, True)]
        cells = [title, flops_ratio(content, name), reached[0], wanted[0], reached[1], wanted[1]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def flops_ratio(content: Content, ratio: str) -> str:
    """What a ratio of seconds would be if every model FLOP took the same time; empty where none is counted."""
    what, _, name = ratio.partition("_ratio.")
    flops = [content.get(f"{what}_tflop.{subject}") for subject in (name, FLOOR)]
    return "" if None in flops else f"{flops[0] / flops[1]:.2f}"


def counts(content: Content) -> str:
    """What a training step asks of a GPU, a row a subject."""
    columns = ["a step of 128 videos of 12 frames, bf16", *benchmark.COUNT_COLUMNS]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in (name for name in SUBJECTS if f"count.operations.{name}" in content):
        lines.append(f"| {' | '.join([NAMES[name], *benchmark.count_cells(content, name)])} |")
    return "\n".join(lines)


def growth(content: Content) -> str:
    """One video, by its frames."""
    lengths = sorted(int(name.split(".")[1]) for name in content if name.startswith("growth_seconds."))
    lines = [
        f"| one video, `per_layer`, by its frames | {' | '.join(map(str, lengths))} |",
        "|---" * (1 + len(lengths)) + "|",
    ]
    for name, title in GROWTH.items():
        digits = ",.0f" if name.endswith("mib") else ".2f"
        cells = [format(content[f"{name}.{length}"], digits) for length in lengths]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def loader(content: Content) -> str:
    """Frames a second of the training loader."""
    lines = ["| the training loader reads, 2 workers | frames a second |", "|---|---|"]
    lines += [f"| {title} | {content[f'loader_frames_per_second.{name}']:,.0f} |" for name, title in LOADER.items()]
    return "\n".join(lines)
