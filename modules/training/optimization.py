"""AdamW and its schedule, as STOP's published retrieval numbers were trained."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from modules.model.video_text import Trained

BETAS = (0.9, 0.98)
EPS = 1e-6


def build_optimizer(parameters: Iterable[Trained], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over exactly the parameters given.

    Args:
        parameters: what trains, and how.
        lr: peak learning rate of factor 1.
        weight_decay: for the parameters that decay.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter, rate, decays in parameters:
        groups.setdefault((rate, decays), []).append(parameter)
    settings = [
        {"params": members, "lr": lr * rate, "weight_decay": weight_decay if decays else 0.0}
        for (rate, decays), members in groups.items()
    ]
    return torch.optim.AdamW(settings, betas=BETAS, eps=EPS, fused=True)


def warmup_cosine(step: int, total_steps: int, warmup_share: float) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine from 1 to 0 over what is left.

    Args:
        step: optimiser steps done before this one, 0 to total_steps − 1.
        total_steps: of the whole training.
        warmup_share: share of the steps that warm up.
    """
    warmup = int(total_steps * warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def build_scheduler(optimizer: torch.optim.Optimizer, total_steps: int, warmup_share: float):
    """The schedule of `warmup_cosine`, a step of it for each of the optimiser's."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, total_steps, warmup_share))
