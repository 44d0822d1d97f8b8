"""A step waits for its device once: told on a GPU that is none, see `helpers.gpu`."""

import copy
import functools
import gc
import math
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from common.errors import UserError
from dataloaders.batches import NO_LABEL, Ahead, Batch
from helpers.gpu import GPU, move_to_gpu, pretend_gpu
from helpers.methods import disturb, make_model
from helpers.tiny import make_tiny_clip, random_videos
from modules.methods import METHODS
from modules.runtime.compute import Compute
from modules.runtime.interruption import Interruption
from modules.runtime.precision import Precision
from modules.runtime.processes import Processes
from modules.runtime.run_folder import RunFolder
from modules.tasks.recognition import RecognitionTask
from modules.tasks.retrieval import RetrievalTask
from modules.training.step import Outcome, Step
from modules.training.trainer import Trainer, TrainSettings

CPU = torch.device("cpu")
CLIP = functools.cache(make_tiny_clip)
LENGTHS = (3, 4, 2)  # frames of the videos of a batch


def make_batch(labels=(NO_LABEL,) * 3):
    """Three videos, the first and the last of which are one."""
    return Batch(
        torch.arange(3),
        random_videos(3, 4),
        torch.tensor(LENGTHS),
        ["a", "b", "a"],
        ["a dog", "a cat", "two cats"],
        torch.tensor([5, 2**62, 5]),
        torch.tensor([7, 8, 9]),
        torch.tensor(labels),
        [],
    )


def make_task(name):
    if name == "retrieval":
        return RetrievalTask(None, None, mask_same_video=True, batch_size=4, num_workers=0)
    return RecognitionTask(None, None, ["run", "walk"], ["run", "walk"], ["{class}", "a {class}"], 4, 0)


def make_step(
    device,
    form="stop",
    task="retrieval",
    precision="fp32",
    processes=1,
    max_grad_norm=1.0,
    checkpoint_activations=False,
    accumulate=1,
    **settings,
):
    clip = replace(CLIP(), model=copy.deepcopy(CLIP().model))
    model = disturb(make_model(form, clip, **settings)).train()
    model.video_encoder.checkpoint_activations = checkpoint_activations
    if device == GPU:
        model = move_to_gpu(model)
    compute = Compute(Processes(0, processes, device), Precision(precision, device))
    return Step(model, make_task(task), compute, 1e-3, 0.2, max_grad_norm, 10, 0.1, accumulate)


def differentiate(step, **options):
    device = step.compute.processes.device
    batch = make_batch(labels=(0, 1, 1) if isinstance(step.task, RecognitionTask) else (NO_LABEL,) * 3)
    keys = torch.tensor([3, 4, 5]), torch.tensor([6])
    if device == GPU:
        batch, keys = batch.pin_memory(), [key.pin_memory() for key in keys]
    return step.differentiate(batch.to(device), *(key.to(device, non_blocking=True) for key in keys), **options)


CASES = {
    "joint": {"precision": "bf16"},
    "joint, once": {"prompting": "once", "merge_frames": "1", "max_grad_norm": 0.0},
    "frame": {"attention_scope": "frame", "checkpoint_activations": True},
    "frame, once": {"attention_scope": "frame", "prompting": "once", "merge_frames": "1,2"},
    "fp16": {"precision": "fp16"},
    "own prompters, classes": {"form": "stop_own", "task": "recognition"},
    "VoP": {"form": "vop", "num_joint_layers": 0, "merge_frames": "1"},
    "LSTM": {"form": "seqLSTM"},
    "pairs": {"form": "tightTransf"},
    **{form: {"form": form} for form in METHODS if form not in ("stop", "vop", "clip4clip", "zero_shot")},
    "in parts": {"form": "stop_own", "accumulate": 2},
    "fp16, classes in parts": {"form": "stop_own", "task": "recognition", "accumulate": 3, "precision": "fp16"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_reads_one_small_tensor_between_the_backward_pass_and_the_update(case):
    settings = {"precision": "fp32", "prompt_dropout": 0.2} | CASES[case]
    with pretend_gpu() as record:
        step = make_step(GPU, **settings)
        record.events.clear()
        before = []
        gradient = differentiate(step, meanwhile=lambda: before.extend(record.places("read")))
        (read,) = record.places("read")
        assert read.startswith("modules/training/step.py") and not before
        step.update(gradient.outcome)
        assert len(record.places("read")) == 1
        assert not record.places("wait")
    on_cpu = differentiate(make_step(CPU, **settings))
    assert gradient.outcome is on_cpu.outcome is Outcome.DONE
    tolerance = 1e-4 if settings["precision"] == "fp32" else 0.05
    assert (gradient.loss, gradient.norm) == pytest.approx((on_cpu.loss, on_cpu.norm), rel=tolerance)
    assert gradient.totals.keys() == on_cpu.totals.keys()
    if settings["precision"] == "fp32":
        for name, totals in on_cpu.totals.items():
            assert gradient.totals[name] == pytest.approx(totals, rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_whose_loss_is_no_number_is_read_once_and_measures_nothing(monkeypatch, precision):
    with pretend_gpu() as record:
        step = make_step(GPU, precision=precision)
        loss = step.task.loss
        monkeypatch.setattr(step.task, "loss", lambda *args: loss(*args) * math.nan)
        before = {name: value.clone() for name, value in step.model.trained_state().items()}
        record.events.clear()
        gradient = differentiate(step)
        assert gradient.outcome is Outcome.LOSS_NOT_FINITE and math.isnan(gradient.norm) and gradient.totals == {}
        assert len(record.places("read")) == 1
        scale = step.scaler.get_scale()
        step.update(gradient.outcome)
        assert step.scaler.get_scale() == scale
        assert all(torch.equal(value, before[name]) for name, value in step.model.trained_state().items())
        monkeypatch.undo()
        assert differentiate(step).outcome is Outcome.DONE  # the scaler has taken it for one step


@pytest.mark.parametrize("task", ["retrieval", "recognition"])
def test_processes_send_each_other_numbers_and_wait_no_more_for_their_devices(monkeypatch, task):
    def gather(gathered, rows):
        for part in gathered:
            part.copy_(rows)

    monkeypatch.setattr(dist, "all_gather", gather)  # as if the other had the same rows
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))
    monkeypatch.setattr(dist, "all_gather_object", lambda *args, **options: pytest.fail("an object was sent"))
    with pretend_gpu() as record:
        step = make_step(GPU, task=task, processes=2)
        record.events.clear()
        assert differentiate(step).outcome is Outcome.DONE
        assert len(record.places("read")) == 1 and not record.places("wait")


def test_a_caption_that_is_known_is_not_embedded_again_and_never_leaves_the_device():
    with pretend_gpu() as record:
        encoder = make_step(GPU).model.text_encoder
        record.events.clear()
        first = encoder(["a dog", "a cat"]).values
        copies = len(record.places("copy"))
        again = encoder(["a cat", "a dog", "a cat"]).values
        assert torch.equal(again, first[[1, 0, 1]])
        assert len(record.places("copy")) == copies == 1 and not record.places("read")
    encoder = make_model("stop").text_encoder
    before = encoder(["a dog"])
    assert encoder.double()(["a dog"]).dtype == torch.float64 and before.dtype == torch.float32


class Batches:
    """A loader of pinned batches that records what is asked of it."""

    dataset = SimpleNamespace(replace_bad=True)

    def __init__(self, count, record):
        self.count, self.record = count, record

    def __iter__(self):
        for number in range(self.count):
            self.record.append(f"batch {number + 1}")
            yield make_batch().pin_memory(), []


def test_the_next_batch_is_read_and_copied_by_another_stream_while_a_step_runs(tmp_path, monkeypatch):
    steps, order = 3, []
    with pretend_gpu() as record:
        step = make_step(GPU)
        step.task.training_set = range(3 * steps)
        settings = TrainSettings(epochs=1, batch_size=3, n_display=2)
        folder, identity = RunFolder(tmp_path, is_main=True), {"method": "stop"}
        trainer = Trainer(step.model, step.task, settings, step.compute, folder, identity, {}, Interruption())
        monkeypatch.setattr(trainer, "_save", lambda name: None)
        update = trainer.step.update
        monkeypatch.setattr(trainer.step, "update", lambda outcome: order.append("update") or update(outcome))
        backward = torch.Tensor.backward
        monkeypatch.setattr(torch.Tensor, "backward", lambda loss: order.append("backward") or backward(loss))
        record.events.clear()
        trainer._train_epoch(Batches(steps, order), epoch=0)
    assert order == [
        *("batch 1", "backward", "batch 2", "update", "backward", "batch 3", "update", "backward", "update")
    ]
    assert len(record.places("read")) == steps and not record.places("wait")
    (computing,) = {event.stream for event in record.events if event.kind == "read"}
    copies = [event for event in record.events if event.kind == "copy" and event.stream is not computing]
    assert {event.place.split(":")[0] for event in copies} == {"dataloaders/batches.py"}
    each = len(copies) // steps  # tensors of a batch
    kinds = [event.kind for event in record.events if event in copies or event.kind == "read"]
    assert each >= 1 and kinds == [*["copy"] * 2 * each, "read", *["copy"] * each, "read", "read"]


def test_a_batch_is_used_behind_its_copy_and_its_memory_is_kept():
    with pretend_gpu():
        ahead = Ahead(iter([make_batch().pin_memory()]), GPU)
        computing = torch.cuda.current_stream(GPU)
        batch = next(ahead)
        (copying,) = computing.waited_for
        assert copying is not computing
        for tensor in (batch.frames, batch.video_numbers, batch.caption_numbers, batch.labels):
            assert tensor.device == GPU and tensor.used_by == [computing]
        for tensor in (batch.indices, batch.num_frames):
            assert tensor.device == CPU


def test_what_goes_wrong_with_the_next_batch_is_raised_when_its_turn_comes():
    def batches():
        yield make_batch().pin_memory()
        raise UserError("a bad video")

    with pretend_gpu():
        ahead = Ahead(batches(), GPU)
        ahead.fetch()
        ahead.fetch()  # it is there
        next(ahead)
        ahead.fetch()
        with pytest.raises(UserError, match="a bad video"):
            next(ahead)
        with pytest.raises(StopIteration):
            next(ahead)


def test_an_error_keeps_no_loader_alive():
    class Loader:
        def __iter__(self):
            raise UserError("a bad video")
            yield

    loader = Loader()
    alive = weakref.ref(loader)
    gc.disable()
    try:
        with pretend_gpu():
            ahead = Ahead(iter(loader), GPU)
            with pytest.raises(UserError):
                next(ahead)
        del loader, ahead
        assert alive() is None
    finally:
        gc.enable()


def test_on_a_cpu_nothing_is_read_ahead():
    asked = []
    ahead = Ahead((asked.append(number) or make_batch() for number in range(3)), CPU)
    next(ahead)
    ahead.fetch()
    assert asked == [0]
    assert len(list(ahead)) == 2


# --- The GPU that is none sees what waits -----------------------------------------------------------------


WAITING = {
    "a number": lambda x, cpu: x.sum().item(),
    "a decision": lambda x, cpu: bool(x.sum() > 0),
    "a list": lambda x, cpu: x.cpu().tolist(),
    "a copy to the CPU": lambda x, cpu: torch.empty(4).copy_(x),
    "a mask": lambda x, cpu: x[x > 1],
    "a mask that is filled": lambda x, cpu: x.index_put((x > 1,), x.sum()),
    "places": lambda x, cpu: x.nonzero(),
    "a list as index": lambda x, cpu: x[[0, 2]],
    "an index of the CPU": lambda x, cpu: x[torch.tensor([0, 2])],
    "different repeats": lambda x, cpu: x.repeat_interleave(torch.arange(4, device=GPU)),
    "a new tensor": lambda x, cpu: torch.tensor([1.0], device=GPU),
    "a new number": lambda x, cpu: torch.as_tensor(3, device=GPU),
    "pageable memory": lambda x, cpu: cpu.to(GPU, non_blocking=True),
    "a part of pageable memory": lambda x, cpu: cpu[1:3].to(GPU, non_blocking=True),
    "a copy that is waited for": lambda x, cpu: cpu.pin_memory().to(GPU),
    "a copy into a tensor": lambda x, cpu: x.copy_(cpu),
}
PASSING = {
    "arithmetic": lambda x, cpu: (x @ x * 2 + torch.tensor(3.0)).relu(),
    "what is made there": lambda x, cpu: torch.arange(4, device=x.device) + torch.zeros_like(x),
    "an index of its own": lambda x, cpu: x[torch.arange(2, device=x.device)],
    "a slice": lambda x, cpu: x[1:3],
    "equal repeats": lambda x, cpu: x.repeat_interleave(3),
    "a mask as a factor": lambda x, cpu: torch.where(x > 1, x, 0.0).masked_fill(x > 2, 1.0),
    "another type": lambda x, cpu: x.double(),
    "page-locked memory": lambda x, cpu: cpu.pin_memory().to(GPU, non_blocking=True),
    "a part of page-locked memory": lambda x, cpu: cpu.pin_memory()[1:3].to(GPU, non_blocking=True),
    "the CPU's own": lambda x, cpu: cpu.sum().item() + cpu[cpu > 1].sum(),
}


@pytest.mark.parametrize("name", [*WAITING, *PASSING])
def test_what_waits_is_seen_and_nothing_else(name):
    with pretend_gpu() as record:
        x = torch.arange(4.0).pin_memory().to(GPU, non_blocking=True)
        record.events.clear()
        (WAITING | PASSING)[name](x, torch.arange(4.0))
        waited = [event for event in record.events if event.kind != "copy"]
    assert len(waited) == (name in WAITING)
