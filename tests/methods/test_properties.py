"""What each method says of its embeddings, held both ways: what it declares holds, and what it does not, does not."""

import pytest
import torch

from common.errors import UserError
from helpers.methods import DEFAULT_FORMS, FORMS, changed_in_clip, default_form, disturb, make_model
from helpers.tiny import make_tiny_clip, random_videos
from modules.methods import METHODS
from modules.methods.base import Properties

T = 4
TOLERANCE = 1e-7  # in float64
DIFFERENT = 1e-6


# other forms of methods, which docs/methods.md names
OTHERWISE = {
    "stop_controls": Properties(still=False, any_length=True, order_blind=False),
    "stop_without_inter": Properties(still=False, any_length=False, order_blind=False),  # with a time embedding
    "stop_without_both": Properties(still=True, any_length=True, order_blind=True),
    "seqLSTM": Properties(still=False, any_length=True, order_blind=False),
    "seqTransf": Properties(still=False, any_length=True, order_blind=False),
    "vpt_frames": Properties(still=False, any_length=False, order_blind=False),
}


@pytest.fixture(scope="module", params=[*DEFAULT_FORMS.values(), *OTHERWISE])
def form(request):
    return request.param


@pytest.fixture(scope="module")
def said(form):
    return OTHERWISE.get(form) or METHODS[FORMS[form][0]].properties


@pytest.fixture(scope="module")
def model(form):
    return disturb(make_model(form, num_frames=T)).double().eval()


def embed(model, videos, lengths):
    with torch.no_grad():
        return model.encode_video(videos, torch.as_tensor(lengths))["embedding"].flatten(1)


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)


def test_a_method_without_a_form_to_test_is_named():
    with pytest.raises(LookupError, match="--method no_such has no form in FORMS"):
        default_form("no_such")


def test_every_method_declares_its_properties():
    assert all(method.properties is not None for method in METHODS.values())


def test_neighbours_and_what_stands_in_padding_change_nothing(model):
    videos, lengths = random_videos(4, T), [T, 3, 2, 1]
    together = embed(model, videos, lengths)
    assert together.isfinite().all()
    for i, length in enumerate(lengths):
        other = videos[i : i + 1].clone()
        other[:, length:] = 7
        assert_same(embed(model, other, [length])[0], together[i])


def test_a_still_video(said, model):
    picture = random_videos(3, 1)
    still, alone = (
        embed(model, picture.expand(-1, T, -1, -1, -1), [T] * 3),
        embed(model, picture.repeat(1, T, 1, 1, 1), [1] * 3),
    )
    if said.still:
        assert_same(still, alone)
    else:
        assert (still - alone).abs().amax(1).min() > DIFFERENT


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_other_lengths(said, model, length):
    videos = random_videos(2, max(length, T))
    if not said.any_length:
        with pytest.raises(UserError, match=f"{T}.*{length}"):
            embed(model, videos[:, :length], [length] * 2)
        return
    if length <= T:  # alone, and among padding
        assert_same(embed(model, videos[:, :length], [length] * 2), embed(model, videos, [length] * 2))
    else:
        assert embed(model, videos, [length] * 2).isfinite().all()


def test_order(said, model):
    videos = random_videos(3, T)
    one, other = embed(model, videos, [T] * 3), embed(model, videos.flip(1), [T] * 3)
    if said.order_blind:
        assert_same(one, other)
    else:
        assert (one - other).abs().amax(1).min() > DIFFERENT


# what a method tunes of CLIP itself; all others freeze all of it
TUNED = {
    "bias": lambda name: name.endswith("bias"),
    "clip4clip": lambda name: (
        not name.startswith(
            (
                *("visual.conv1", "visual.class_embedding", "visual.positional_embedding", "visual.ln_pre"),
                *("token_embedding", "positional_embedding", "logit_scale"),
            )
        )
    ),
}


@pytest.mark.parametrize("form", [form for form, (method, _) in FORMS.items() if METHODS[method].trains])
def test_training_leaves_every_bit_of_clip_as_it_is_but_for_what_the_method_tunes(form):
    is_tuned = TUNED.get(FORMS[form][0], lambda name: False)
    expected = {name for name, _ in make_tiny_clip().model.named_parameters() if is_tuned(name)}
    assert changed_in_clip(lambda clip: make_model(form, clip)) == expected
