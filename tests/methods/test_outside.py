"""A method from outside the package: LoRA by parametrization, registered and trained without touching anything else."""

import pytest
import torch

from helpers.runs import checkpoint, lines, results, run
from modules.methods import METHODS

# as someone would write it in a file of their own
LORA = """
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from common.settings import at_least, setting
from modules.methods import METHODS
from modules.methods.base import Method
from modules.methods.zero_shot import ZeroShotSettings, build as build_zero_shot


@dataclass(frozen=True)
class LoraSettings:
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


METHODS["lora"] = Method("low-rank changes of all weights", LoraSettings, build, trains=True)
"""


@pytest.fixture
def lora():
    exec(compile(LORA, "lora.py", "exec"), {"__name__": "lora_of_a_test"})
    yield
    METHODS.pop("lora", None)


def test_lora_in_forty_lines_trains_and_is_evaluated(tiny_run, tmp_path, lora):
    assert len(LORA.strip().splitlines()) <= 40
    flags = ["--do_train", "--method", "lora", "--rank", "2", "--epochs", "3", "--batch_size", "6", "--n_display", "1"]
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
