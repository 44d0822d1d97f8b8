"""CLIP's own image preprocessing, for all frames of a clip at once and without the final normalisation."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

# A long side of so many short ones is not enlarged as a whole: of 3×1000 pixels that would be 224×74667.
EXTREME_ASPECT = 16


def resize_and_crop(frames: np.ndarray, size: int, place: float = 0.5) -> torch.Tensor:
    """CLIP's own transform: short side to `size` (bicubic, antialiased), then the centre `size` x `size`.

    place: where along the long side to cut, 0 its beginning, 1 its end; CLIP's is 0.5, the centre.

    frames: (n, H, W, 3) uint8, RGB, of any H and W. Returns (n, 3, size, size) uint8: CLIP's mean and
    standard deviation are applied on the device, where a batch is a quarter of the bytes of its float copy. A
    clip whose short side is `size` already is cropped only, so its pixels stay as they were decoded. Of extreme
    shapes only what is cut out is resized, with the same result within two grey levels.

    Raises ValueError for any other shape or type.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be (n, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    if 0 in frames.shape[1:3]:
        raise ValueError(f"frames without pixels: {frames.shape}")
    if not len(frames):
        return torch.zeros(0, 3, size, size, dtype=torch.uint8)
    short, long = sorted(frames.shape[1:3])
    if short == size:
        return _crop(frames, size, place)
    if long > EXTREME_ASPECT * short:
        return _resize_part(frames, size, place)
    clip = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # (n, 3, H, W)
    clip = transforms.resize(clip, [size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    if place == 0.5:
        return transforms.center_crop(clip, [size, size]).contiguous()
    top, left = (round(place * (side - size)) for side in clip.shape[-2:])
    return transforms.crop(clip, top, left, size, size).contiguous()


def _crop(frames: np.ndarray, size: int, place: float) -> torch.Tensor:
    """What `resize_and_crop` returns where nothing is resized.

    OpenCV separates the channels of frames of 298×224 pixels in 23 µs each, torch in 65 µs.
    """
    top, left = (round(place * (side - size)) for side in frames.shape[1:3])
    channels = np.empty((len(frames), 3, size, size), dtype=np.uint8)
    for frame, separated in zip(frames[:, top : top + size, left : left + size], channels, strict=True):
        cv2.split(frame, list(separated))
    return torch.from_numpy(channels)


def _resize_part(frames: np.ndarray, size: int, place: float) -> torch.Tensor:
    """What `resize_and_crop` returns, by Pillow, which can resize a part of an image."""
    height, width = frames.shape[1:3]
    short = min(height, width)
    rows, top, bottom = _seen(height, int(size * height / short), size, place)  # torchvision's rounding
    columns, left, right = _seen(width, int(size * width / short), size, place)
    parts = []
    for frame in frames[:, rows, columns]:
        # In two steps: Pillow chooses their order by the shape, and each rounds; CLIP's own is this one.
        image = Image.fromarray(np.ascontiguousarray(frame))
        image = image.resize((size, image.height), Image.Resampling.BICUBIC, (left, 0, right, image.height))
        image = image.resize((size, size), Image.Resampling.BICUBIC, (0, top, size, bottom))
        parts.append(np.asarray(image))
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).contiguous()  # (n, 3, size, size)


def _seen(side: int, resized: int, size: int, place: float) -> tuple[slice, float, float]:
    """Of a side of a frame, the pixels that the cut-out `size` of its `resized` ones are made from.

    Returns them, and where among them the cut begins and ends.
    """
    scale = side / resized
    start = round(place * (resized - size)) * scale
    reach = 2 * max(1.0, scale) + 1  # bicubic: two pixels to either side, of the larger grid
    first, last = max(0, math.floor(start - reach)), min(side, math.ceil(start + size * scale + reach))
    return slice(first, last), start - first, start + size * scale - first
