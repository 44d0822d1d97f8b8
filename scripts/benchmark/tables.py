"""The tables of docs/speed.md, from what the benchmark wrote."""

import re
from collections.abc import Mapping
from typing import Any

from scripts.benchmark import benchmark
from scripts.benchmark.model import SUBJECTS, TEXT_OVER_PER_LAYER

NAMES = {name: re.sub(r"--\S+ \S+", r"`\g<0>`", title) for name, title in benchmark.NAMES.items()}  # flags as code
RATIOS = {
    "train_step_ratio.once": "training step, `once`",
    "train_step_ratio.per_layer": "training step, `per_layer`",
    "encode_ratio.once": "encoding, `once`",
    "encode_ratio.per_layer": "encoding, `per_layer`",
    "peak_memory_ratio.once": "peak memory of a step, `once`",
    TEXT_OVER_PER_LAYER: "training step, `--text_prompts 8` beside `per_layer`",
}
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
            value = content[f"{what}_{unit}.{name}"]
            cells += [f"{value:.2f}" if unit == "seconds" else f"{value:,.0f}", "" if ratio is None else f"{ratio:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bars(content: Content) -> str:
    """What was reached beside what is wanted; the column of a GPU stays empty until one was measured."""
    lines = ["| ratio | CPU, fp32 | wanted | CUDA GPU, bf16 | wanted |", "|---|---|---|---|---|"]
    for name, title in RATIOS.items():
        cpu, gpu = benchmark.BARS[name]
        lines.append(f"| {title} | {content[name]:.2f} | ≤ {cpu} |  | ≤ {gpu} |")
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
