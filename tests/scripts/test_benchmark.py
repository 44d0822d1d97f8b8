"""The benchmark counts what torch counts, compares like with like, and says what it measured."""

import json
from copy import deepcopy
from dataclasses import replace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.methods import DEFAULT_FORMS, FORMS
from helpers.tiny import TINY_CONFIG, make_tiny_clip, save_clip_folder
from modules.methods import METHODS
from scripts.benchmark import benchmark, model, tables
from scripts.benchmark.counts import Counter, count_step
from scripts.benchmark.data import SOURCES, LoaderSetup, make_clips, make_samples, prepare
from scripts.benchmark.flops import count_flops
from scripts.benchmark.model import (
    FLOOR,
    ONCE,
    ONCE_MERGED,
    PER_LAYER,
    PER_LAYER_MERGED,
    SUBJECTS,
    TEXT,
    TEXT_OVER_PER_LAYER,
    PeakMemory,
    Setup,
    SlotsNotFilled,
    Subject,
    exponent,
    in_own_process,
    make_subject,
    ratios,
)


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> Setup:
    folder = save_clip_folder(tmp_path_factory.mktemp("clip") / "clip", make_tiny_clip().model)
    return Setup(batch_size=2, num_frames=5, device="cpu", precision="fp32", threads=1, clip=folder)


@pytest.mark.parametrize("name", SUBJECTS)
def test_flops_are_those_that_torch_counts(setup, name, monkeypatch):
    subject = make_subject(name, setup.load_clip(), setup)
    expected = count_flops(setup, [name])[name]
    # torch counts no attention on the CPU unless it is written out
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        subject.train()
    # torch takes the gradient of a depthwise kernel for one of C × C; in a CLIP as narrow as this that is little
    assert counter.get_total_flops() == pytest.approx(expected.train, rel=0.1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        subject.encode()
    assert counter.get_total_flops() == pytest.approx(expected.encode, rel=0.1)


def test_what_is_counted_are_calls_that_make_something():
    x, weight = torch.ones(4, 6, requires_grad=True), torch.ones(5, 6)
    with Counter() as counter:
        out = x.view(2, 2, 6).flatten(0, 1) @ weight.t()  # views, and a product
        out.relu().sum().backward()
    counts = counter.counts
    # mm, relu, sum, ones_like, threshold_backward, mm; the gradient of sum is a view
    assert counts.operations == 6
    assert counts.flops == 2 * (2 * 4 * 6 * 5)
    product, elements = 4 * 6 + 6 * 5 + 4 * 5, 4 * 5
    assert counts.bytes == 4 * (2 * product + 2 * elements + (elements + 1) + 2 + 3 * elements)
    volume, kernel = torch.ones(2, 8, 5, 3, 3), torch.ones(8, 1, 3, 3, 3)
    with Counter() as counter:
        F.conv3d(volume, kernel, padding=1, groups=8)
    assert counter.counts.flops == 2 * volume.numel() * 27


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Setup:
    """A CLIP as deep as ViT-B/32 and narrow: as many calls, of less."""
    torch.manual_seed(0)
    config = TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | {"layers": 12}}
    folder = save_clip_folder(tmp_path_factory.mktemp("deep") / "clip", open_clip.CLIP(**config), config)
    return Setup(2, 12, "cpu", "bf16", threads=1, clip=folder, blank=True)


SLOW = pytest.mark.slow  # one row tells whether something has come to a step; the others what


@pytest.mark.parametrize(
    ("name", "most"),
    [
        pytest.param(FLOOR, 615, marks=SLOW),
        pytest.param(ONCE, 965, marks=SLOW),
        (PER_LAYER, 3_785),
        pytest.param(ONCE_MERGED, 1_065, marks=SLOW),
        pytest.param(PER_LAYER_MERGED, 3_985, marks=SLOW),
    ],
)
def test_a_step_asks_for_no_more_calls_than_it_did(deep, name, most):
    found = count_step(make_subject(name, deep.load_clip(), deep)).operations
    assert 0.95 * most < found <= most


def test_every_slot_is_filled_before_anything_is_measured(setup):
    for name in (ONCE, PER_LAYER, ONCE_MERGED, PER_LAYER_MERGED):
        subject = make_subject(name, setup.load_clip(), setup)
        subject.check_slots()
        for _ in range(3):
            subject.train()
        subject.check_slots()
    with pytest.raises(SlotsNotFilled, match="3 of 4"):
        Subject(lambda: None, lambda: None, lambda: 3, 4).check_slots()


def test_a_ratio_compares_seconds_of_the_same_round():
    # the machine was twice as slow in the second round, and slowest in the third
    assert ratios({"floor": [1.0, 2.0, 3.0], "ours": [1.5, 3.0, 4.5]}, "floor")["ours"] == 1.5


def test_growth_is_a_power_of_the_length():
    assert exponent([12, 24, 48], [2 * length**1.5 for length in (12, 24, 48)]) == pytest.approx(1.5)
    # one that is off moves it a little
    assert exponent([12, 24, 48, 64], [12, 24, 48, 1.1 * 64]) == pytest.approx(1.05, abs=0.03)


def hold_and_let_go(mebibytes: int, pieces: int) -> list[float]:
    """Peak memory of two rounds that make and drop as much each, beside something that is held all the time."""
    held = torch.ones(mebibytes, 2**18)
    memory = PeakMemory("cpu")
    peaks = []
    for _ in range(2):
        memory.start()
        made = [held[: mebibytes // pieces] + 1 for _ in range(pieces)]
        peaks.append(memory.stop())
        del made
    return peaks


# small pieces come from memory that glibc does not give back by itself
@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 256])
def test_peak_memory_is_what_came_on_top(pieces):
    for peak in in_own_process(hold_and_let_go, 256, pieces):
        assert 250 < peak < 290


class NoMemory:
    """Measures none: what a process holds takes long to find out."""

    def __init__(self, device):
        self.start, self.stop = (lambda: None), (lambda: 1.0)


@pytest.fixture
def small_methods(tiny_clip, monkeypatch):
    """Every method at a size that fits the tiny CLIP, measured in this process."""
    for method, form in DEFAULT_FORMS.items():
        monkeypatch.setitem(model.MODELS, method, FORMS[form])
    monkeypatch.setattr(model, "MAX_WORDS", 12)
    monkeypatch.setattr(model, "PeakMemory", NoMemory)
    monkeypatch.setattr(model, "in_own_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(Setup, "load_clip", lambda self: replace(tiny_clip, model=deepcopy(tiny_clip.model)))


def test_every_method_is_measured_with_the_side_of_texts_where_that_trains(
    small_methods, monkeypatch, tmp_path, capsys
):
    models, optimizers, build, build_optimizer = [], [], model.build, model.build_optimizer
    monkeypatch.setattr(model, "build", lambda *a: models.append(build(*a)) or models[-1])
    monkeypatch.setattr(
        model, "build_optimizer", lambda *a, **k: optimizers.append(build_optimizer(*a, **k)) or optimizers[-1]
    )
    output = tmp_path / "benchmark.json"
    assert benchmark.main(["--methods", "all", "--quick", "--num_frames", "4", "--output", str(output)]) == 0
    results, printed = json.loads(output.read_text()), capsys.readouterr().out
    for name, method in METHODS.items():
        measured = {what for what in ("encode", "train_step", "peak_memory") if f"{what}_ratio.{name}" in results}
        assert measured == ({"encode", "train_step", "peak_memory"} if method.trains else {"encode"})
        assert f"| `--method {name}` | {results[f'encode_seconds.{name}']:.3f} |" in printed
    assert results["encode_seconds.floor"] > 0 and "growth_seconds.4" not in results
    # a step changes what trains on the side of the texts
    trained = [one for one in models if one.num_trainable() > 0]
    sides = [
        [parameter in optimizer.state for parameter in one.text_encoder.parameters() if parameter.requires_grad]
        for one, optimizer in zip(trained, optimizers, strict=True)
    ]
    assert all(map(all, sides)) and any(sides) and not all(sides)


def test_a_method_that_changes_clip_leaves_the_floor_as_it_is(small_methods, setup, monkeypatch):
    given, make_subject = {}, model.make_subject
    monkeypatch.setattr(
        model, "make_subject", lambda name, clip, setup: given.update({name: clip}) or make_subject(name, clip, setup)
    )
    for method in ("clip4clip", "bias"):
        model.measure_speed(replace(setup, num_frames=4), 1, (FLOOR, method))
        assert any(parameter.requires_grad for parameter in given[method].model.parameters())
        assert not any(parameter.requires_grad for parameter in given[FLOOR].model.parameters())


@pytest.mark.slow
def test_a_quick_run_prints_its_tables_and_writes_a_flat_object(setup, tmp_path, capsys):
    output = tmp_path / "benchmark.json"
    status = benchmark.main(["--quick", "--clip", str(setup.clip), "--ranks", "50", "--output", str(output)])
    printed = capsys.readouterr().out
    assert status == 0
    results = json.loads(output.read_text())
    assert all(isinstance(value, str | int | float | bool) for value in results.values())
    for name in ("device", "precision", "torch", "threads", "peak_memory_mib.floor", "growth_mib.8"):
        assert name in results
    assert benchmark.BARS.keys() - results.keys() == {TEXT_OVER_PER_LAYER}
    for name in (ONCE, PER_LAYER):
        # of ViT-B/32 no more than a little; of a CLIP as tiny as this one the prompters are the most
        assert results[f"train_step_ratio.{name}"] > 1
        assert f"| train_step_ratio.{name} | {results[f'train_step_ratio.{name}']:.2f} |" in printed
    # what is packed is decoded faster than what is not
    speeds = [results[f"loader_frames_per_second.{source}"] for source in ("packed_raw", "original")]
    assert speeds[0] > speeds[1]


def test_the_loader_is_measured_on_the_clips_that_are_good_and_long_enough(tmp_path):
    videos = tmp_path / "original"
    make_clips(videos, count=2, seconds=2)
    (videos / "clip0.mp4").rename(videos / "short.mp4")
    data = (videos / "clip1.mp4").read_bytes()
    (videos / "damaged.mp4").write_bytes(data[: len(data) // 2])
    prepare(videos, tmp_path)
    long_enough = LoaderSetup(num_frames=6, image_size=24, num_workers=1, batch_size=2, num_batches=1)
    for source in SOURCES:
        samples, _ = make_samples(videos, tmp_path, source, long_enough)
        assert {sample.path.stem for sample in samples} == {"short", "clip1"}
    with pytest.raises(benchmark.UserError, match="no good clip of 7 frames"):
        make_samples(videos, tmp_path, "original", LoaderSetup(7, 24, 1, 2, 1))


def test_what_was_measured_is_kept_when_the_rest_cannot_be(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "benchmark_model", lambda plan: {"train_step_ratio.once": 1.0})
    monkeypatch.setattr(benchmark, "benchmark_growth", lambda plan: {})
    monkeypatch.setattr(benchmark, "benchmark_counts", lambda: {})
    (tmp_path / "videos").mkdir()
    output = tmp_path / "benchmark.json"
    assert benchmark.main(["--videos", str(tmp_path / "videos"), "--output", str(output)]) == 1
    assert json.loads(output.read_text())["train_step_ratio.once"] == 1.0
    assert "compress_video.py ended" in capsys.readouterr().err


def test_all_that_is_wanted_is_measured_and_a_table_is_made_of_what_there_is():
    plans = {flags: benchmark.make_plan(benchmark.parse_arguments(flags.split())) for flags in ("", "--quick")}
    for flags, plan in plans.items():
        measured = {f"{what}_ratio.{name}" for what in ("encode", "train_step") for name in plan.subjects}
        measured |= {f"peak_memory_ratio.{name}" for name in plan.weighed} | {TEXT_OVER_PER_LAYER}
        assert benchmark.BARS.keys() <= measured, flags
    assert TEXT in plans[""].subjects and PER_LAYER in plans[""].subjects
    assert tables.RATIOS.keys() == benchmark.BARS.keys()
    row = "| training step, `once`, `--merge_frames 4,8` | {} | {} | ≤ 0.62 | {} |  |"
    cpu, gpu = {"train_step_ratio.once_merged": 0.5}, {"parts": {"benchmark": {"results": {}}}}
    assert row.format("", "0.50", "") in tables.bars(cpu) and row.format("", "", "") in tables.bars({}, gpu)
    gpu["parts"]["benchmark"]["results"] = {"train_step_ratio.once_merged": 0.7}
    cpu |= {"train_step_tflop.once_merged": 3.0, "train_step_tflop.floor": 4.0}
    assert row.format("0.75", "0.50", "0.70") in tables.bars(cpu, gpu)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "0"], "at least 1"),
        (["--num_frames", "1"], "at least 2"),
        (["--methods", "vop,clip"], "--methods clip: no such method; there are stop, zero_shot"),
        (["--videos", "/nowhere"], "no such folder"),
        (["--output", "/nowhere/benchmark.json"], "its folder is not there"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_arguments(flags)
    assert message in capsys.readouterr().err
