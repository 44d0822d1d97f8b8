"""What each method says of its embeddings, held both ways: what it declares holds, and what it does not, does not."""

import copy

import pytest
import torch

from common.errors import UserError
from helpers.methods import DEFAULT_FORMS, disturb, make_model
from helpers.tiny import make_tiny_clip, random_videos
from modules.methods import METHODS

T = 4
TOLERANCE = 1e-7  # in float64
DIFFERENT = 1e-6


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="module")
def model(method):
    return disturb(make_model(DEFAULT_FORMS[method], num_frames=T)).double().eval()


def embed(model, videos, lengths):
    with torch.no_grad():
        return model.encode_video(videos, torch.as_tensor(lengths))["embedding"].flatten(1)


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)


def test_every_method_declares_its_properties(method):
    assert METHODS[method].properties is not None


def test_neighbours_and_what_stands_in_padding_change_nothing(model):
    videos, lengths = random_videos(4, T), [T, 3, 2, 1]
    together = embed(model, videos, lengths)
    assert together.isfinite().all()
    for i, length in enumerate(lengths):
        other = videos[i : i + 1].clone()
        other[:, length:] = 7
        assert_same(embed(model, other, [length])[0], together[i])


def test_a_still_video(method, model):
    picture = random_videos(3, 1)
    still, alone = (
        embed(model, picture.expand(-1, T, -1, -1, -1), [T] * 3),
        embed(model, picture.repeat(1, T, 1, 1, 1), [1] * 3),
    )
    if METHODS[method].properties.still:
        assert_same(still, alone)
    else:
        assert (still - alone).abs().amax(1).min() > DIFFERENT


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_other_lengths(method, model, length):
    videos = random_videos(2, max(length, T))
    if not METHODS[method].properties.any_length:
        with pytest.raises(UserError, match=f"{T}.*{length}"):
            embed(model, videos[:, :length], [length] * 2)
        return
    if length <= T:  # alone, and among padding
        assert_same(embed(model, videos[:, :length], [length] * 2), embed(model, videos, [length] * 2))
    else:
        assert embed(model, videos, [length] * 2).isfinite().all()


def test_order(method, model):
    videos = random_videos(3, T)
    one, other = embed(model, videos, [T] * 3), embed(model, videos.flip(1), [T] * 3)
    if METHODS[method].properties.order_blind:
        assert_same(one, other)
    else:
        assert (one - other).abs().amax(1).min() > DIFFERENT


def test_clip_itself_stays_as_it_is_but_for_what_trains(method):
    clip = make_tiny_clip()
    before = copy.deepcopy(clip.model.state_dict())
    model = make_model(DEFAULT_FORMS[method], clip)
    in_training = {id(p) for p in model.parameters() if p.requires_grad}
    disturb(model)
    # a weight that is parametrized goes by another name
    now = clip.model.state_dict(keep_vars=True)
    now = {name.replace("parametrizations.", "").removesuffix(".original"): value for name, value in now.items()}
    for name, value in before.items():
        assert name in now, f"{name} of CLIP is gone"
        if id(now[name]) not in in_training:
            assert torch.equal(now[name], value), name
