"""The study of merged frames: what it runs, what it compares with what, what a step takes, its tables and picture."""

import io
import itertools
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path as Line
from matplotlib.transforms import Bbox
from PIL import Image

from common.errors import UserError
from common.files import lock_folder
from helpers.paths import ROOT
from helpers.tiny import random_videos
from modules.methods.base import parse_layers
from modules.methods.stop.stop import build
from scripts.benchmark.flops import floor_flops, stop_flops
from scripts.benchmark.model import Setup, make_floor
from scripts.studies import choices, costs, merging, merging_picture, runner
from scripts.studies.costs import MAX_WORDS, arguments_of, make_subject, measure_costs, toy_clip
from scripts.studies.labels import nearest_in, place_labels
from scripts.studies.merging_curve import FEWER, POINTS, UNMERGED, all_runs, beside, beside_fewer
from scripts.studies.merging_picture import FAMILIES, draw, picture, plotted
from scripts.studies.runner import FRAMES, LEVELS, made_of, plan_of, quick_places, read_record, study, write_record

PLACES = quick_places(Path("nowhere"), Path("nowhere") / "record.json")
MERGED = next(point for point in POINTS if point.merge_frames == "1,2" and point.frames == FRAMES)
RATIOS = {FEWER[0]: 0.4, FEWER[1]: 0.7, UNMERGED: 1.0, MERGED: 0.55}


def a_result(run, value):
    metrics = {"t2v_R1": value, "motion_accuracy": 90.0}
    named = {"level": run.level, "name": run.name, "frames": run.frames, "seed": run.seed}
    return {**named, "made_of": {}, "metrics": metrics}


def record_of(values, ratios=RATIOS):
    """A record of events: R@1 of points, one a seed from the first on, and seconds over those of the unmerged."""
    runs = [(point.run("events", seed + 1), value) for point in values for seed, value in enumerate(values[point])]
    by_name = {point.cost_key: ratio for point, ratio in ratios.items()}
    costs = {
        "batch_size": 36,
        "seconds": {name: 2 * ratio for name, ratio in by_name.items()},
        "ratio": by_name,
        "gigaflops": {name: 50 * ratio for name, ratio in by_name.items()},
        "vit_b32_teraflops": {"12 frames": 0.4, "once": 0.1},
    }
    return {run.key: a_result(run, value) for run, value in runs} | {"costs": costs}


def full_record(spread):
    """All runs of all points, whose seconds and R@1 lie within so much."""
    rng = random.Random(0)
    ratios = {point: 1 - spread * rng.random() for point in POINTS}
    record = record_of({}, ratios)
    record["costs"]["ratio"]["floor"] = 1 - spread
    return record | {run.key: a_result(run, 60 + 60 * spread * (rng.random() - 0.5)) for run in all_runs()}


def test_every_point_is_trained_on_both_levels_with_five_seeds_all_of_a_seed_before_the_next():
    runs = list(all_runs())
    assert len({run.key for run in runs}) == len(runs)
    trained = [run for run in runs if run.trains]
    wanted = {(level, point.name, point.frames, seed) for level in LEVELS for point in POINTS for seed in range(1, 6)}
    assert {(run.level, run.name, run.frames, run.seed) for run in trained} == wanted
    assert [run.seed for run in trained] == sorted(run.seed for run in trained)
    assert {run.level for run in runs if run.name == "zero-shot" and run.frames == FRAMES} == set(LEVELS)


def test_no_two_points_are_one_setting():
    settings = [made_of(point.run("events", 1), PLACES) for point in POINTS]
    assert all(one != other for one, other in itertools.combinations(settings, 2))
    assert {setting["epsilon"] for setting in settings} == {settings[0]["epsilon"]}
    asked = {(s["max_frames"], s["merge_frames"], s["prompt_layers"], s["prompting"]) for s in settings}
    for merge in ("", "1", "2", "3", "1,2", "2,3", "1,2,3"):
        assert (8, merge, "", "per_layer") in asked
    for prompt, merge in (("0,2", ""), ("1,3", ""), ("0,2", "2")):
        assert (8, merge, prompt, "per_layer") in asked
    assert {(4, "", "", "per_layer"), (6, "", "", "per_layer"), (8, "", "", "once")} <= asked
    assert any(frames == 16 and merge for frames, merge, *_ in asked)


def test_runs_of_the_other_study_are_the_same_runs():
    others = {run.key: run for run in choices.all_runs()}
    shared = [run for run in all_runs() if run.key in others]
    assert all(made_of(run, PLACES) == made_of(others[run.key], PLACES) for run in shared)
    keys = {f"{level}/defaults/frames8/seed{seed}" for level in LEVELS for seed in choices.SEEDS}
    keys |= {f"events/defaults/frames{frames}/seed{seed}" for frames in (4, 6) for seed in choices.SEEDS}
    assert {run.key for run in shared} == keys | {"events/zero-shot/frames8/seed1"}


def test_layers_read_as_many_frames_as_is_said():
    clip = toy_clip()
    for point in POINTS:
        model = build(clip, arguments_of(point.run("events", 1)).method_settings, point.frames, MAX_WORDS).eval()
        videos, lengths = random_videos(1, point.frames, clip.image_size), torch.tensor([point.frames])
        with torch.no_grad():
            layers = model.encode_video(videos, lengths, return_details=True)["layers"]
        prompted = (0,) if point.prompting == "once" else parse_layers(point.prompt_layers) or range(merging.LAYERS)
        assert [layer["frame_sizes"].shape[1] for layer in layers] == [point.frames_by_layer[at] for at in prompted]


def test_frames_are_compared_at_equal_work():
    work = {point: sum(point.frames_by_layer) for point in POINTS}
    assert work[MERGED] == work[FEWER[0]]
    assert {work[point] for point in POINTS if point.merge_frames == "2"} == {work[FEWER[1]]}
    assert {work[point] for point in POINTS if point.frames == 2 * FRAMES} == {work[UNMERGED]}


def test_a_difference_is_that_of_runs_of_one_seed():
    record = record_of({UNMERGED: [10.0, 20.0, 30.0], MERGED: [12.0, 24.0]})
    assert beside(record, "events", MERGED) == [2.0, 4.0]
    assert beside(record, "motions", MERGED) == []
    # mean 3, standard deviation √2, of two seeds
    assert "| merge 1, 2 | 2 | 18.0 ± 6.0 | +3.0 ± 1.0 |  | 0.55, 0.55 | 90.0 ± 0.0 |" in merging.tables(record)


def test_fewer_frames_are_read_off_at_the_points_seconds():
    values = {UNMERGED: [0.0, 0.0], FEWER[0]: [40.0, 20.0], FEWER[1]: [20.0, 10.0], MERGED: [50.0, 50.0]}
    # halfway between four frames and six
    assert beside_fewer(record_of(values), "events", MERGED) == pytest.approx([20.0, 35.0])
    at_six = record_of(values, RATIOS | {MERGED: 0.7})
    assert beside_fewer(at_six, "events", MERGED) == pytest.approx([30.0, 40.0])
    for beyond in (0.3, 1.2):
        assert beside_fewer(record_of(values, RATIOS | {MERGED: beyond}), "events", MERGED) == []
    just_beyond = record_of(values, RATIOS | {MERGED: 1.01})
    assert beside_fewer(just_beyond, "events", MERGED) == pytest.approx([50.0, 50.0])
    of_one_seed = record_of(values | {FEWER[1]: [20.0]})
    assert beside_fewer(of_one_seed, "events", MERGED) == pytest.approx([20.0])


def test_tables_leave_out_what_is_missing():
    text = merging.tables(record_of({UNMERGED: [10.0], MERGED: [12.0]}))
    assert "| 8 frames | 1 | 10.0 |  |  |" in text and "| merge 1, 2 | 1 | 12.0 | +2.0 |" in text
    assert "once | 1" not in text and "frozen CLIP" not in text
    assert "| merge 1, 2 | 8·4·2·2 | all | 1.10 | 0.55 | 27.5 | 0.55 |" in text
    assert "| once | 0.10 | 0.25 |" in text
    without = merging.tables({})
    assert without.count("\n|---|") == len(LEVELS) and "| 8 frames |" not in without


def test_seconds_are_those_of_steps_in_turns(monkeypatch):
    monkeypatch.setattr(costs, "gigaflops", lambda subject: 1.0)
    monkeypatch.setattr(costs, "in_turns", lambda calls, rounds, device: {name: [2.0, 4.0] for name in calls})
    runs = {point.cost_key: point.run("events", 1) for point in (UNMERGED, MERGED)}
    found = measure_costs(runs, UNMERGED.cost_key, batch_size=1, rounds=2, count=True)
    assert found["ratio"] == dict.fromkeys([*runs, "floor"], 1.0) and set(found["gigaflops"]) == {*runs, "floor"}
    assert found["seconds"] == dict.fromkeys([*runs, "floor"], 3.0)
    monkeypatch.undo()
    make_subject(runs[MERGED.cost_key], batch_size=1).train()  # what takes its turn can be done


@pytest.mark.slow
def test_flops_are_counted_attention_and_all():
    clip, setup = toy_clip(), Setup(1, FRAMES, "cpu", "fp32", 1)
    for point in (UNMERGED, MERGED):
        run = point.run("events", 1)
        expected = stop_flops(build(clip, arguments_of(run).method_settings, FRAMES, MAX_WORDS), setup).train / 1e9
        found = costs.gigaflops(make_subject(run, batch_size=1))
        assert found == pytest.approx(expected, rel=0.07)
    found = costs.gigaflops(make_floor(clip, setup))
    assert found == pytest.approx(floor_flops(clip, setup).train / 1e9, rel=0.01)


@pytest.mark.slow
def test_flops_of_vit_b32_are_those_of_the_formula():
    found = costs.vit_teraflops()
    setup = Setup(1, 12, "cpu", "fp32", 1, blank=True)
    clip = setup.load_clip()
    for name, (settings, frames) in costs.VITS.items():
        model = build(clip, costs.StopSettings(**settings), frames, MAX_WORDS)
        expected = stop_flops(model, replace(setup, num_frames=frames)).train / 1e12
        assert found[name] == pytest.approx(expected, rel=0.07)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A study whose runs and steps take no time."""
    monkeypatch.setattr(runner, "make_files", lambda level, places: None)
    result = lambda run, places: a_result(run, 50.0) | {"made_of": made_of(run, places)}  # noqa: E731
    monkeypatch.setattr(runner, "execute", result)
    measured = record_of({})["costs"]
    monkeypatch.setattr(merging, "measure_costs", lambda runs, base, batch_size, rounds, count: dict(measured))
    monkeypatch.setattr(merging, "vit_teraflops", lambda: {"12 frames": 0.3})
    return quick_places(tmp_path, tmp_path / "record.json")


def test_seconds_stand_beside_the_runs_and_stay_there(places):
    runs = [point.run("events", 1) for point in POINTS[:3]]
    assert study(places, runs[:1], jobs=1)
    merging.measure(places, (), False)
    assert set(read_record(places.record)) == {runs[0].key, "costs"}
    assert read_record(places.record)["costs"]["vit_b32_teraflops"] == {"12 frames": 0.3}
    assert study(places, runs, jobs=1)
    record = read_record(places.record)
    assert set(record) == {*(run.key for run in runs), "costs"}
    assert [run["name"] for run in runner.runs_of(record, "events", "defaults", FRAMES)] == ["defaults"]
    with lock_folder(places.runs), pytest.raises(BlockingIOError):
        merging.measure(places, (), True)


def test_a_quick_study_measures_and_draws_too(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    merging.main(["--quick", "--jobs", "1"])
    folder = tmp_path / "runs" / "study_merging_quick"
    assert (folder / "merging_toy.png").is_file()
    record = read_record(folder / "record.json")
    assert "costs" in record
    names = {run["name"] for key, run in record.items() if key != "costs"}
    assert {"zero-shot", "defaults", "merged 1, 2", "prompted 0, 2 merged 2"} == names
    before = (folder / "record.json").stat().st_mtime_ns
    capsys.readouterr()
    merging.main(["--quick", "--picture"])
    assert capsys.readouterr().out == f"wrote {folder / 'merging_toy.png'}\n"
    assert (folder / "record.json").stat().st_mtime_ns == before


def test_a_study_says_what_it_will_do():
    runs = list(all_runs())
    text = plan_of(runs, runs[10:], replace(PLACES, more=()), jobs=2)
    assert text.startswith(f"10 of {len(runs)} runs are done")
    assert "to be done, in this order: seed 1: 24, seed 2: 32, seed 3: 32" in text
    assert "152 trainings, some 2.5 to 5.1 hours, 2 at a time" in text
    assert "hours" not in plan_of(runs, runs, PLACES, jobs=2)  # of a step each


@pytest.mark.parametrize("spread", [1.0, 0.3, 0.0])
def test_labels_cover_neither_each_other_nor_a_point(spread):
    record = full_record(spread)
    figure = draw(record)
    renderer = figure.canvas.get_renderer()
    for level, axes in zip(LEVELS, figure.axes, strict=True):
        points = plotted(record, level)
        labels = [text.get_window_extent(renderer) for text in axes.texts]
        assert len(points) == len(labels) == 1 + len(POINTS)
        inside = axes.get_window_extent()
        for box in labels:
            assert inside.x0 <= box.x0 and inside.y0 <= box.y0 and box.x1 <= inside.x1 and box.y1 <= inside.y1
        assert not any(one.overlaps(other) for one, other in itertools.combinations(labels, 2))
        for point in points:
            x, y = axes.transData.transform((point.seconds, point.accuracy))
            half = FAMILIES[point.family][1] * figure.dpi / 72 / 2
            marker = Bbox.from_extents(x - half, y - half, x + half, y + half)
            assert not any(marker.overlaps(box) for box in labels), point.label


def test_a_label_without_a_line_is_nearest_to_its_own_point_and_covers_no_slanted_line():
    rng = random.Random(2)
    points = [(rng.uniform(300, 700), rng.uniform(300, 700)) for _ in range(25)]
    slanted = [((0, 250), (1000, 800)), ((200, 900), (700, 100))]
    figure = Figure(figsize=(10, 10), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1000), ylim=(0, 1000))  # a pixel a unit
    place_labels(axes, points, [f"point {number}" for number in range(25)], 8, slanted)
    led = [tuple(line.get_xydata()[0]) for line in axes.get_lines()]
    without = 0
    for text in axes.texts:
        box, own = text.get_window_extent(), points[int(text.get_text().split()[1])]
        assert not any(Line(line).intersects_bbox(box) for line in slanted)
        if own not in [pytest.approx(start) for start in led]:
            without += 1
            assert min(points, key=lambda point: nearest_in(box, point)[1]) == own
    assert led and without


def test_a_label_stays_near_its_point_where_there_is_room():
    rng = random.Random(1)
    points = [(rng.uniform(100, 900), rng.uniform(100, 900)) for _ in range(30)]
    figure = Figure(figsize=(10, 10), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1000), ylim=(0, 1000))  # a pixel a unit
    place_labels(axes, points, [f"point {number}" for number in range(30)], size=8)
    for text, point in zip(sorted(axes.texts, key=lambda text: int(text.get_text().split()[1])), points, strict=True):
        box = text.get_window_extent()
        assert math.dist(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2), point) < 120


def test_the_picture_leaves_out_what_is_missing_and_says_when_there_is_nothing():
    record = record_of({UNMERGED: [10.0, 14.0], MERGED: [12.0], POINTS[-1]: [9.0]})
    points = {point.label: point for point in plotted(record, "events")}
    assert set(points) == {"8 frames", "merge 1, 2"} and plotted(record, "motions") == []
    assert (points["8 frames"].accuracy, points["8 frames"].error) == (12.0, pytest.approx(2.0))
    assert (points["merge 1, 2"].seconds, points["merge 1, 2"].error) == (0.55, 0)
    assert picture(record).startswith(b"\x89PNG")
    for nothing in ({}, {"costs": record["costs"]}, {k: v for k, v in record.items() if k != "costs"}):
        with pytest.raises(UserError, match=r"nothing to draw.*--time"):
            draw(nothing)


def test_families_differ_without_colour():
    assert {point.family for point in POINTS} | {"frozen"} == set(FAMILIES)
    assert len({marker for marker, *_ in FAMILIES.values()}) == len(FAMILIES)
    greys = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b, _ in merging_picture.COLOURS.values()]
    assert all(later - one > 0.06 for one, later in itertools.pairwise(greys))


def test_the_picture_is_small_and_of_what_was_measured():
    assert len(picture(full_record(1.0))) < 150_000
    drawn = ROOT / "docs" / "pictures" / "merging_toy.png"
    record = runner.read_records([choices.RECORD, merging.RECORD])
    with Image.open(drawn) as image:
        assert image.text["Source"] == merging_picture.digest(record), "bash scripts/merge_toy.sh --picture"
    assert drawn.stat().st_size < 150_000


def test_a_picture_of_other_runs_is_another(tmp_path):
    one = record_of({UNMERGED: [10.0], MERGED: [12.0]})
    other = record_of({UNMERGED: [10.0], MERGED: [12.5]})
    found = [merging_picture.digest(record) for record in (one, other)]
    assert found[0] != found[1]
    write_record(tmp_path / "record.json", one)
    again = read_record(tmp_path / "record.json")
    assert Image.open(io.BytesIO(picture(again))).text["Source"] == found[0]
