"""On a GPU, steps in every precision have the losses of the CPU's in fp32."""

import pytest
import torch
import torch.nn.functional as F

from helpers.launching import start_training
from helpers.runs import lines, results, run
from helpers.tiny import TINY_TRAINING
from modules.runtime.precision import choose_precision

pytestmark = pytest.mark.gpu

FLAGS = [*TINY_TRAINING, "--epochs", "2", "--lr", "0.02"]  # at which six steps take a tenth of the loss away
STEPS = 6


@pytest.fixture(scope="module")
def losses_on_cpu(tiny_run, tmp_path_factory):
    """Of a run that sees no GPU."""
    folder = tmp_path_factory.mktemp("on_cpu")
    process = start_training(tiny_run, folder, *FLAGS, "--precision", "fp32")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "fp32 on cpu" in (folder / "log.txt").read_text(), output
    return [entry["loss"] for entry in lines(folder, "train")]


# of fp32 the last bits; of bf16 and fp16 what eight and eleven bits, and a first step that overflows, make of them
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.02), ("fp16", 0.03)])
def test_losses_are_those_of_fp32_on_the_cpu(tiny_run, losses_on_cpu, tmp_path, precision, tolerance):
    assert run(tiny_run, tmp_path, *FLAGS, "--precision", precision) == 0
    assert f"{precision} on cuda:0" in (tmp_path / "log.txt").read_text()
    losses = [entry["loss"] for entry in lines(tmp_path, "train")]
    assert len(losses) == STEPS and losses == pytest.approx(losses_on_cpu, rel=tolerance)
    if precision != "fp32":  # it did compute in fewer bits
        assert losses[0] != pytest.approx(losses_on_cpu[0], rel=1e-6)
    found = results(tmp_path)
    assert found["nonfinite_steps"] == 0 and (precision == "fp16" or found["overflow_steps"] == 0)


def test_the_default_is_bf16_where_the_gpu_has_it():
    wanted = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    assert choose_precision("amp", torch.device("cuda")).name == wanted


def test_fp32_is_not_tf32():
    choose_precision("fp32", torch.device("cuda"))
    torch.manual_seed(0)
    volume, kernel = torch.randn(4, 32, 6, 7, 7), torch.randn(32, 32, 3, 3, 3)
    for compute in (lambda x, w: F.conv3d(x, w, padding=1), lambda x, w: x.flatten(1) @ x.flatten(1).T):
        exact = compute(volume.double(), kernel.double())
        found = compute(volume.cuda(), kernel.cuda()).cpu().double()
        assert (found - exact).norm() < 1e-4 * exact.norm()  # with the ten bits of TF32 it is 3e-4
