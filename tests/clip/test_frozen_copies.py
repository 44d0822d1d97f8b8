"""Frozen weights that are cast once: the values that autocast would make, made again whenever they have changed."""

import pytest
import torch
from torch import nn

from helpers.tiny import make_tiny_clip
from modules.kernels.frozen import FrozenCopies


def weight_of(*shape, trains=False):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), requires_grad=trains)


def test_a_copy_is_what_autocast_makes_and_is_made_once():
    copies, weight = FrozenCopies(), weight_of(5, 3)
    assert copies.of(weight) is weight
    with torch.autocast("cpu", torch.bfloat16):
        copy = copies.of(weight)
        assert torch.equal(copy, weight.bfloat16()) and copies.of(weight) is copy
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(copies.of(weight), weight.half())


def test_a_factor_is_taken_before_it_is_cast():
    copies, weight = FrozenCopies(), weight_of(100)
    once = copies.of(weight, 1.702)
    assert torch.equal(once, weight * 1.702) and copies.of(weight, 1.702) is once
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(copies.of(weight, 1.702), (weight * 1.702).bfloat16())


@torch.autocast("cpu", torch.bfloat16)
def test_what_has_changed_is_copied_again():
    copies, weight = FrozenCopies(), weight_of(5)
    first = copies.of(weight)
    with torch.no_grad():
        weight.mul_(2)
    assert torch.equal(copies.of(weight), 2 * first)
    other = nn.Parameter(torch.ones(5), requires_grad=False)
    assert torch.equal(copies.of(other), torch.ones(5))


@torch.autocast("cpu", torch.bfloat16)
def test_what_trains_or_is_no_parameter_is_left_to_autocast():
    copies, weight = FrozenCopies(), weight_of(5, trains=True)
    assert copies.of(weight) is weight
    scaled = copies.of(weight, 3.0)
    assert torch.equal(scaled, 3 * weight) and scaled.requires_grad
    made = weight_of(5) + 1
    assert copies.of(made) is made
    weight.requires_grad_(False)
    assert copies.of(weight).dtype == torch.bfloat16
    weight.requires_grad_(True)  # a layer that is thawed again
    assert copies.of(weight) is weight


def test_what_is_loaded_or_encoded_in_inference_mode_serves_training_behind_it():
    block = make_tiny_clip().vision_tower().blocks[0]
    tokens = torch.randn(2, 7, block.width)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            before = block(tokens)
        after = block(tokens.requires_grad_())
        after.sum().backward()
    assert torch.equal(before, after) and tokens.grad is not None
    with torch.inference_mode():
        loaded = weight_of(5)
        with torch.autocast("cpu", torch.bfloat16):
            assert FrozenCopies().of(loaded) is loaded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_block_gives_and_takes_the_same_bits_with_and_without_copies(dtype, monkeypatch):
    block = make_tiny_clip().vision_tower().blocks[0]

    def run():
        tokens = torch.randn(2, 7, block.width, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = block(tokens)
        out.square().sum().backward()
        return out, tokens.grad

    found = run()
    monkeypatch.setattr(FrozenCopies, "of", lambda self, weight, factor=1.0: weight if factor == 1 else weight * factor)
    for one, other in zip(found, run(), strict=True):
        assert torch.equal(one, other)


def test_a_block_compiles_as_one_graph():
    block = make_tiny_clip().vision_tower().blocks[0]
    tokens = torch.randn(2, 7, block.width)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = block(tokens)
        assert torch.equal(torch.compile(block, fullgraph=True, backend="eager")(tokens), expected)
