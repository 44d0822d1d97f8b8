"""What a step is said to hold is what PyTorch's allocator hands out, and a batch in parts holds less of it."""

import json
from dataclasses import replace

import open_clip
import pytest
import torch

from helpers.tiny import TINY_CONFIG, make_tiny_clip, save_clip_folder
from scripts.benchmark import long_videos
from scripts.benchmark.held import Held, handed_out, held_in
from scripts.benchmark.model import Setup, in_own_process, make_subject, peaks_of_training


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> Setup:
    folder = save_clip_folder(tmp_path_factory.mktemp("clip") / "clip", make_tiny_clip().model)
    return Setup(batch_size=8, num_frames=6, device="cpu", precision="fp32", threads=1, clip=folder)


def test_what_is_made_counts_until_nothing_needs_it():
    x = torch.ones(1000, requires_grad=True)
    with Held() as held:
        doubled = x * 2
        kept = doubled.view(10, 100).exp()  # a view is no memory; what exp makes it keeps for the gradient
        assert (held.given, held.now, held.most) == (4000, 8000, 8000)
        del doubled
        assert held.now == 4000
        total = kept.sum()
        del kept
        assert held.now == 4004
        total.backward()
        del total
        assert held.now == 4000 and x.grad is not None  # the gradient
    # what exp keeps, the sum, the sum's own gradient, and the product of exp's gradient
    assert held.most == 4000 + 4 + 4 + 4000


@pytest.mark.parametrize("more", [{}, {"checkpointed": True}, {"accumulate": 4}], ids=str)
def test_the_most_that_is_held_is_what_the_allocator_hands_out(setup, more):
    subject = make_subject("lora", setup.load_clip(), replace(setup, **more))
    subject.train()
    assert held_in(subject.train) == pytest.approx(handed_out(subject.train), rel=0.02)


def test_a_batch_in_parts_holds_as_much_less(setup):
    most = {}
    for parts in (1, 2, 4):
        most[parts] = held_in(make_subject("lora", setup.load_clip(), replace(setup, accumulate=parts)).train)
    assert most[2] < 0.6 * most[1] and most[4] < 0.35 * most[1]


@pytest.mark.slow
def test_a_batch_in_parts_takes_less_memory_of_a_process(tmp_path):
    """By the high-water mark of the process, of a CLIP that is wide enough for activations to be most of it."""
    vision = TINY_CONFIG["vision_cfg"] | {"image_size": 96, "width": 128, "layers": 6}
    config = TINY_CONFIG | {"vision_cfg": vision}
    clip = save_clip_folder(tmp_path / "clip", open_clip.CLIP(**config), config)
    setup = Setup(8, 12, "cpu", "fp32", threads=1, clip=clip)
    whole, parts = (in_own_process(peaks_of_training, ["lora"], replace(setup, accumulate=n))["lora"] for n in (1, 4))
    assert parts < 0.5 * whole


@pytest.mark.slow
def test_on_fake_tensors_the_count_is_that_on_real_ones_with_what_was_there(setup):
    rows = {"whole": ("lora", {}), "parts": ("lora", {"accumulate": 4})}
    whole, parts = long_videos.count(replace(setup, blank=True), rows)
    assert (whole["row"], parts["row"]) == ("whole", "parts")
    assert whole["flops"] < parts["flops"] < 2 * whole["flops"]
    subject = make_subject("lora", setup.load_clip(), setup)
    with Held() as held:
        subject.train()
        subject.train()
    assert whole["bytes"] == pytest.approx(held.given + held.most, rel=0.02)
    assert parts["bytes"] - held.given < 0.35 * held.most


def test_the_table_says_what_fits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(long_videos, "LIMIT", 3e9)
    counted = [{"row": "whole", "bytes": 4e9, "flops": 1e12}, {"row": "parts", "bytes": 2e9, "flops": 1.5e12}]
    of = {"batch_size": 8, "num_frames": 6, "precision": "fp32"}
    content = {
        "counted": counted,
        "checked": {"counted": 380_000_000, "handed_out": 390_000_000},
        "measured": {"seconds_ratio": 1.4, "memory_ratio": 0.3},
        "settings": {"counted": of | {"max_words": 32}, "checked": of, "measured": of},
    }
    record = tmp_path / "long_videos.json"
    record.write_text(json.dumps(content))
    long_videos.main(["--table", "--record", str(record)])
    printed = capsys.readouterr().out
    assert "| whole | 4.0 | no | 1.0 |" in printed and "| parts | 2.0 | yes | 1.5 |" in printed
    assert "takes 1.40 times the seconds of one without, and 0.30 times its peak memory" in printed
    assert "0.380 GB where PyTorch's allocator handed out 0.390." in printed and "The growth" not in printed
    # one video's memory, eight times
    table = long_videos.table(content, {"growth_mib.6": 1000.0, "precision": "fp32"})
    assert "1,000 MiB of resident memory for one video in fp32, 8 times that is 8 GB." in table
