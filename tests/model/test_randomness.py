"""Draws belong to the sample: the same wherever and whenever they are made."""

import torch

from common.seeds import derive_seed
from modules.model.dropout import SampleDropout, fold_in, fold_in_each, row_seeds, uniform_bits


def test_seeds_depend_on_every_part():
    seeds = {derive_seed(*parts) for parts in [(1, 2), (2, 1), (1, "2"), (12,), (1, 2, 0), ("1", 2)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_sample_is_dropped_alike_alone_and_in_any_batch():
    dropout = SampleDropout(0.3).train()
    x, keys = torch.ones(4, 6, 50), torch.tensor([derive_seed(0, i) for i in range(4)])
    batch = dropout(x, keys)
    assert torch.equal(dropout(x[[2, 0]], keys[[2, 0]]), batch[[2, 0]])
    assert torch.equal(dropout(x, keys), batch)
    assert not torch.equal(batch[0], batch[1])
    assert not torch.equal(dropout(x, fold_in(keys, 1)), dropout(x, fold_in(keys, 2)))


def test_dropout_keeps_its_share_and_the_mean():
    keys = torch.tensor([derive_seed(1, i) for i in range(20)])
    out = SampleDropout(0.3).train()(torch.ones(20, 10_000), keys)
    # 200,000 draws: five standard deviations of the share are 0.005
    assert abs((out == 0).double().mean() - 0.3) < 0.005
    torch.testing.assert_close(out[out > 0], torch.full_like(out[out > 0], 1 / 0.7))
    per_element = (out == 0).double().mean(0)  # no position is always kept or dropped
    assert 0 < per_element.std() < 0.15


def test_bits_are_uniform_and_uncorrelated_between_neighbouring_keys_and_rows():
    bits = uniform_bits(row_seeds(fold_in(torch.arange(4), 3), 4), 20_001)
    assert bits.shape == (4, 4, 20_001)
    shares = (bits.flatten(0, 1).double() + 2**15) / 2**16  # in [0, 1)
    assert torch.all((shares.mean(1) - 0.5).abs() < 0.015)
    assert (torch.corrcoef(shares) - torch.eye(16)).abs().max() < 0.04
    shifted = torch.stack([shares[0, :-1], shares[0, 1:]])  # two elements share a hash
    assert torch.corrcoef(shifted)[0, 1].abs() < 0.04
    every_bit = ((bits.flatten().int()[:, None] >> torch.arange(16)) & 1).double()
    assert torch.all((every_bit.mean(0) - 0.5).abs() < 0.005)


def test_some_rows_are_dropped_as_they_are_among_all():
    dropout = SampleDropout(0.3).train()
    x, keys = torch.ones(3, 4, 6, 50), torch.tensor([derive_seed(2, i) for i in range(3)])
    everywhere = dropout(x, keys).flatten(1, 2)  # (3, 24, 50)
    rows = torch.tensor([[5, 0, 23], [7, 7, 8], [1, 2, 3]])
    some = dropout.keep(x[:, 0, :3], dropout.kept(row_seeds(keys, 24).gather(1, rows), x.shape[-1]))
    assert torch.equal(some, everywhere[torch.arange(3)[:, None], rows])
    assert not torch.equal(everywhere[0, 0], everywhere[0, 1])


def test_evaluation_drops_nothing():
    x = torch.randn(2, 3)
    assert torch.equal(SampleDropout(0.5).eval()(x, None), x)


def test_keys_folded_at_once_are_those_folded_one_by_one():
    keys = torch.tensor([derive_seed(3, i) for i in range(5)])
    at_once = fold_in_each(fold_in_each(keys, 3), 2)  # (3, 2, 5)
    for layer in range(3):
        for use in range(2):
            assert torch.equal(at_once[layer, use], fold_in(fold_in(keys, layer), use))
            assert torch.equal(row_seeds(at_once, 7)[layer, use], row_seeds(at_once[layer, use], 7))
