"""Floating-point operations of encoding a video, counted while a model of the toy CLIP's shape does it.

Two a multiplication with addition, of matrix products and convolutions, those of attention and of recurrent layers
among them; elementwise work and reductions have none. Weights are random, which changes no count.
"""

import threading
from functools import cache
from typing import Any

import open_clip
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modules.clip.loader import LoadedCLIP
from modules.model.video_text import VideoTextModel
from modules.program.arguments import Arguments
from modules.program.build import build_model
from preprocess import pretrain_toy_clip

_alone = threading.Lock()  # which kernels are used is set for all threads


def video_gigaflops(arguments: Arguments) -> float:
    """Of encoding one video in evaluation, by the model that a command line names.

    Args:
        arguments: whose method, settings, frames and words count.
    """
    common = arguments.common
    return _video_gigaflops(arguments.method, arguments.method_settings, common.max_frames, common.max_words)


@cache
def _video_gigaflops(method: str, settings: Any, num_frames: int, max_words: int) -> float:
    clip = LoadedCLIP(
        pretrain_toy_clip.build_model().eval().requires_grad_(False),
        pretrain_toy_clip.build_tokenizer(),
        open_clip.OPENAI_DATASET_MEAN,
        open_clip.OPENAI_DATASET_STD,
    )
    with torch.random.fork_rng():  # whoever counts draws nothing
        model = build_model(method, settings, clip, num_frames, max_words, seed=0)
    return round(count_flops(model, num_frames, clip.image_size) / 1e9, 4)


@torch.no_grad()
def count_flops(model: VideoTextModel, num_frames: int, image_size: int) -> int:
    """Of encoding one video of so many frames of image_size × image_size pixels; the model is in fp64 afterwards."""
    # without fast kernels, whose calls are not counted: attention's, and those that an LSTM has in fp32 alone
    model = model.eval().requires_grad_(False).double()
    video = torch.zeros(1, num_frames, 3, image_size, image_size, dtype=torch.uint8)
    video[:, ::2] = 255  # in which something changes
    with _alone, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encode_video(video, torch.tensor([num_frames]))
    return int(counter.get_total_flops())
