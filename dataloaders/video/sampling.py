"""Which frames of a video a model sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Sampler = Callable[[int, int], np.ndarray]


def sample_frame_indices(
    total: int, num_frames: int, rng: np.random.Generator | None = None, clip: int = 0, num_clips: int = 1
) -> np.ndarray:
    """The frames to read of a clip of `total` frames: (min(total, num_frames),) int64, strictly increasing.

    The clip is divided into T = `num_frames` equal segments [i*total/T, (i+1)*total/T). Without `rng`
    (evaluation) the frame at the middle of each segment; with `rng` (training) one frame of each segment,
    uniformly, as in temporal segment networks (Wang et al., 2016). Of `num_clips` views in time, view `clip`
    takes the middle of the `clip`-th part of each segment. A clip of at most T frames gives all of them,
    unpadded.

    Raises ValueError where either number is below one.
    """
    if total < 1 or num_frames < 1:
        raise ValueError(f"cannot sample {num_frames} of {total} frames")
    if total <= num_frames:
        return np.arange(total)
    segments = np.arange(num_frames + 1)
    if rng is None:
        part = 2 * num_clips * segments[:-1] + 2 * clip + 1  # in units of half a part
        return part * total // (2 * num_clips * num_frames)
    bounds = -(-segments * total // num_frames)  # rounded up: the first whole frame of each segment
    return rng.integers(bounds[:-1], bounds[1:])


@dataclass(frozen=True)
class FrameSampler:
    """`sample_frame_indices` with all that it depends on but the clip's length, as plain values.

    seed: of the draw in training; None for the middle of each segment. clip, num_clips: the view in time.
    """

    seed: int | None = None
    clip: int = 0
    num_clips: int = 1

    def __call__(self, total: int, num_frames: int) -> np.ndarray:
        # The generator is made anew in each call: a decoder that has to start again must get the same frames.
        rng = None if self.seed is None else np.random.default_rng(self.seed)
        return sample_frame_indices(total, num_frames, rng, self.clip, self.num_clips)
