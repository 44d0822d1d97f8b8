"""What holds in training of every prompting method here: what gets a gradient, in any precision, and how it is kept."""

import pytest
import torch
import torch.nn.functional as F

from helpers.methods import FORMS, disturb, make_model
from helpers.tiny import make_tiny_clip, random_videos
from modules.methods import MODULES

T = 4
PROMPTING = [form for form, (method, _) in FORMS.items() if MODULES[method].startswith("modules.methods.prompts.")]
CAPTIONS = ["a", "b c", "a red circle moving left"]


def gradients(model):
    """Of a contrastive loss, by name."""
    video = model.encode_video(random_videos(3, T), torch.tensor([T, 3, T]), torch.arange(3))["embedding"]
    text = model.encode_text(CAPTIONS, torch.arange(3))
    model.zero_grad()
    F.cross_entropy(model.similarity(text, video.to(text)), torch.arange(3)).backward()
    return {name: parameter.grad for name, parameter in model.trainable_parameters()}


@pytest.mark.parametrize("form", PROMPTING)
def test_all_that_trains_gets_a_gradient_and_clip_is_left_alone(form):
    clip = make_tiny_clip()
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    model = make_model(form, clip).train()
    optimizer = torch.optim.SGD([p for _, p in model.trainable_parameters()], lr=0.1)
    found = gradients(model)
    assert found and [name for name, gradient in found.items() if gradient is None or not gradient.any()] == []
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in clip.model.state_dict().items())


@pytest.mark.parametrize("form", PROMPTING)
def test_with_checkpointed_activations_gradients_are_the_same(form):
    model = disturb(make_model(form)).double().train()
    kept = gradients(model)
    for encoder in (model.video_encoder, model.text_encoder):
        encoder.checkpoint_activations = True
    again = gradients(model)
    assert kept.keys() == again.keys() and all(torch.equal(again[name], kept[name]) for name in kept)


@pytest.mark.parametrize("form", PROMPTING)
def test_in_bf16_the_gradient_points_where_that_of_fp32_does(form):
    model = disturb(make_model(form)).train()
    exact = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients(model)
    exact, rounded = (torch.cat([gradient.flatten() for gradient in found.values()]) for found in (exact, rounded))
    assert F.cosine_similarity(rounded, exact, dim=0) > 0.99
