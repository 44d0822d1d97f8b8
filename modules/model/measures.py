"""Measures: means over what a batch holds, worth a line of the log, such as the tokens of a gap.

A prompting hands on totals, which add up over batches and processes; the mean is taken once, of all of them. So it is
the same however videos are shared out, to rounding, and padding has no part in it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

Measures = Mapping[str, Tensor]

WORDS = {
    "tokens_per_gap": "temporal tokens between two frames, mean",
    "gaps_without_tokens": "share of the gaps that have none, 0 to 1",
    "frame_variation": "W^t, how much changes from frame to frame, mean, 0 to 1",
    "clipped_steps": "share of the training steps whose gradient was clipped, 0 to 1",
}


def total(values: Tensor, counted: Tensor) -> Tensor:
    """What `values` add up to, and of how many: (2,) on their device, float64 where it has that; no gradient.

    Args:
        values: of any number type, or bool.
        counted: bool, which of them count; broadcast over leading axes.
    """
    dtype = number_type(values.device)
    counted = counted.expand_as(values)
    values = torch.where(counted, values.detach().to(dtype), 0.0)
    return torch.stack([values.sum(), counted.sum().to(dtype)])


def number_type(device: torch.device) -> torch.dtype:
    """The most precise type of numbers that a device computes in."""
    return torch.float32 if device.type == "mps" else torch.float64


def add_up(one: Measures, other: Measures) -> dict[str, Tensor]:
    """The totals of two batches together; what only one of them has counts as it is."""
    return {**one, **other, **{name: one[name] + other[name] for name in one.keys() & other.keys()}}


def numbers(measures: Measures) -> dict[str, list[float]]:
    """The totals as numbers, which other processes can be told; waits for the device."""
    return totals(measures, torch.cat(list(measures.values())).tolist()) if measures else {}


def totals(names: Iterable[str], found: Sequence[float]) -> dict[str, list[float]]:
    """Totals by name, from the totals of all names one behind the other."""
    return {name: list(found[2 * place : 2 * place + 2]) for place, name in enumerate(names)}


def means(shares: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """The means of what all processes hold together.

    Args:
        shares: the `numbers` of each process; one that had no batch has none.

    Returns:
        A number a name; a mean of nothing (no video has a gap) is left out.
    """
    parts: dict[str, list[Sequence[float]]] = {}
    for share in shares:
        for name, part in share.items():
            parts.setdefault(name, []).append(part)
    sums = {name: [math.fsum(column) for column in zip(*held, strict=True)] for name, held in parts.items()}
    return {name: value / count for name, (value, count) in sums.items() if count}


def explain(legend: str, names: Iterable[str]) -> str:
    """A legend with what the measures among some names mean behind it."""
    return "; ".join([legend, *(f"{name}: {WORDS[name]}" for name in names if name in WORDS)])
