"""On a GPU, every method's forward and backward pass is the CPU's."""

from collections.abc import Mapping
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.methods import FORMS, disturb, make_model
from helpers.tiny import random_videos
from modules.runtime.precision import choose_precision

pytestmark = pytest.mark.gpu

CAPTIONS = ["a red circle", "moving", "to the left side"]
LENGTHS = [4, 3, 4]


class Pass(NamedTuple):
    """A forward pass in training, and the gradients of what trains by name; all on the CPU."""

    text: Tensor
    video: Tensor
    loss: float
    gradients: Mapping[str, Tensor]


def take(form: str, device: str, precision: str) -> Pass:
    """The pass of a form's model, whose values are the same on every device."""
    model = disturb(make_model(form)).to(device).train()
    keys, lengths = torch.arange(3, device=device), torch.tensor(LENGTHS, device=device)
    with choose_precision(precision, torch.device(device)).autocast():
        text = model.encode_text(CAPTIONS, keys)
        video = model.encode_video(random_videos(3, max(LENGTHS)).to(device), lengths, keys)["embedding"]
    loss = F.cross_entropy(model.similarity(text, video, keys), torch.arange(3, device=device))
    if model.num_trainable():
        loss.backward()
    gradients = {name: p.grad.cpu() for name, p in model.trainable_parameters() if p.grad is not None}
    return Pass(text.detach().float().cpu(), video.detach().float().cpu(), loss.item(), gradients)


def cosine(one: Tensor, other: Tensor) -> float:
    """Of all numbers of each."""
    return F.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0).item()


def joined(gradients: Mapping[str, Tensor]) -> Tensor:
    """All in one vector."""
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


# least cosines of embeddings and gradient; with eight bits a choice of regions may be another one
@pytest.mark.parametrize(
    ("precision", "embeddings", "gradient", "loss"), [("fp32", 0.99999, 0.999, 1e-3), ("bf16", 0.9995, 0.95, 0.03)]
)
@pytest.mark.parametrize("form", FORMS)
def test_a_pass_is_that_of_the_cpu(form, precision, embeddings, gradient, loss):
    expected, found = take(form, "cpu", "fp32"), take(form, "cuda", precision)
    assert cosine(found.text, expected.text) > embeddings
    assert cosine(found.video, expected.video) > embeddings
    assert found.loss == pytest.approx(expected.loss, rel=loss)
    assert found.gradients.keys() == expected.gradients.keys()
    if expected.gradients:
        found, expected = joined(found.gradients), joined(expected.gradients)
        assert torch.isfinite(found).all()
        assert cosine(found, expected) > gradient
        assert found.norm().item() == pytest.approx(expected.norm().item(), rel=0.1)
