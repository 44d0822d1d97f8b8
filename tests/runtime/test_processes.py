"""Gradients over two processes equal those of one, before and behind the gathering; order and shares of batches."""

import os
import re
import socket
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from common.errors import UserError
from dataloaders.batches import NO_LABEL, GlobalBatches, check_batch_size, collate
from dataloaders.items import Item
from dataloaders.samples import Sample
from modules.model.heads import CosineHead
from modules.model.video_text import VideoTextModel
from modules.runtime.processes import Processes, start_processes, stop_processes
from modules.runtime.whereabouts import Whereabouts
from modules.tasks.losses import symmetric_contrastive_loss
from modules.training.accumulation import Rows, backward_in_parts
from modules.training.optimization import build_optimizer, warmup_cosine


def loss_and_gradients(processes, rows, parts=0):
    """A contrastive loss with parameters before the gathering (weight) and behind it (scale); in parts where wanted."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    scale = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    inputs = torch.randn(8, 4, dtype=torch.float64)
    targets = torch.randn(8, 3, dtype=torch.float64)

    def loss_of(videos):
        videos = processes.gather_rows(videos)
        return symmetric_contrastive_loss(scale * processes.gather_rows(targets[rows]) @ videos.T)

    if parts:
        videos = Rows(rows.stop - rows.start, lambda part: inputs[rows][part] @ weight)
        loss = backward_in_parts([videos], parts, loss_of)
    else:
        loss = loss_of(inputs[rows] @ weight)
        loss.backward()
    processes.average_gradients([weight, scale])
    return loss.item(), weight.grad, scale.grad


def on_one_of_two(rank, port, results):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = start_processes()
    share = slice(4 * rank, 4 * rank + 4)
    found = [loss_and_gradients(processes, share, parts) for parts in (0, 3)]  # whole, and in parts
    statistics, count = torch.tensor([1.0, 2.0]) + rank, torch.tensor(7)
    processes.average([statistics, count])
    assert statistics.tolist() == [1.5, 2.5] and count.item() == 7
    assert processes.gather_rows(torch.tensor([[rank, 2**62 + rank]])).tolist() == [[0, 2**62], [1, 2**62 + 1]]
    assert processes.gather_list([f"video{rank}"]) == ["video0", "video1"]
    assert processes.broadcast_object(rank) == 0 and processes.add_up(rank, 5) == [1, 10]
    waited = wait_too_long(processes)
    found = [(loss, *(gradient.tolist() for gradient in gradients)) for loss, *gradients in found]
    results.put((found, waited))  # a tensor would need its sender alive
    dist.barrier()
    stop_processes(processes)


def wait_too_long(processes, patience=1.0):
    """What the first process says of the second, which does not come; None of the second."""
    control = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience))
    whereabouts = Whereabouts(processes.store, processes.rank, 2, every=0.1)
    others = replace(processes, control=control, whereabouts=whereabouts, patience=patience)
    try:
        if processes.rank == 0:
            while "slow.mp4" not in whereabouts.describe_late():
                whereabouts.come_together()
                time.sleep(0.1)
            with pytest.raises(UserError) as raised:
                others.add_up(1)
            processes.store.set("enough", "")
            return str(raised.value)
        with others.reading(lambda: ("videos/slow.mp4", 83.0)):
            while not processes.store.check(["enough"]):
                time.sleep(0.1)
    finally:
        whereabouts.stop()


@pytest.fixture(scope="module")
def two_processes():
    """Of each of two processes: loss and gradients of weight and scale, whole and in parts; and what it says after it
    has waited too long."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = [context.Process(target=on_one_of_two, args=(rank, port, results), daemon=True) for rank in range(2)]
    for worker in workers:
        worker.start()
    found, deadline = [], time.monotonic() + 120
    while len(found) < len(workers):
        assert not any(worker.exitcode for worker in workers) and time.monotonic() < deadline
        if results.empty():
            time.sleep(0.05)
        else:
            found.append(results.get())
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    return found


@pytest.mark.parametrize("in_parts", [False, True])
def test_two_processes_have_the_gradients_of_one(two_processes, in_parts):
    loss, *gradients = loss_and_gradients(Processes(0, 1, torch.device("cpu")), slice(0, 8))
    for found, _ in two_processes:
        other_loss, *other_gradients = found[in_parts]
        assert other_loss == pytest.approx(loss, abs=1e-12)
        for ours, theirs in zip(other_gradients, gradients, strict=True):
            torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), theirs, atol=1e-12, rtol=0)


def test_a_process_that_has_waited_too_long_says_for_whom_and_for_which_video(two_processes):
    (message,) = [waited for _, waited in two_processes if waited is not None]
    assert message.startswith(
        "waited 1 s for process 1 of 2, which has been reading videos/slow.mp4 for 1 min 23 s. Look at"
    )
    assert "--video_time_limit" in message


def test_who_is_late_is_told_from_who_is_not():
    """Of four processes the first asks; the second has come, the third has not, and of the fourth nothing is known."""
    store = dist.HashStore()
    told = [Whereabouts(store, rank, 4, every=0.01) for rank in range(3)]
    for rank in (0, 0, 1, 1, 2):
        told[rank].come_together()
    deadline = time.monotonic() + 10
    while (text := told[0].describe_late()).count("nothing was heard") > 1 or "process 1" in text:
        assert time.monotonic() < deadline, text
        time.sleep(0.01)
    for one in told:
        one.stop()
    assert text == "process 2 of 4, which reads no video; process 3 of 4, of which nothing was heard"


def test_a_gpu_has_a_group_of_its_own_and_messages_another_with_the_same_patience(monkeypatch):
    groups = []
    device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: groups.append(device))
    monkeypatch.setattr("modules.runtime.processes.rendezvous", lambda url: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: groups.append((backend, options)))
    monkeypatch.setattr(dist, "new_group", lambda **options: options)
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    processes = start_processes(patience=77.0)
    processes.whereabouts.stop()
    chosen, (backend, options) = groups
    assert chosen == device and backend == "nccl" and options["device_id"] == device
    assert processes.control == {"backend": "gloo", "timeout": timedelta(seconds=77)}
    assert options["timeout"] == timedelta(seconds=77)


def test_messages_go_by_the_group_for_them(monkeypatch):
    asked = []
    for name in ("all_gather_object", "broadcast_object_list", "all_reduce"):
        monkeypatch.setattr(dist, name, lambda *args, name=name, group=None, **options: asked.append((name, group)))
    processes = Processes(0, 2, torch.device("cuda", 0), control="gloo")
    processes.gather_objects([])
    processes.broadcast_object(1)
    assert processes.add_up(2, 3) == [2, 3]  # of the CPU: of a GPU there is none
    assert asked == [("all_gather_object", "gloo"), ("broadcast_object_list", "gloo"), ("all_reduce", "gloo")]


def test_the_shares_of_the_ranks_make_the_batches_of_one_process():
    whole = GlobalBatches(23, 6, seed=1, rank=0, world_size=1)
    shares = [GlobalBatches(23, 6, seed=1, rank=rank, world_size=3) for rank in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert batch == [key for part in parts for key in part]
    assert len(whole) == 3
    seen = [index for batch in whole for _, index in batch]
    assert len(set(seen)) == 18  # the last incomplete batch is dropped
    whole.start_at(epoch=1, first_batch=2)
    later = list(whole)
    whole.start_at(epoch=1)
    assert later == list(whole)[2:] and len(later) == 1
    assert [index for batch in whole for _, index in batch] != seen


def test_numbers_of_a_batch_are_equal_where_videos_and_captions_are():
    videos, captions, labels = ["a", "b", "a", "ab"], ["x", "x", "X", "a"], [1, 0, 2, None]
    frames = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    items = [
        Item(index, Sample(f"s{index}", video, Path("v.mp4"), (caption,), label), caption, frames, 1)
        for index, (video, caption, label) in enumerate(zip(videos, captions, labels, strict=True))
    ]
    batch, _ = collate(items)
    for names, numbers in ((videos, batch.video_numbers), (captions, batch.caption_numbers)):
        expected = [[one == other for other in names] for one in names]
        assert (numbers[:, None] == numbers).tolist() == expected
    # wherever the item stands, since processes hold different ones
    assert torch.equal(collate(items[::-1])[0].video_numbers.flip(0), batch.video_numbers)
    assert batch.labels.tolist() == [1, 0, 2, NO_LABEL]


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="found 6 for 4"):
        GlobalBatches(23, 6, seed=1, rank=0, world_size=4)
    with pytest.raises(UserError, match="5 samples, fewer than one batch of 6"):
        GlobalBatches(5, 6, seed=1, rank=0, world_size=1)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "nearest"),
    [(128, 3, "126 and 129 are"), (7, 4, "4 and 8 are"), (2, 3, "3 is"), (0, 4, "4 is"), (-5, 2, "2 is")],
)
def test_a_batch_that_cannot_be_shared_names_the_nearest_that_can(batch_size, world_size, nearest):
    with pytest.raises(UserError, match=f"found {batch_size} for {world_size}; {nearest} the nearest"):
        check_batch_size(batch_size, world_size)
    for number in map(int, re.findall(r"\d+", nearest)):
        check_batch_size(number, world_size)
        between = range(min(number, batch_size) + 1, max(number, batch_size))
        assert number >= 1 and not [n for n in between if n >= 1 and n % world_size == 0]


def test_the_rate_rises_over_the_warm_up_then_falls_as_a_cosine_to_zero():
    factors = [warmup_cosine(step, 100, 0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0 and factors[55] == pytest.approx(0.5) and factors[100] == pytest.approx(0)
    assert np.all(np.diff(factors[10:]) < 0)
    assert warmup_cosine(0, 3, 0.1) == 1.0  # too few steps to warm up


def test_biases_and_normalisations_do_not_decay_and_factors_scale_the_rate():
    linear, norm = torch.nn.Linear(2, 3), torch.nn.LayerNorm(3)
    model = VideoTextModel(linear, torch.nn.Sequential(norm), CosineHead(1.0), rates=[(norm, 0.01)])
    parameters = [linear.weight, linear.bias, norm.weight, norm.bias]
    optimizer = build_optimizer(model.how_parameters_train(), lr=0.5, weight_decay=0.2)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    expected = [(0.5, 0.2), (0.5, 0.0), (0.005, 0.0), (0.005, 0.0)]
    assert [found[id(p)] for p in parameters] == expected
    assert all(g["betas"] == (0.9, 0.98) and g["eps"] == 1e-6 for g in optimizer.param_groups)
