"""In bf16 on a CPU the prompters have the values and gradients of fp32 at any width and length."""

from statistics import median

import pytest
import torch

from helpers.runs import lines, run
from helpers.tiny import TINY_TRAINING, make_tiny_clip
from modules.kernels.convolutions import TemporalConv3d
from modules.methods.stop.inter_frame import TemporalPrompter
from modules.methods.stop.intra_frame import SpatialPrompter
from modules.model.tokens import grid_conv3d
from scripts.gradient_precision import SCOPES, SEEDS, Choices, cosine, cosines, gradients, make_model

GRID, TOKEN_WIDTH = 3, 32
ROUNDING = 2**-7  # two roundings to eight bits


def leave_in_free_memory(value):
    """Let what is allocated next, and not written to, hold a value."""
    blocks = [torch.full((size,), value) for size in (16, 64, 256, 1024, 4096, 16384, 65536) for _ in range(4)]
    del blocks


def outputs_and_gradients(module, compute, inputs, bf16, memory=torch.nan):
    """By name: the output, and the gradients of the input and of the parameters for a fixed gradient of the output."""
    module.zero_grad()
    inputs = inputs.clone().requires_grad_()
    leave_in_free_memory(memory)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        output = compute(inputs)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    leave_in_free_memory(memory)
    output.backward(gradient.to(output.dtype))
    found = {"output": output.detach(), "input": inputs.grad}
    return found | {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("gaps", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 8, 12, 33, 96])
def test_the_convolution_over_gaps_is_that_of_fp32(width, gaps):
    torch.manual_seed(0)
    convolution = TemporalConv3d(width)
    for batch in (1, 6):
        tokens = torch.randn(batch, gaps, GRID**2, width)
        expected, found = (
            outputs_and_gradients(convolution, lambda x: grid_conv3d(convolution, x, GRID), tokens, bf16)
            for bf16 in (False, True)
        )
        for name, value in expected.items():
            assert (found[name] - value).norm() <= 2 * ROUNDING * value.norm(), name  # also NaN fails


@pytest.mark.parametrize("gaps", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 3, 5, 7, 8, 32])
def test_the_prompters_do_not_depend_on_what_memory_held(width, gaps):
    torch.manual_seed(0)
    real, variation = torch.ones(6, gaps, dtype=torch.bool), torch.rand(6, gaps)
    temporal = TemporalPrompter(TOKEN_WIDTH, GRID, num_tokens=4, bottleneck=width, dropout=0.0)
    spatial = SpatialPrompter(TOKEN_WIDTH, GRID, bottleneck=width, hidden=width, dropout=0.0)
    torch.nn.init.normal_(spatial.linear_out.weight)
    for module, compute, length in (
        (temporal, lambda x: temporal(x, variation, real, None), gaps),
        (spatial, lambda x: spatial.prompts(spatial.features(x), None), gaps + 2),
    ):
        tokens = torch.randn(6, length, GRID**2, TOKEN_WIDTH)
        found, again = (outputs_and_gradients(module, compute, tokens, True, memory) for memory in (torch.nan, 1e30))
        for name, value in found.items():
            assert torch.isfinite(value).all() and torch.equal(value, again[name]), name
        expected = outputs_and_gradients(module, compute, tokens, False)["output"]
        assert (found["output"] - expected).norm() <= 8 * ROUNDING * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize("frames", [2, 3, 4])
def test_narrow_prompters_train_in_bf16_as_in_fp32(tiny_run, tmp_path, frames):
    for width in (3, 5, 7):
        losses = {}
        for precision in ("fp32", "bf16"):
            folder = tmp_path / f"{width}_{precision}"
            flags = ["--max_frames", str(frames), "--temporal_width", str(width), "--spatial_width", str(width)]
            flags += ["--spatial_hidden", str(width), "--precision", precision, "--epochs", "2"]
            assert run(tiny_run, folder, *TINY_TRAINING, *flags) == 0
            losses[precision] = [entry["loss"] for entry in lines(folder, "train")]
        assert len(losses["fp32"]) == 6
        assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_gradient_is_that_of_fp32_where_regions_and_counts_are(scope):
    """A few of the seeds of docs/results/precision.json, which also has the figures with choices of its own."""
    widths = {"num_regions": 3, "spatial_width": 8, "spatial_hidden": 12, "temporal_width": 8, "prompt_dropout": 0.0}
    found = cosines(lambda seed: make_model(make_tiny_clip(seed), scope, seed, **widths), torch.bfloat16, SEEDS[:5])
    assert median(found.fixed) >= 0.99


def test_choices_are_made_again_as_they_were():
    model = make_model(make_tiny_clip(), "joint", 0, num_regions=3)
    choices = Choices()
    with choices.recorded():
        exact = gradients(model, 0, None)
    with torch.no_grad():  # what is chosen by
        for prompting in (model.video_encoder.prompting.intra_frame, model.video_encoder.prompting.inter_frame):
            prompting.dynamics.weight.copy_(prompting.dynamics.weight.flip(0))
    with choices.repeated():
        again = gradients(model, 0, None)
    other = gradients(model, 0, None)
    name = "video_encoder.prompting.intra_frame.prompter.linear_out.bias"
    assert cosine([again[name]], [exact[name]]) > cosine([other[name]], [exact[name]]) + 1e-3
