"""On a GPU, a run with --compile has the losses of one without."""

import pytest
from torch._dynamo.utils import counters

from helpers.runs import lines, run
from helpers.tiny import TINY_TRAINING

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def test_a_compiled_run_has_the_losses_of_one_that_is_not(tiny_run, tmp_path):
    flags = [*TINY_TRAINING, "--epochs", "2", "--lr", "0.02", "--precision", "bf16"]
    losses = {}
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        before = counters["stats"]["unique_graphs"]
        assert run(tiny_run, tmp_path / name, *flags, *more) == 0
        assert "bf16 on cuda:0" in (tmp_path / name / "log.txt").read_text()
        assert (counters["stats"]["unique_graphs"] > before) == bool(more)
        losses[name] = [entry["loss"] for entry in lines(tmp_path / name, "train")]
    assert len(losses["plain"]) == 6
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=0.02)
