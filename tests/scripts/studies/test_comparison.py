"""The controlled comparison: what it trains, how rates are chosen, that it goes on, its table, picture and counts."""

import json
import time
from collections import Counter
from dataclasses import asdict, replace
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation

from common.errors import UserError
from helpers.runs import rows_of
from modules.clip.loader import LoadedCLIP
from modules.methods import METHODS
from modules.methods.prompts.vpt import VptVideo
from modules.program.build import build_model
from preprocess.make_toy_dataset import DatasetSettings, make_dataset
from preprocess.pretrain_toy_clip import build_model as build_clip
from preprocess.pretrain_toy_clip import build_tokenizer
from preprocess.toy.events import LEVELS as TOY_LEVELS
from scripts.studies import comparison, costs, runner
from scripts.studies.comparison import CONTROLS, HELD_OUT, QUICK, ROWS, Plan, compare, say_plan, tables
from scripts.studies.comparison_picture import FAMILIES, draw, make_figure
from scripts.studies.flops import video_gigaflops
from scripts.studies.runner import (
    FRAMES,
    LEVELS,
    STEP,
    arguments_of,
    quick_places,
    read_record,
    trainings_of,
    write_lists,
)

PLAN = Plan()
TRAINED = [name for name, row in ROWS.items() if row.trains]
SECOND = dict.fromkeys(TRAINED, PLAN.rates[1])  # as if every row's rate were the second
PLACES = quick_places(Path("nowhere"), Path("nowhere") / "record.json")


def row_of(run):
    return run.name.split(", ")[0]


def arguments(name):
    return arguments_of(PLAN.run(name, SECOND.get(name), LEVELS[0], seed=1), PLACES)


def toy_model(name):
    """A row's model around a CLIP of the toy CLIP's size."""
    clip = LoadedCLIP(build_clip().requires_grad_(False), build_tokenizer(), (0.5,) * 3, (0.5,) * 3)
    given = arguments(name)
    common = given.common
    return build_model(given.method, given.method_settings, clip, common.max_frames, common.max_words, seed=0).eval()


def a_result(run, r1=50.0):
    """What a run would find."""
    found = {
        "metrics": {"t2v_R1": r1, "motion_accuracy": r1 + 1, "trainable_parameters": 1234},
        "shuffled": {"t2v_R1": r1 / 10, "motion_accuracy": 17.0},
        "validation": {"t2v_R1": r1},
    }
    named = {"level": run.level, "name": run.name, "frames": run.frames, "seed": run.seed, "clip": run.clip}
    flops = 0.2 if row_of(run) == "zero_shot" else 0.6
    measured = {"peak_memory_mb": 1000.4 + run.seed, "video_gigaflops": flops, "minutes": 3.0}
    return named | {name: found[name] for name in run.evaluated} | measured


def a_record(accuracy=lambda row, run: 50.0 + run.seed):
    """As after everything is done, with `SECOND` rates."""
    record = {run.key: a_result(run, 60.0 if SECOND[row_of(run)] in run.name else 40.0) for run in PLAN.rate_runs(ROWS)}
    for run in PLAN.runs(list(ROWS), SECOND):
        record[run.key] = record.get(run.key, {}) | a_result(run, accuracy(row_of(run), run))
    seconds = dict.fromkeys(TRAINED, 0.52) | {"floor": 0.4}
    return record | {STEP: {"seconds": seconds, "ratio": {name: each / 0.4 for name, each in seconds.items()}}}


def of_trainings(record):
    """The trainings of a record, by key."""
    return [(key, run) for key, run in record.items() if key != STEP]


# what is trained


def test_every_method_is_compared_with_one_budget_at_sizes_that_the_toy_clip_takes():
    given = {name: arguments(name) for name in ROWS}
    assert {found.method for found in given.values()} == METHODS.keys()
    assert len({repr((found.method, found.method_settings)) for found in given.values()}) == len(ROWS)
    assert {(g.common.max_frames, g.common.max_words, g.train.precision) for g in given.values()} == {(8, 12, "fp32")}
    budgets = {(given[name].train.epochs, given[name].train.batch_size, given[name].task) for name in TRAINED}
    assert len(budgets) == 1
    for name in ROWS:
        assert (toy_model(name).num_trainable() > 0) == (name in TRAINED), name


def test_captions_fit_the_words_that_all_have():
    longest = max(int(build_tokenizer()(level.captions).ne(0).sum(1).max()) for level in TOY_LEVELS.values())
    assert longest <= arguments("stop").common.max_words


def test_rates_are_chosen_among_the_same_three_on_the_easy_level_with_one_seed():
    runs = list(PLAN.rate_runs(ROWS))
    assert {(run.level, run.seed, run.clip, run.evaluated) for run in runs} == {("motions", 1, 0, ("validation",))}
    rates = {(row_of(run), run.flags[run.flags.index("--lr") + 1]) for run in runs}
    assert rates == {(name, rate) for name in TRAINED for rate in PLAN.rates} and len(runs) == len(rates)
    assert len(PLAN.rates) == 3


def test_every_row_has_three_seeds_on_both_levels_and_some_another_clip():
    runs = list(PLAN.runs(list(ROWS), SECOND))
    assert len({run.key for run in runs}) == len(runs)
    assert {run.evaluated for run in runs} == {("metrics", "shuffled")}
    both = {"zero_shot", "stop", "clip4clip", "clip4clip_seqTransf", *CONTROLS}
    assert Counter((row_of(run), run.level, run.clip) for run in runs) == {
        (name, level, clip): 3 if name in TRAINED else 1
        for name in ROWS
        for level in LEVELS
        for clip in ((0, 1) if name in both else (0,))
    }
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)  # what is done can be compared
    clips = {runner.made_of(run, PLACES)["files"] for run in runs if run.level == "events"}
    assert len(clips) == 2


def test_two_controls_differ_from_stop_in_what_they_control_alone():
    stop = asdict(arguments("stop").method_settings)
    for name, changed in (("random_patches", {"selection"}), ("constant_count", {"token_count", "eta"})):
        other = asdict(arguments(name).method_settings)
        assert {setting for setting in stop if stop[setting] != other[setting]} == changed


@torch.no_grad()
def test_the_third_has_stops_parameters_sees_the_order_of_frames_and_is_prompts_that_read_nothing():
    control = toy_model("unstructured")
    assert control.num_trainable() == pytest.approx(toy_model("stop").num_trainable(), rel=0.001)
    assert isinstance(control.video_encoder.prompting, VptVideo)
    names = {name for name, _ in control.trainable_parameters()}
    assert names == {f"video_encoder.prompting.{name}" for name in ("learned", "of_each_frame")}
    size = (1, FRAMES, 3, 56, 56)
    video = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name, sees in (("unstructured", True), ("vpt", False)):
        model = toy_model(name).double()
        one, other = (model.encode_video(v, torch.tensor([FRAMES]))["embedding"] for v in (video, video.flip(1)))
        assert ((one - other).abs().max() > 1e-6) == sees


# the rates and the lists


def test_the_rate_that_does_best_on_the_validation_list_is_chosen_and_of_equals_the_smallest():
    runs = list(PLAN.rate_runs(["stop"]))

    def chosen(*values):
        return PLAN.chosen(["stop"], {run.key: a_result(run, value) for run, value in zip(runs, values, strict=False)})

    found = [chosen(*values)["stop"] for values in ((1, 2, 3), (1, 3, 2), (3, 2, 3), (1, 3, 3))]
    assert found == ["1e-2", "3e-3", "1e-3", "3e-3"]
    assert chosen(1, 2) == {}  # not before all three are there
    record = {run.key: a_result(replace(run, evaluated=("metrics",)), 9) for run in runs}
    assert PLAN.chosen(["stop"], record) == {}  # nor by test videos
    assert PLAN.chosen(["zero_shot"], {}) == {}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    settings = DatasetSettings(num_train=324, num_test=4, num_test_sets=1, num_frames=2)
    return make_dataset(tmp_path_factory.mktemp("toy") / "dataset", settings)


def test_what_rates_are_chosen_on_is_held_out_of_the_training_list_and_no_test_video(dataset, tmp_path):
    write_lists(dataset, tmp_path, HELD_OUT)
    rows = {name: rows_of(tmp_path / f"{name}.csv") for name in ("train", "validation", "test", "few")}
    ids = {name: [row["video_id"] for row in of_list] for name, of_list in rows.items()}
    assert ids["train"] + ids["validation"] == [row["video_id"] for row in rows_of(dataset / "train.csv")]
    assert len(ids["validation"]) == HELD_OUT and not set(ids["validation"]) & set(ids["test"])
    assert rows["test"] == rows_of(dataset / "test.csv")
    sentences = json.loads((dataset / "MSRVTT_data.json").read_text())["sentences"]
    captions = {sentence["video_id"]: sentence["caption"] for sentence in sentences}
    assert all(row["sentence"] == captions[row["video_id"]] for row in rows["validation"])
    for number in ("1", "2"):  # in a set each caption once: equal ones would tie
        of_set = [row["sentence"] for row in rows["validation"] if row["set"] == number]
        assert sorted(of_set) == sorted(TOY_LEVELS["motions"].captions)
    write_lists(dataset, tmp_path / "..", 0)
    assert rows_of(tmp_path / ".." / "train.csv") == rows_of(dataset / "train.csv")


def test_what_is_held_out_counts_as_another_training():
    run = next(PLAN.rate_runs(["stop"]))
    assert runner.made_of(run, PLACES) != runner.made_of(run, replace(PLACES, held_out=HELD_OUT))


# going on


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """A comparison whose runs take no time: its places, and what was begun: (key, evaluated on)."""
    begun = []

    def execute(run, places, here=False):
        begun.append((run.key, run.evaluated))
        found = a_result(run, 60.0 if "3e-3" in run.name else 40.0)
        return found | {"made_of": runner.made_of(run, places)}

    monkeypatch.setattr(runner, "execute", execute)
    for name in ("make_files", "make_clip"):
        monkeypatch.setattr(runner, name, lambda *args: None)
    return replace(PLACES, runs=tmp_path / "runs", record=tmp_path / "record.json"), begun


def test_rates_come_first_and_the_training_that_won_goes_on_being_used(compared):
    places, begun = compared
    rows = ["zero_shot", "stop", "vpt"]
    assert compare(PLAN, rows, places, jobs=1)
    assert [evaluated for _, evaluated in begun[:6]] == [("validation",)] * 6
    assert {evaluated for _, evaluated in begun[6:]} == {("metrics", "shuffled")}
    record = read_record(places.record)
    # zero-shot; three seeds on both levels; on another CLIP; the rates that were not chosen
    assert len(record) == 4 + 2 * 2 * 3 + 2 * 3 + 2 * 2
    won = record["motions/stop_lr_3e-3/frames8/seed1"]
    assert won["validation"]["t2v_R1"] == 60 and won["metrics"]["t2v_R1"] == 60 and won["minutes"] == 6
    lost = record["motions/stop_lr_1e-3/frames8/seed1"]
    assert "metrics" not in lost
    begun.clear()
    assert compare(PLAN, rows, places, jobs=2) and not begun
    del record["events/vpt_lr_3e-3/frames8/seed2"], record["motions/vpt_lr_1e-3/frames8/seed1"]
    runner.write_record(places.record, record)
    assert compare(PLAN, rows, places, jobs=2)
    assert len(begun) == 2


def test_what_is_planned_is_said_before_and_what_is_left_after(compared):
    places = replace(compared[0], more=())
    trainings = 3 * 21 + (21 * 6 - 21) + 6 * 6
    said = say_plan(PLAN, list(ROWS), places, jobs=2)
    hours = trainings * comparison.MINUTES / 60 / 2
    assert said.startswith(f"{trainings} trainings, 63 of them to choose rates, some {hours:.1f} hours, 2 at a time; ")
    assert said.endswith(f"{trainings} of them are left, some {hours:.1f} hours")
    assert compare(PLAN, ["stop"], places, jobs=2)
    taken = {run["minutes"] for run in read_record(places.record).values()}
    assert taken == {3.0, 6.0}
    left = trainings - 3 - 6 - 6 + 1
    assert f"; {left} of them are left" in say_plan(PLAN, list(ROWS), places, jobs=2)
    assert "14 trainings, 3 of them to choose rates" in say_plan(PLAN, ["stop"], places, jobs=2)
    assert say_plan(PLAN, ["stop"], places, jobs=2).endswith("0 of them are left, some 0.0 hours")


# the table


def test_the_table_has_mean_and_deviation_over_seeds_and_costs_beside_zero_shot():
    text = comparison.table(a_record())
    zero_shot = "| zero-shot | 1,234 |  |  | 51.0 | 52.0 | 5.1 | 17.0 | 0.40 | 1.00 | 1.00 | 1,001 |"
    stop = "| STOP | 1,234 | 3e-3 | 3 | 52.0 ± 1.0 | 53.0 ± 1.0 | 5.2 ± 0.1 | 17.0 ± 0.0 | 0.52 | 1.30 | 3.00 | 1,003 |"
    lines = text.splitlines()
    assert lines.count(stop) == lines.count(zero_shot) == 4  # both levels, both CLIPs
    titles = [line.split("**")[1] for line in lines if "**" in line]
    assert titles == ["motions", "events", "motions, another CLIP", "events, another CLIP"]
    assert len({line.count("|") for line in lines}) == 1
    assert sum(line.startswith("| vpt |") for line in lines) == 2  # one CLIP


def test_the_table_shows_what_is_done_at_the_chosen_rate_alone():
    record = a_record()
    rejected = PLAN.run("vpt", "1e-2", "events", 1)
    record[rejected.key] = a_result(rejected, 99.0)
    assert "99.0" not in comparison.table(record)
    some = {key: run for key, run in of_trainings(record) if run["seed"] == 1 and run["level"] == "motions"}
    assert "| STOP | 1,234 | 3e-3 | 1 | 51.0 | 52.0 |" in comparison.table(some)
    assert len(comparison.table({}).splitlines()) == 2


@pytest.mark.parametrize(("advantage", "shown"), [(3.0, True), (1.0, False), (-5.0, False)])
def test_what_choosing_and_counting_bring_is_said_as_measured(advantage, shown):
    """Six pairs whose differences have a standard error of 0.9: 3 is more than twice that, 1 is not."""
    noise = {1: -2.5, 2: 0.0, 3: 2.5}
    record = a_record(lambda row, run: 50 + (advantage + noise[run.seed] if row == "stop" and run.seed in noise else 0))
    said = comparison.verdict(record)
    assert f"motions {advantage:+.1f} ± 0.9 (6 pairs); events {advantage:+.1f} ± 0.9 (6 pairs)" in said
    assert said.count("a gain is shown on motions and events.") == 3 * shown
    assert ("Neither level shows that choosing patches and counts helps." in said) == (not shown)


def test_nothing_is_said_of_what_is_not_done():
    one_seed = {key: run for key, run in of_trainings(a_record()) if run["seed"] == 1}
    assert comparison.verdict(one_seed) == "" and comparison.verdict({}) == ""
    easy = {key: run for key, run in of_trainings(a_record()) if run["level"] == "motions"}
    assert "motions" in comparison.verdict(easy) and "Neither" not in comparison.verdict(easy)
    on_one = a_record(lambda row, run: 50 + 9 * (row == "stop" and run.level == "events"))
    assert "a gain is shown on events." in tables(on_one) and "Neither" not in tables(on_one)


# the picture


def crowded():
    """Rows of which many are as fast and as good as others."""
    names = list(ROWS)
    record = a_record(lambda row, run: 20.0 + 3 * (names.index(row) % 9) + run.seed)
    seconds = {name: 0.3 + 0.2 * (names.index(name) % 4) for name in TRAINED}
    return record | {STEP: {"seconds": seconds}}


def test_labels_of_the_picture_cover_neither_each_other_nor_a_point_nor_an_error_bar():
    figure = make_figure(crowded())
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        labels = [child for child in axes.get_children() if isinstance(child, Annotation)]
        assert sorted(label.get_text() for label in labels) == sorted(ROWS[name].title for name in TRAINED)
        boxes = {label.get_text(): label.get_window_extent(renderer) for label in labels}
        for (one, box), (other, another) in combinations(boxes.items(), 2):
            assert not box.overlaps(another), (one, other)
        room = axes.get_window_extent(renderer)
        for label in labels:
            box = boxes[label.get_text()]
            assert room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
            for point in (other.xy for other in labels):
                for error in (-1.0, 0.0, 1.0):  # the standard deviation over seeds
                    assert not box.contains(*axes.transData.transform((point[0], point[1] + error)))


def test_the_picture_is_a_small_file_with_a_panel_a_level(tmp_path):
    draw(crowded(), tmp_path / "pictures" / "it.png")
    content = (tmp_path / "pictures" / "it.png").read_bytes()
    assert content.startswith(b"\x89PNG") and 20_000 < len(content) < 150_000
    titles = [axes.get_title() for axes in make_figure(crowded()).axes]
    assert titles == [f"level “{level}”" for level in LEVELS]
    for nothing in ({}, dict(of_trainings(crowded()))):
        with pytest.raises(UserError, match="no row has both"):
            draw(nothing, tmp_path / "none.png")


def test_steps_are_timed_in_turns_and_stand_beside_the_trainings(compared, monkeypatch):
    places, _ = compared
    assert compare(PLAN, ["stop", "zero_shot"], places, jobs=1)
    before = read_record(places.record)
    monkeypatch.setattr(costs, "in_turns", lambda calls, rounds, device: {name: [2.0, 4.0] for name in calls})
    comparison.time_steps(PLAN, ["stop", "clip4clip", "zero_shot"], places, 1, 2)
    record = read_record(places.record)
    assert dict(of_trainings(record)) == before and trainings_of(record) == list(before.values())
    assert record[STEP]["seconds"] == record[STEP]["ratio"] | {"stop": 3, "clip4clip": 3, "floor": 3}
    assert compare(PLAN, ["stop", "zero_shot"], places, jobs=1)
    assert read_record(places.record) == record


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_of_every_row_can_be_timed(name):
    run = PLAN.run(name, PLAN.rates[0], LEVELS[0], 1)
    costs.make_subject(run, batch_size=2).train()


def test_families_are_told_apart_without_colour():
    assert {row.family for row in ROWS.values() if row.trains} == FAMILIES.keys()
    assert len({marker for marker, *_ in FAMILIES.values()}) == len(FAMILIES)
    grey = sorted(sum(w * c for w, c in zip((0.3, 0.59, 0.11), to_rgb(f[2]), strict=True)) for f in FAMILIES.values())
    assert min(b - a for a, b in pairwise(grey)) > 0.08


# what is counted


def test_flops_of_the_frozen_clip_are_those_counted_by_hand():
    width, tokens, patches = 64, 50, 49
    linear = 12 * width**2  # query, key, value and output 4, MLP 8
    full = 2 * tokens * linear + 2 * 2 * tokens**2 * width
    last = 2 * (2 * tokens * width**2 + 10 * width**2) + 2 * 2 * tokens * width  # of the class token alone
    embed, project = 2 * patches * 3 * 8**2 * width, 2 * width**2
    expected = FRAMES * (embed + 3 * full + last + project)
    assert video_gigaflops(arguments("zero_shot")) == pytest.approx(expected / 1e9, abs=1e-4)


def test_flops_count_attention_between_frames_convolutions_and_lstms():
    stop, frame = (
        video_gigaflops(replace(given, method_settings=replace(given.method_settings, attention_scope=scope)))
        for given, scope in ((arguments("stop"), "joint"), (arguments("stop"), "frame"))
    )
    assert stop - frame > 3 * 2 * 2 * (8 * 49) * (7 * 49) * 64 / 1e9 * 0.9  # every patch to those of other frames
    random_patches = video_gigaflops(arguments("random_patches"))
    n_s = 4 * 2 * 27 * 64 * 8 * 49 / 1e9
    assert stop - random_patches == pytest.approx(n_s, rel=0.2)  # and the class token's attention
    mean_pooled = arguments("clip4clip")
    lstm = replace(mean_pooled, method_settings=replace(mean_pooled.method_settings, sim_header="seqLSTM"))
    by_hand = FRAMES * 2 * 4 * 64 * (64 + 64) / 1e9
    assert video_gigaflops(lstm) - video_gigaflops(mean_pooled) == pytest.approx(by_hand, abs=2e-4)


# all of it


def test_quick_is_every_row_for_two_steps_and_takes_less_than_a_minute(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "ROOT", tmp_path)
    start = time.process_time()  # this process computes by itself, on one thread, whatever else the machine does
    comparison.main(["--quick"])
    assert time.process_time() - start < 60
    said = capsys.readouterr().out
    assert said.startswith("21 trainings, 21 of them to choose rates, 1 at a time; 21 of them are left\n")
    record = read_record(tmp_path / "runs" / "compare_toy_quick" / "record.json")
    assert {row_of_result(run) for run in record.values()} == ROWS.keys()
    for name, row in ROWS.items():
        run = next(run for run in record.values() if row_of_result(run) == name)
        assert run.get("steps", 2) == 2 and {"metrics", "shuffled"} <= run.keys() and run["video_gigaflops"] > 0
        assert ("validation" in run) == row.trains
        assert f"| {row.title} |" in said


def row_of_result(run):
    return run["name"].split(", ")[0]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return tmp_path_factory.mktemp("toy")


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_method_goes_all_the_way(name, toy, tmp_path):
    """Two rates, both levels, both CLIPs, two seeds; one of them by programs of their own, two at a time."""
    plan = replace(QUICK, rates=("1e-3", "1e-2"), levels=LEVELS, seeds=(1, 2), clips=(0, 1))
    places = replace(comparison.two_steps(tmp_path, tmp_path / "record.json"), toy=toy)
    assert compare(plan, [name], places, jobs=2 if name == "stop" else 0)
    record = read_record(places.record)
    for level in LEVELS:
        for clip in (0, 1) if ROWS[name].both_clips else (0,):
            runs = comparison.runs_at(record, name, level, clip, plan)
            assert [run["seed"] for run in runs] == ([1, 2] if ROWS[name].trains else [1])
            assert all(0 <= run[order]["t2v_R1"] <= 100 for run in runs for order in ("metrics", "shuffled"))
            assert all(run["peak_memory_mb"] > 100 and run["git_commit"] for run in runs)
