"""Ablations: what they train on the toy testbed and on a dataset, that they go on where they stopped, the picture."""

import io
import itertools
import json
import subprocess

import pytest
from PIL import Image

from common.errors import UserError
from common.settings import all_settings
from dataloaders.datasets import RETRIEVAL
from helpers.flags import PROGRAMS
from helpers.paths import ROOT
from modules.program.arguments import parse_arguments
from scripts.ablation import ablate
from scripts.ablation.picture import draw, picture
from scripts.ablation.sweeps import DEFAULTS, SWEEPS, distinct, make_points, runs_at, seconds, table
from scripts.studies import choices, merging_curve, patches
from scripts.studies.runner import LEVELS, STEP, made_of, quick_places

SHELL_SCRIPT = ROOT / "scripts" / "ablate.sh"
FILES = ["--pretrained_clip_name", "x", "--packed", "y", "--output_dir", "z"]
FILES += ["--train_csv", "a", "--val_csv", "b", "--data_path", "c"]


def settings_of(run):
    return all_settings(parse_arguments([*run.flags, *FILES], "", RETRIEVAL, PROGRAMS["retrieval"][1]).method_settings)


def test_each_toy_point_differs_from_the_defaults_in_its_setting_alone():
    runs = {run.name: run for run in ablate.toy_runs() if (run.level, run.seed) == (LEVELS[0], 1)}
    assert set(runs) == {point.name for point in ablate.TOY}
    former = settings_of(runs[DEFAULTS])
    for point in distinct(ablate.TOY):
        if point.name not in (DEFAULTS, "zero-shot"):
            changed = {name for name, value in settings_of(runs[point.name]).items() if value != former[name]}
            expected = {"inter": {"ablate", "num_regions"}, "intra": {"ablate", "eta"}}.get(point.value)
            assert changed == (expected if point.sweep == "prompts" else {point.sweep}), point.name


def shared_with(places, others, runs):
    """Those of some runs that other studies have as well, made of the same."""
    others = {run.key: run for run in others}
    shared = [run for run in runs if run.key in others]
    for run in shared:
        assert made_of(run, places) == made_of(others[run.key], places)
    return shared


def test_what_other_studies_train_as_well_is_shared_with_them(tmp_path):
    places = quick_places(tmp_path, tmp_path / "record.json")
    runs = ablate.toy_runs()
    shared = shared_with(places, [*choices.all_runs(), *merging_curve.all_runs()], runs)
    assert {run.name for run in shared} == {"zero-shot", DEFAULTS, "merged 2", "merged 1, 2", "merged 1, 2, 3"}
    own = [run for run in runs if run not in shared]
    with_patches = shared_with(places, patches.all_runs(), own)
    alphas, regions = ("alpha 0", "alpha 0.25", "alpha 0.75", "alpha 1"), ("num_regions 2", "num_regions 12")
    assert {run.name for run in with_patches} == {*alphas, *regions}
    assert f"{len(own)} trainings, {len(with_patches)} of them shared with" in SHELL_SCRIPT.read_text()
    assert (len(own), len(with_patches)) == (84, 36)


SCRIPT = """\
set -eu
echo "$*" >> "$(dirname "$0")/calls.txt"
while [ $# -gt 0 ]; do
  case $1 in
    --output_dir) folder=$2 ;;
    --seed) seed=$2 ;;
    --eta) [ "$2" != 8 ] || [ -e "$(dirname "$0")/mended" ] ;;
  esac
  shift
done
mkdir -p "$folder"
echo "{\\"top1\\": 90.0, \\"last_epoch\\": {\\"top1\\": 4$seed.0}}" > "$folder/results.json"
"""


def test_a_run_of_several_splits_counts_by_the_mean_of_their_last_epochs(tmp_path):
    splits = {"1": 40.0, "2": 50.0}
    for name, last in splits.items():
        (tmp_path / f"split{name}").mkdir()
        results = {"top1": 90.0, "last_epoch": {"top1": last}}
        (tmp_path / f"split{name}" / "results.json").write_text(json.dumps(results))
    (tmp_path / "results.json").write_text(json.dumps({"top1": 90.0, "splits": splits}))
    assert ablate.measured(tmp_path)["metrics"] == {"top1": 45.0}


@pytest.mark.parametrize(
    ("script", "more", "flags"),
    [
        ("scripts/msrvtt.sh", [], ("--ablate", "both")),
        ("scripts/hmdb51.sh", [], ("--method", "zero_shot")),
        ("scripts/hmdb51.sh", ["--", "--text_prompts", "8"], ("--ablate", "both")),
        ("scripts/hmdb51.sh", ["--", "--time_embedding"], ("--ablate", "both")),
        ("scripts/msrvtt.sh", ["--", "--text_prompts", "0"], ("--method", "zero_shot")),
        ("scripts/didemo.sh", ["--", "--text_prompts=0"], ("--method", "zero_shot")),
        ("scripts/didemo.sh", ["--", "--text_prompts", "0", "--side_adapters", "32"], ("--ablate", "both")),
        ("scripts/hmdb51.sh", ["--", "--text_prompts", "8", "--text_prompts", "0"], ("--method", "zero_shot")),
        ("scripts/hmdb51.sh", ["--", "--time_embedding", "--text_prompts", "0"], ("--ablate", "both")),
    ],
)
def test_without_prompts_there_is_what_else_a_script_trains_or_the_frozen_clip(script, more, flags):
    assert next(point.flags for point in ablate.parse([script, *more]).points if point.value == "none") == flags


def test_a_dataset_is_trained_by_its_script_and_goes_on_where_it_stopped(tmp_path, capsys):
    (tmp_path / "mine.sh").write_text(SCRIPT)
    lists = [f"--{name}" for name in ablate.LISTS if name != "eta"]
    command = [
        str(tmp_path / "mine.sh"),
        *lists,
        "--eta",
        "4",
        "8",
        "--seeds",
        "1",
        "2",
        "--none",
        "--method zero_shot",
    ]
    command += ["--output_dir", str(tmp_path / "runs"), "--", "--split", "1"]
    with pytest.raises(SystemExit, match="some runs failed"):
        ablate.main(command)
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    flags = ["--method zero_shot", "--ablate inter", "--ablate intra", "", "--eta 8"]
    assert [call.split(" --seed ")[0] for call in calls] == [f"--split 1 {each}".strip() for each in flags] * 2
    assert capsys.readouterr().err.count("eta_8/seed") == 2
    record = json.loads((tmp_path / "runs" / "ablation.json").read_text())
    assert [run["metrics"]["top1"] for run in record.values() if run["name"] == DEFAULTS] == [
        41.0,
        42.0,
    ]  # last epoch's
    (tmp_path / "mended").touch()
    ablate.main(command)
    assert len((tmp_path / "calls.txt").read_text().splitlines()) == len(calls) + 2
    assert "| Temporal tokens | 8 | 2 | 41.5 ± 0.7 | +0.0 ± 0.0 |  |" in capsys.readouterr().out
    assert "| Prompts | none | 2 |" in (tmp_path / "runs" / "ablation.md").read_text()
    assert (tmp_path / "runs" / "ablation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["scripts/nothing.sh"], "no script scripts/nothing.sh"),
        (["scripts/msrvtt.sh", "--eta", "many"], "--eta: could"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(flags, message, capsys):
    with pytest.raises(SystemExit) as ended:
        ablate.main(flags)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def a_record(seeds=(1, 2), seconds=True):
    record = {}
    for run in ablate.toy_runs():
        if run.seed in seeds or not run.trains:
            metrics = {"t2v_R1": 30.0 + 5 * run.seed + len(run.name)}
            record[run.key] = {"level": run.level, "name": run.name, "frames": 8, "seed": run.seed}
            record[run.key] |= {"made_of": {}, "metrics": metrics}
            record[run.key] |= {"seconds_per_step": 0.5 + run.seed / 10} if seconds and run.trains else {}
    return record


def test_the_picture_has_a_panel_a_sweep_and_no_text_over_another():
    figure = draw(a_record(), LEVELS, ablate.TOY)
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    titled = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in titled] == [title for title, _ in SWEEPS.values()]
    for axes in titled:
        assert axes.get_xlabel() and axes.get_ylabel()
        labels = [label.get_window_extent(renderer) for label in axes.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(labels))
    width, height = figure.get_size_inches() * figure.dpi
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    drawn = Image.open(io.BytesIO(picture(a_record(), LEVELS, ablate.TOY)))
    assert drawn.size == (round(width), round(height))


def test_seconds_of_several_machines_are_not_compared():
    record = a_record(seeds=(1,))
    points = {point.name: point for point in ablate.TOY}
    runs = runs_at(record, LEVELS[0], points["eta 1"])
    assert seconds(record, points["eta 1"], runs) == 0.6
    runs[0]["machine"] = "another"
    assert seconds(record, points["eta 1"], runs) is None


def test_the_picture_and_the_tables_have_what_there_is():
    points = make_points({"eta": ("2", "4")}, ())
    one = {key: run for key, run in a_record(seeds=(1,), seconds=False).items() if run["name"] == "eta 2"}
    assert [axes.get_title() for axes in draw(one, LEVELS, points).axes if axes.get_title()] == ["Temporal tokens"]
    assert table(one, LEVELS, points).splitlines()[2] == "| Temporal tokens | 2 | 1 | 40.0 |  |  |"
    with pytest.raises(UserError, match="nothing to draw"):
        draw({}, LEVELS, points)
    assert table({}, LEVELS, points) == ""


def test_the_seconds_are_the_least_over_the_seeds():
    lines = table(a_record(seeds=(1, 2)), LEVELS[:1], ablate.TOY).splitlines()
    frozen, *trained = [line.split(" | ")[-1] for line in lines[2:]]
    assert frozen == " |" and set(trained) == {"0.60 |"}


def test_seconds_measured_in_turns_stand_for_those_of_trainings_and_are_drawn_once():
    record = a_record() | {STEP: {"seconds": {DEFAULTS: 2.0, "eta 1": 1.5, "zero-shot": 0.1}}}
    lines = table(record, LEVELS[:1], ablate.TOY).splitlines()
    assert next(line for line in lines if line.startswith("| Temporal tokens | 1 |")).endswith("| 1.50 |")
    assert next(line for line in lines if line.startswith("| Temporal tokens | 8 |")).endswith("|  |")
    figure = draw(record, LEVELS, ablate.TOY)
    lines = [line for axes in figure.axes for line in axes.get_lines() if line.get_label() == "seconds a step"]
    drawn = [list(line.get_ydata()) for line in lines]  # a line a panel, whatever the levels
    assert len(drawn) == len(SWEEPS) and [1.5, 2.0] in drawn and [2.0] in drawn


def test_the_shell_script_can_be_read():
    subprocess.run(["bash", "-n", str(SHELL_SCRIPT)], check=True)
