"""How much trains at ViT-B/32 with 12 frames, as the papers count it."""

import copy
from functools import cache

import open_clip
import pytest
import torch

from modules.clip.loader import LoadedCLIP
from modules.methods import METHODS
from modules.program.build import build_model

T = 12
MAX_WORDS = 32
# a method and its settings → how much trains
COUNTS = [
    ("zero_shot", {}, 0),
    ("clip4clip", {}, 123_540_993),
    ("vop", {}, 14_269_440 + T * 768),  # the paper leaves out the frames' embedding
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


def make_clip_without_values() -> LoadedCLIP:
    """A CLIP of the size of OpenAI's ViT-B/32 that takes no memory; methods may change it."""
    model, tokenizer = copy.deepcopy(vit_b_32_without_values()), open_clip.get_tokenizer("ViT-B-32")
    model.logit_scale = torch.nn.Parameter(torch.tensor(4.6))  # whose value methods ask for
    return LoadedCLIP(
        model.eval().requires_grad_(False), tokenizer, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    )


@cache
def vit_b_32_without_values() -> torch.nn.Module:
    """As open_clip makes it, which takes longer than all that methods do."""
    return open_clip.create_model("ViT-B-32-quickgelu", load_weights=False, device="meta")


@pytest.mark.parametrize(("method", "settings", "count"), COUNTS)
def test_as_much_trains_as_is_said(method, settings, count):
    clip = make_clip_without_values()
    with torch.device("meta"):
        model = build_model(method, METHODS[method].settings(**settings), clip, T, MAX_WORDS, 0)
    assert model.num_trainable() == count


def test_every_method_is_counted():
    assert {method for method, _, _ in COUNTS} == METHODS.keys()
