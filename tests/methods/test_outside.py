"""A method from outside the package: low-rank changes by parametrization, with nothing touched to add it."""

import pytest
import torch

from helpers.methods import changed_in_clip
from helpers.runs import checkpoint, lines, results, run
from modules.methods import METHODS

# as someone would write it in a file of their own
LOW_RANK = """
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from common.settings import at_least, setting
from modules.methods import METHODS
from modules.methods.base import Method
from modules.methods.zero_shot import ZeroShotSettings, build as build_zero_shot


@dataclass(frozen=True)
class LowRankSettings:
    rank: int = setting(4, "rank of what is added to each weight", within=at_least(1))


class LowRank(nn.Module):
    def __init__(self, shape, rank):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, shape[1]) / rank)
        self.up = nn.Parameter(torch.zeros(shape[0], rank))

    def forward(self, weight):
        return weight + self.up @ self.down


def build(clip, settings, num_frames, max_words):
    model = build_zero_shot(clip, ZeroShotSettings(), num_frames, max_words)
    for block in (*model.video_encoder.tower.blocks, *model.text_encoder.tower.blocks):
        for module, name in block.weights():
            register_parametrization(module, name, LowRank(getattr(module, name).shape, settings.rank))
    return model


METHODS["low_rank"] = Method("low-rank changes of all weights", LowRankSettings, build, trains=True)
"""


@pytest.fixture
def low_rank():
    exec(compile(LOW_RANK, "low_rank.py", "exec"), {"__name__": "low_rank_of_a_test"})
    yield METHODS["low_rank"]
    METHODS.pop("low_rank", None)


def test_a_method_of_forty_lines_trains_and_is_evaluated(tiny_run, tmp_path, low_rank):
    assert len(LOW_RANK.strip().splitlines()) <= 40
    flags = [
        "--do_train",
        "--method",
        "low_rank",
        "--rank",
        "2",
        "--epochs",
        "3",
        "--batch_size",
        "6",
        "--n_display",
        "1",
    ]
    assert run(tiny_run, tmp_path / "train", *flags, "--lr", "0.02") == 0
    losses = [entry["loss"] for entry in lines(tmp_path / "train", "train")]
    assert min(losses[-3:]) < losses[0]
    state = checkpoint(tmp_path / "train", "best.pt")["model"]
    assert len(state) == 2 * 4 * (3 + 1) and all(name.rsplit(".", 1)[1] in ("down", "up") for name in state)
    assert all(tensor.any() for tensor in state.values())
    evaluation = ["--do_eval", "--init_model", str(tmp_path / "train" / "best.pt")]
    assert run(tiny_run, tmp_path / "eval", *evaluation) == 0
    assert results(tmp_path / "eval")["t2v_MnR"] == results(tmp_path / "train")["t2v_MnR"]
    assert results(tmp_path / "eval")["trainable_parameters"] == sum(map(torch.Tensor.numel, state.values()))


def test_training_leaves_every_bit_of_weights_as_it_is_that_are_parametrized(low_rank):
    assert changed_in_clip(lambda clip: low_rank.build(clip, low_rank.settings(), 4, 12)) == set()
