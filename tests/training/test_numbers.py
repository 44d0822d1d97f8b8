"""Losses and gradients that are no numbers, fp16 overflow, and the same bits in two runs."""

import contextlib
import re
from functools import partial

import pytest
import torch
from torch.nn import functional

import main_task_retrieval
from helpers.faults import poison_losses
from helpers.runs import checkpoint, lines, results
from helpers.tiny import TINY_TRAINING
from modules.runtime.precision import Precision
from modules.runtime.processes import Processes
from modules.tasks.retrieval import RetrievalTask


def run(flags, output_dir, *more):
    return main_task_retrieval.main([*flags, "--output_dir", str(output_dir), *TINY_TRAINING, *more])


def model_of(folder):
    return checkpoint(folder)["model"]


def poison_gradients(monkeypatch, when):
    """Make gradients infinite in the calls, from 1, for which `when` holds."""
    average, calls = Processes.average_gradients, 0

    def poisoned(self, parameters):
        nonlocal calls
        calls += 1
        average(self, parameters)
        if when(calls):
            next(iter(parameters)).grad.fill_(float("inf"))

    monkeypatch.setattr(Processes, "average_gradients", poisoned)


POISONS = [(poison_losses, "loss is nan"), (poison_gradients, "norm of the gradient is")]


@pytest.mark.parametrize(("poison", "words"), POISONS)
def test_a_value_that_is_no_number_stops_the_run_before_it_reaches_the_weights(
    tiny_run, tmp_path, capsys, monkeypatch, poison, words
):
    poison(monkeypatch, lambda call: call == 4)
    assert run(tiny_run, tmp_path) == 1
    message = capsys.readouterr().err
    assert f"step 4: the {words}" in message and "--on_nonfinite skip" in message
    assert re.search(r"at rate 0\.000\d+ with videos (video\d+(, )?){6}\.", message)
    assert all(torch.isfinite(value).all() for value in model_of(tmp_path).values())
    assert [entry["step"] for entry in lines(tmp_path, "train")] == [1, 2, 3]


@pytest.mark.parametrize(("poison", "words"), POISONS)
@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
def test_a_step_that_is_left_out_changes_nothing_and_is_counted(
    tiny_run, tmp_path, monkeypatch, poison, words, precision
):
    """In fp16 a bad gradient counts where it is bad in fp32 as well: the gradient of such a step is asked for twice."""
    flags = ["--on_nonfinite", "skip", "--precision", precision, "--weight_decay", "0.5"]
    again = precision == "fp16" and poison is poison_gradients
    with monkeypatch.context() as patch:
        poison(patch, lambda call: call in ((2, 3, 4, 5) if again else (2, 3)))
        assert run(tiny_run, tmp_path, *flags) == 0
    assert results(tmp_path)["nonfinite_steps"] == 2 and results(tmp_path)["overflow_steps"] == 0
    entries = lines(tmp_path, "train")
    assert [entry["step"] for entry in entries] == list(range(1, 10))
    skipped = [entry["step"] for entry in entries if entry["grad_norm"] is None]
    assert skipped == [2, 3]
    assert (entries[1]["loss"] is None) == ("loss" in words)
    # measured is what the forward pass made; a gradient that is not used is not clipped
    assert [entry["step"] for entry in entries if "clipped_steps" not in entry] == skipped
    assert [entry["step"] for entry in entries if "tokens_per_gap" not in entry] == (skipped if "loss" in words else [])
    # a poisoned first pass leaves the weights as they were made
    with monkeypatch.context() as patch:
        poison(patch, lambda call: True)
        assert run(tiny_run, tmp_path / "untouched", *flags) == 0
    assert results(tmp_path / "untouched")["nonfinite_steps"] == 9
    reference = run_nothing(tiny_run, tmp_path / "nothing", monkeypatch)
    for name, value in model_of(tmp_path / "untouched").items():
        assert torch.equal(value, reference[name])


def run_nothing(tiny_run, folder, monkeypatch):
    """The weights before the first step."""
    with monkeypatch.context() as patch:
        poison_losses(patch, lambda call: True)
        assert run(tiny_run, folder) == 1
    return model_of(folder)


def test_fp16_overflow_lowers_the_scale_and_is_no_failure(tiny_run, tmp_path, monkeypatch):
    poison_gradients(monkeypatch, lambda call: call in (1, 6))  # 2 and 7 ask again, without a scale
    assert run(tiny_run, tmp_path, "--precision", "fp16") == 0
    found = results(tmp_path)
    assert found["overflow_steps"] == 2 and found["nonfinite_steps"] == 0
    state = checkpoint(tmp_path)
    assert state["scaler"]["scale"] == 65536 / 4
    assert state["position"]["step"] == 9
    entries = lines(tmp_path, "train")
    assert [entry["step"] for entry in entries if entry["grad_norm"] is None] == [1, 5]
    assert all(entry["loss"] is not None for entry in entries)


def test_a_gradient_that_fp32_does_not_mend_is_a_failure_at_once(tiny_run, tmp_path, monkeypatch, capsys):
    poison_gradients(monkeypatch, lambda call: call in (3, 4))
    assert run(tiny_run, tmp_path, "--precision", "fp16") == 1
    assert "step 3: the norm of the gradient" in capsys.readouterr().err
    state = checkpoint(tmp_path)
    assert state["position"]["overflow_steps"] == 0 and state["scaler"]["scale"] == 65536


def test_deterministic_runs_are_equal_to_the_bit_and_leave_the_switch_as_it_was(tiny_run, tmp_path):
    before = torch.are_deterministic_algorithms_enabled()
    switched = []
    with pytest.MonkeyPatch.context() as patch:
        evaluate = RetrievalTask.evaluate

        def look(self, *args):
            switched.append(torch.are_deterministic_algorithms_enabled())
            return evaluate(self, *args)

        patch.setattr(RetrievalTask, "evaluate", look)
        for name in ("one", "two"):
            assert run(tiny_run, tmp_path / name, "--deterministic") == 0
    assert switched == [True] * 6
    assert torch.are_deterministic_algorithms_enabled() == before
    one, two = model_of(tmp_path / "one"), model_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name])
    assert (tmp_path / "one" / "metrics.jsonl").read_bytes() == (tmp_path / "two" / "metrics.jsonl").read_bytes()


def test_fp16_products_on_a_cpu_are_those_of_torch_and_overflow_as_they_do():
    """Linear, convolution, attention and their gradients: as torch's own, to what fp16 rounds."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    leaves = [draw(2, 30, 16), draw(48, 16), draw(48), draw(2, 16, 4, 7, 7), draw(8, 16, 3, 3, 3), draw(2, 2, 30, 8)]
    precision = Precision("fp16", torch.device("cpu"))

    def gradients(context):
        tokens, weight, bias, volume, kernel, heads = made = [leaf.clone().requires_grad_() for leaf in leaves]
        with context, torch.autocast("cpu", dtype=torch.float16):
            linear = functional.linear(tokens, weight, bias)
            convolved = functional.conv3d(volume, kernel, padding=1)
            attended = functional.scaled_dot_product_attention(heads, heads, heads)
            products = linear @ linear.transpose(1, 2)
            outputs = linear, convolved, attended, products
            assert all(output.dtype == torch.float16 for output in outputs)
            sum(output.float().square().mean() for output in outputs).backward()
        return [*outputs, *(leaf.grad for leaf in made)]

    for ours, torchs in zip(gradients(precision.products()), gradients(contextlib.nullcontext()), strict=True):
        assert ours.dtype == torchs.dtype and (ours - torchs).norm() < 2e-3 * torchs.norm()
    large = torch.full((2, 2), 300.0, dtype=torch.float16)
    with precision.products():
        assert torch.isinf(large @ large).all()  # 180,000, more than fp16 holds
    assert isinstance(Precision("bf16", torch.device("cpu")).products(), contextlib.nullcontext)
