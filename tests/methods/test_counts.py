"""How much trains at ViT-B/32 with 12 frames, as the papers count it."""

import pytest
import torch

from helpers.methods import COUNTED_FRAMES, COUNTED_WORDS, COUNTS
from helpers.tiny import make_clip_without_values
from modules.methods import METHODS
from modules.program.build import build_model


@pytest.mark.parametrize(("method", "settings", "count"), COUNTS)
def test_as_much_trains_as_is_said(method, settings, count):
    clip = make_clip_without_values()
    with torch.device("meta"):
        model = build_model(method, METHODS[method].settings(**settings), clip, COUNTED_FRAMES, COUNTED_WORDS, 0)
    assert model.num_trainable() == count


def test_every_method_is_counted():
    assert {method for method, _, _ in COUNTS} == METHODS.keys()
