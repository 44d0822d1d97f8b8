"""Gradients over two processes equal those of one, before and behind the gathering; order and shares of batches."""

import re
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist

from common.errors import UserError
from dataloaders.batches import GlobalBatches, check_batch_size
from modules.model.heads import CosineHead
from modules.model.video_text import VideoTextModel
from modules.runtime.processes import Processes
from modules.tasks.losses import symmetric_contrastive_loss
from modules.training.optimization import build_optimizer, warmup_cosine


def loss_and_gradients(processes, rows):
    """A contrastive loss with parameters before the gathering (weight) and behind it (scale)."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    scale = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    inputs = torch.randn(8, 4, dtype=torch.float64)
    targets = torch.randn(8, 3, dtype=torch.float64)
    videos = processes.gather_rows(inputs[rows] @ weight)
    loss = symmetric_contrastive_loss(scale * processes.gather_rows(targets[rows]) @ videos.T)
    loss.backward()
    processes.average_gradients([weight, scale])
    return loss.item(), weight.grad, scale.grad


def on_one_of_two(rank, port, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    loss, *gradients = loss_and_gradients(Processes(rank, 2, torch.device("cpu")), slice(4 * rank, 4 * rank + 4))
    statistics, count = torch.tensor([1.0, 2.0]) + rank, torch.tensor(7)
    Processes(rank, 2, torch.device("cpu")).average([statistics, count])
    assert statistics.tolist() == [1.5, 2.5] and count.item() == 7
    results.put((loss, *(gradient.tolist() for gradient in gradients)))  # a tensor would need its sender alive
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_have_the_gradients_of_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = [context.Process(target=on_one_of_two, args=(rank, port, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    loss, *gradients = loss_and_gradients(Processes(0, 1, torch.device("cpu")), slice(0, 8))
    for other_loss, *other_gradients in found:
        assert other_loss == pytest.approx(loss, abs=1e-12)
        for ours, theirs in zip(other_gradients, gradients, strict=True):
            torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), theirs, atol=1e-12, rtol=0)


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
