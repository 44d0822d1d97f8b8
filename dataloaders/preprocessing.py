"""CLIP's own image preprocessing, for all frames of a clip at once and without the final normalisation."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms


def resize_and_crop(frames: np.ndarray, size: int, place: float = 0.5) -> torch.Tensor:
    """CLIP's own transform: short side to `size` (bicubic, antialiased), then the centre `size` x `size`.

    place: where along the long side to cut, 0 its beginning, 1 its end; CLIP's is 0.5, the centre.

    frames: (n, H, W, 3) uint8, RGB, of any H and W. Returns (n, 3, size, size) uint8: CLIP's mean and
    standard deviation are applied on the device, where a batch is a quarter of the bytes of its float copy. A
    clip whose short side is `size` already is cropped only, so its pixels stay as they were decoded.

    Raises ValueError for any other shape or type.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be (n, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    if 0 in frames.shape[1:3]:
        raise ValueError(f"frames without pixels: {frames.shape}")
    if not len(frames):
        return torch.zeros(0, 3, size, size, dtype=torch.uint8)
    clip = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # (n, 3, H, W)
    clip = transforms.resize(clip, [size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    if place == 0.5:
        return transforms.center_crop(clip, [size, size]).contiguous()
    top, left = (round(place * (side - size)) for side in clip.shape[-2:])
    return transforms.crop(clip, top, left, size, size).contiguous()
