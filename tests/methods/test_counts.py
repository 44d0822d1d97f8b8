"""How much trains at ViT-B/32 with 12 frames, as the papers count it."""

import pytest
import torch

from helpers.tiny import make_clip_without_values
from modules.methods import METHODS
from modules.program.build import build_model

T = 12
MAX_WORDS = 32
# a method and its settings → how much trains
COUNTS = [
    ("zero_shot", {}, 0),
    ("clip4clip", {}, 123_540_993),
    ("vop", {}, 14_269_440 + T * 768),  # the paper leaves out the frames' embedding
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


@pytest.mark.parametrize(("method", "settings", "count"), COUNTS)
def test_as_much_trains_as_is_said(method, settings, count):
    clip = make_clip_without_values()
    with torch.device("meta"):
        model = build_model(method, METHODS[method].settings(**settings), clip, T, MAX_WORDS, 0)
    assert model.num_trainable() == count


def test_every_method_is_counted():
    assert {method for method, _, _ in COUNTS} == METHODS.keys()
