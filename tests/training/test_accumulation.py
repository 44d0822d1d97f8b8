"""A step whose batch is encoded in parts is the step of the whole batch."""

import copy
import functools
import math
from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from dataloaders.batches import NO_LABEL, Batch, check_parts
from helpers.faults import Killed
from helpers.methods import FORMS, disturb, make_model
from helpers.runs import lines, results, run
from helpers.tiny import TINY_TRAINING, make_tiny_clip, random_videos
from modules.methods import METHODS
from modules.model.heads import CosineHead
from modules.runtime.compute import Compute
from modules.runtime.precision import Precision
from modules.runtime.processes import Processes
from modules.tasks.recognition import RecognitionTask
from modules.tasks.retrieval import RetrievalTask
from modules.training import accumulation
from modules.training.accumulation import cut
from modules.training.step import Outcome, Step
from modules.training.trainer import Trainer

CPU = torch.device("cpu")
CLIP = functools.cache(make_tiny_clip)
LENGTHS = (3, 4, 2, 4, 1)  # frames of the videos of a batch
LABELS = (0, 1, 1, 2, 0)
CAPTIONS = ["a dog", "a cat", "two cats", "a red circle moving left", "a"]
TRAINED = [form for form, (method, _) in FORMS.items() if METHODS[method].trains]


def make_step(accumulate, form="stop_own", task="retrieval", precision="fp64", checkpointed=False, norm=0.0, **more):
    clip = replace(CLIP(), model=copy.deepcopy(CLIP().model))
    precision = Precision(precision, CPU)
    model = disturb(make_model(form, clip, prompt_dropout=0.2, **more)).to(precision.dtype).train()
    for encoder in (model.video_encoder, model.text_encoder):
        encoder.checkpoint_activations = checkpointed
    if task == "retrieval":
        task = RetrievalTask(None, None, mask_same_video=True, batch_size=4, num_workers=0)
    else:
        task = RecognitionTask(
            None, None, ["run", "walk", "sit"], ["run", "walk", "sit"], ["{class}", "a {class}"], 4, 0
        )
    return Step(model, task, Compute(Processes(0, 1, CPU), precision), 1e-3, 0.2, norm, 10, 0.1, accumulate)


def differentiate(step):
    """The gradient of a step, in the parameters: five videos, the first and the third of which are one."""
    labels = LABELS if isinstance(step.task, RecognitionTask) else (NO_LABEL,) * 5
    numbers = torch.tensor([5, 2**62, 5, 6, 7])
    batch = Batch(
        torch.arange(5),
        random_videos(5, 4),
        torch.tensor(LENGTHS),
        [f"video{number}" for number in numbers],
        CAPTIONS,
        numbers,
        torch.arange(5),
        torch.tensor(labels),
        [],
    )
    return step.differentiate(batch, torch.arange(3, 8), torch.tensor([6]))


def gradients(step):
    return {name: p.grad.clone() for name, p in step.model.trainable_parameters()}


def assert_same(whole, parts):
    """Gradients and totals of two steps, and what they make of the weights, in fp64."""
    ours, theirs = differentiate(whole), differentiate(parts)
    assert theirs.outcome is ours.outcome is Outcome.DONE and theirs.clipped == ours.clipped
    assert (theirs.loss, theirs.norm) == pytest.approx((ours.loss, ours.norm), rel=1e-10)
    assert theirs.totals.keys() == ours.totals.keys()
    for name, total in ours.totals.items():
        assert theirs.totals[name] == pytest.approx(total, rel=1e-10)
    expected, found = gradients(whole), gradients(parts)
    assert expected.keys() == found.keys() and any(gradient.any() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-10, msg=lambda text, name=name: name + text)
    for step in (whole, parts):
        step.update(Outcome.DONE)
    for (name, one), (_, other) in zip(
        whole.model.trainable_parameters(), parts.model.trainable_parameters(), strict=True
    ):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-10, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("form", TRAINED)
def test_every_method_has_the_gradient_and_the_weights_of_the_whole_batch(form):
    """Five videos in two parts, three and two; dropout on, of captions that are one video's no pair a negative."""
    assert_same(make_step(1, form), make_step(2, form))


CASES = {
    "each video alone": {"accumulate": 5},
    "clipped": {"accumulate": 3, "norm": 1e-3},
    "activations computed again": {"accumulate": 3, "checkpointed": True},
    "frames merged, once": {"accumulate": 3, "form": "stop", "prompting": "once", "merge_frames": "1"},
    "frame scope": {"accumulate": 3, "attention_scope": "frame"},
}


@pytest.mark.parametrize("case", CASES)
def test_however_it_is_cut_and_whatever_else_is_on(case):
    options = dict(CASES[case])
    parts = options.pop("accumulate")
    assert_same(make_step(1, **options), make_step(parts, **options))


@pytest.mark.parametrize("form", ["stop_own", "stop", "tightTransf", "seqTransf", "vop", "lora", "efficient_prompt"])
def test_in_recognition_the_classes_are_embedded_in_parts_too(form):
    """Four parts of the videos, of three classes with two prompts each."""
    assert_same(make_step(1, form, "recognition"), make_step(4, form, "recognition"))


def test_a_trained_scale_has_its_gradient_once():
    def with_scale(step):
        step.model.head = CosineHead(20.0, trains=True).double().train()
        step.parameters = [p for _, p in step.model.trainable_parameters()]
        return step

    whole, parts = with_scale(make_step(1)), with_scale(make_step(2))
    for step in (whole, parts):
        differentiate(step)
    one, other = (step.model.head.log_scale.grad.item() for step in (whole, parts))
    assert abs(one) > 1e-3 and other == pytest.approx(one, rel=1e-10)


@pytest.mark.parametrize("form", ["stop_own", "tightTransf", "vop"])
def test_in_fp32_it_is_the_same_gradient_to_rounding(form):
    steps = make_step(1, form, precision="fp32"), make_step(3, form, precision="fp32"), make_step(1, form)
    losses = [differentiate(step).loss for step in steps]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    whole, parts, exact = (torch.cat([g.flatten().double() for g in gradients(step).values()]) for step in steps)
    rounding = (whole - exact).norm()
    assert (parts - exact).norm() < 2 * rounding
    # tightTransf alone rounds by more than that on some processors, in parts or not
    assert (parts - whole).norm() < max(1e-6 * whole.norm(), rounding if form == "tightTransf" else 0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_under_autocast_everything_that_trains_gets_its_gradient(precision):
    """Weights that were made smaller for the embeddings without graph are not taken again for those with one."""
    whole, parts = make_step(1, precision=precision), make_step(3, precision=precision)
    for step in (whole, parts):
        assert differentiate(step).outcome is Outcome.DONE
    assert all(gradient.any() for gradient in gradients(parts).values())
    one, other = (torch.cat([g.flatten() for g in gradients(step).values()]) for step in (whole, parts))
    assert torch.cosine_similarity(one, other, dim=0) > 0.999
    assert parts.scaler.get_scale() == whole.scaler.get_scale() == (1 if precision == "bf16" else 65536)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_losses_and_gradients_that_are_no_numbers_are_found_as_without(monkeypatch, precision):
    loss, factor = RetrievalTask.loss, math.nan
    monkeypatch.setattr(RetrievalTask, "loss", lambda self, *args: loss(self, *args) * factor)
    step = make_step(2, "stop", precision=precision)
    before = {name: value.clone() for name, value in step.model.trained_state().items()}
    gradient = differentiate(step)
    assert gradient.outcome is Outcome.LOSS_NOT_FINITE and gradient.totals == {}
    step.update(gradient.outcome)
    factor = 1e6  # finite, but of the scaled loss the gradient is more than fp16 holds
    gradient = differentiate(step)
    assert gradient.outcome is (Outcome.OVERFLOW if precision == "fp16" else Outcome.DONE)
    step.update(Outcome.OVERFLOW)
    after = step.model.trained_state()
    assert all(torch.equal(value, before[name]) for name, value in after.items()) == (precision == "fp16")


@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("parts", range(1, 5))
def test_parts_are_nearly_equal_and_hold_every_row_once(count, parts):
    runs = [list(range(count))[run] for run in cut(count, parts)]
    assert [row for run in runs for row in run] == list(range(count)) and len(runs) == min(count, parts)
    lengths = {len(run) for run in runs}
    assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1


def test_more_parts_than_samples_are_refused(tiny_run, tmp_path, capsys):
    check_parts(4, 8, 2)
    with pytest.raises(UserError, match=r"each of 2 process.* has 4 of the 8 samples .* give at most 4"):
        check_parts(5, 8, 2)
    assert run(tiny_run, tmp_path, *TINY_TRAINING, "--accumulate", "7") == 1
    assert "--accumulate 7" in capsys.readouterr().err


def test_a_method_that_keeps_statistics_of_its_batches_is_refused():
    model = make_step(1).model
    model.video_encoder.norm = torch.nn.BatchNorm1d(3)
    with pytest.raises(UserError, match=r"norm\.running_mean.*give --accumulate 1"):
        accumulation.check_can_accumulate(model)


def test_a_run_may_go_on_in_parts_and_logs_the_same(tiny_run, tmp_path, monkeypatch):
    flags = [*TINY_TRAINING, "--precision", "fp64", "--text_prompts", "2", "--save_steps", "1", "--epochs", "1"]
    assert run(tiny_run, tmp_path / "whole", *flags) == 0
    compute, cuts = Trainer._compute, []

    def dying(self, *args):
        if self.position.step == 1:
            raise Killed
        return compute(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_compute", dying)
        run(tiny_run, tmp_path / "parts", *flags)
    monkeypatch.setattr(accumulation, "cut", lambda *args: cuts.append(args) or cut(*args))
    assert run(tiny_run, tmp_path / "parts", *flags, "--accumulate", "4") == 0
    assert cuts == [(6, 4)] * 2 * 2  # texts and videos, two steps
    whole, parts = (lines(tmp_path / name, "train") for name in ("whole", "parts"))
    assert len(whole) == len(parts) == 3
    for one, other in zip(whole, parts, strict=True):
        assert {"tokens_per_gap", "clipped_steps", "grad_norm"} <= one.keys()
        assert one.pop("kind") == other.pop("kind") and other == pytest.approx(one, rel=1e-8)
    assert results(tmp_path / "parts")["t2v_MnR"] == results(tmp_path / "whole")["t2v_MnR"]
