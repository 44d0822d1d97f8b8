"""Copies to a device that nothing waits for."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; on a GPU it arrives before whatever is started behind it.

    From page-locked memory, and not waited for: a copy from other memory, or one that is waited for, lets the device
    finish all that it was given before, and then stand still until it is given more.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
