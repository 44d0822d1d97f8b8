"""Every method at a size that fits the tiny CLIP, which has three layers, four frames a video and twelve words."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from helpers.tiny import make_tiny_clip, random_videos
from modules.clip.loader import LoadedCLIP
from modules.methods import METHODS
from modules.model.video_text import VideoTextModel
from modules.program.build import build_model
from modules.training.optimization import build_optimizer

# what is told apart here: a method, or one of its forms → the method and the settings that make it small
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "stop": (
        "stop",
        {
            "num_regions": 3,
            "spatial_reduce": 6,
            "spatial_width": 8,
            "spatial_hidden": 12,
            "temporal_width": 8,
        },
    ),
    "stop_own": (
        "stop",
        {
            "num_regions": 3,
            "prompters": "own",
            "text_prompts": 2,
            "side_adapters": 4,
            "spatial_width": 8,
            "spatial_hidden": 12,
            "temporal_width": 8,
        },
    ),
    "stop_controls": (
        "stop",
        {
            "num_regions": 3,
            "selection": "random",
            "token_count": "constant",
            "spatial_width": 8,
            "spatial_hidden": 12,
            "temporal_width": 8,
        },
    ),
    "stop_without_intra": ("stop", {"ablate": "intra", "temporal_width": 8}),
    "stop_without_inter": (
        "stop",
        {"ablate": "inter", "num_regions": 3, "spatial_width": 8, "spatial_hidden": 12, "time_embedding": True},
    ),
    "stop_without_both": ("stop", {"ablate": "both", "text_prompts": 2, "side_adapters": 4}),
    "zero_shot": ("zero_shot", {}),
    "meanP": ("clip4clip", {}),
    "seqLSTM": ("clip4clip", {"sim_header": "seqLSTM"}),
    "seqTransf": ("clip4clip", {"sim_header": "seqTransf"}),
    "tightTransf": ("clip4clip", {"sim_header": "tightTransf"}),
    "vop": ("vop", {"num_prompts": 4, "num_context_prompts": 2, "num_joint_layers": 1}),
    "bias": ("bias", {}),
    "adapter_attn": ("adapter_attn", {"adapter_width": 4}),
    "adapter_ffn": ("adapter_ffn", {"adapter_width": 4}),
    "lora": ("lora", {"lora_rank": 2}),
    "visual_text_adapter": ("visual_text_adapter", {"adapter_width": 8}),
    "video_text_adapter": ("video_text_adapter", {"adapter_width": 8}),
    "unipt": ("unipt", {}),
    "tempme": ("tempme", {"lora_rank": 2}),
    "vpt": ("vpt", {"num_prompts": 3}),
    "vpt_frames": ("vpt", {"num_prompts": 1, "frame_prompts": 2}),
    "vpt_text": ("vpt", {"num_prompts": 3, "text_prompts": 2}),
    "efficient_prompt": ("efficient_prompt", {"prefix_prompts": 2, "postfix_prompts": 2}),
    "dgl_linear": ("dgl_linear", {"num_prompts": 2, "global_prompts": 3}),
    "dgl_transformer": (
        "dgl_transformer",
        {"num_prompts": 2, "prefix_prompts": 3, "postfix_prompts": 1, "global_prompts": 3},
    ),
    "upt": ("upt", {"num_prompts": 2, "prefix_prompts": 3, "postfix_prompts": 1}),
    "stpn": ("stpn", {"num_prompts": 3, "predictor_width": 8}),
    "stpn_mixer": ("stpn", {"num_prompts": 3, "predictor_width": 8, "predictor": "mixer"}),
    "stpn_deep": ("stpn", {"num_prompts": 3, "predictor_width": 8, "depth": "deep"}),
}


def default_form(method: str) -> str:
    """The first form of a method, which has its defaults, for what holds at these.

    Raises:
        LookupError: if there is none.
    """
    for form, (of, _) in FORMS.items():
        if of == method:
            return form
    raise LookupError(f"--method {method} has no form in FORMS of tests/helpers/methods.py: add one of its defaults")


DEFAULT_FORMS = {method: default_form(method) for method in METHODS}
# a method and its settings → how much trains at ViT-B/32 with so many frames, as the papers count it
COUNTED_FRAMES, COUNTED_WORDS = 12, 32
COUNTS = [
    ("zero_shot", {}, 0),
    ("clip4clip", {}, 123_540_993),
    ("vop", {}, 14_269_440 + COUNTED_FRAMES * 768),  # the paper leaves out the frames' embedding
    ("bias", {}, 171_008),
    ("adapter_attn", {}, 1_982_976),
    ("adapter_ffn", {}, 1_982_976),
    ("lora", {}, 491_520),
    ("visual_text_adapter", {}, 11_821_056),
    ("video_text_adapter", {}, 11_945_472),
    ("unipt", {}, 9_584_642),
    ("tempme", {}, 507_648),
    ("vpt", {}, 184_320),
    ("vpt", {"num_prompts": 12, "text_prompts": 12}, 184_320),  # the other reading of the published number
    ("efficient_prompt", {}, 6_350_336),
    ("dgl_linear", {}, 827_392),
    ("dgl_transformer", {}, 9_575_168),
    ("upt", {}, 9_572_096),
    ("stpn", {}, 317_568),
    ("stpn", {"predictor": "mixer"}, 151_501),
    ("stpn", {"depth": "deep"}, 317_568 + 11 * 74_496),
    ("stpn", {"predictor": "mixer", "depth": "deep"}, 151_501 + 11 * 74_496),
    ("stop", {}, 2_066_756),
    ("stop", {"prompters": "own"}, 6_826_608),
]


def flags_of(form: str, **more: Any) -> list[str]:
    """The flags of a form: ``--method`` and its settings."""
    method, settings = FORMS[form]
    flags = ["--method", method]
    for name, value in (settings | more).items():
        flags += [f"--{name}", str(value)] if not isinstance(value, bool) else [f"--{name}"] * value
    return flags


def make_model(
    form: str, clip: LoadedCLIP | None = None, num_frames: int = 4, max_words: int = 12, **more: Any
) -> VideoTextModel:
    """The model of a form around the tiny CLIP."""
    method, settings = FORMS[form]
    cls = METHODS[method].settings
    known = {field.name for field in dataclasses.fields(cls)}
    settings = {name: value for name, value in (settings | more).items() if name in known}
    return build_model(method, cls(**settings), clip or make_tiny_clip(), num_frames, max_words, 0)


def disturb(model: VideoTextModel, scale: float = 0.1) -> VideoTextModel:
    """Give everything that trains other values, as training would: nothing is zero any more."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += scale * noise.to(parameter)
    return model


def train(model: VideoTextModel, num_frames: int = 4, num_steps: int = 2) -> VideoTextModel:
    """Some training steps of three pairs, at a rate at which everything that has a gradient, or decays, changes."""
    optimizer = build_optimizer(model.how_parameters_train(), lr=0.1, weight_decay=0.2)
    videos, lengths = random_videos(3, num_frames), torch.tensor([num_frames, num_frames - 1, num_frames])
    model.train()
    for step in range(num_steps):
        keys = torch.arange(3) + step
        text = model.encode_text(["a red circle", "moving", "to the left side"], keys)
        video = model.encode_video(videos, lengths, keys)["embedding"]
        optimizer.zero_grad()
        F.cross_entropy(model.similarity(text, video, keys), torch.arange(3)).backward()
        optimizer.step()
    return model


def changed_in_clip(build: Callable[[LoadedCLIP], VideoTextModel]) -> set[str]:
    """Which of CLIP's tensors are no longer there, or hold other bits, after training what `build` makes of it.

    They are told by what they are and not by their names, which a parametrization changes.
    """
    clip = make_tiny_clip()
    tensors = {**dict(clip.model.named_parameters()), **dict(clip.model.named_buffers())}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    train(build(clip))
    left = {id(tensor) for tensor in (*clip.model.parameters(), *clip.model.buffers())}
    return {name for name, tensor in tensors.items() if id(tensor) not in left or not torch.equal(tensor, before[name])}
