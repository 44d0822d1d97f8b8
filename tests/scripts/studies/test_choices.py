"""The study of STOP's choices on the toy testbed: what it runs, that it goes on where it stopped, and its tables."""

import json
import time
from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from common.files import lock_folder
from dataloaders.datasets import RETRIEVAL
from helpers.flags import PROGRAMS
from modules.program.arguments import parse_arguments
from scripts.studies import runner
from scripts.studies.choices import CHOICES, CURVE, CURVES, SEEDS, Level, all_runs, tables
from scripts.studies.runner import (
    FRAMES,
    LEVELS,
    differences,
    joined,
    made_of,
    quick_places,
    read_record,
    runs_of,
    study,
)

PLACES = quick_places(Path("nowhere"), Path("nowhere") / "record.json")


def a_result(run, value=50.0):
    metrics = {"t2v_R1": value + run.seed, "motion_accuracy": value, "trainable_parameters": 1234}
    at = {"tokens_per_gap_at_the_start": 3.5, "tokens_per_gap_at_the_end": 2.0, "seconds_per_step": 0.5}
    named = {"level": run.level, "name": run.name, "frames": run.frames, "seed": run.seed}
    return {**named, "made_of": made_of(run, PLACES), "metrics": metrics, **at}


def test_every_choice_is_trained_on_both_levels_with_every_seed_and_no_run_twice():
    runs = list(all_runs())
    assert len({run.key for run in runs}) == len(runs)
    choices = {(run.level, run.name, run.seed) for run in runs if run.frames == FRAMES and run.name in CHOICES}
    assert choices == {(level, name, seed) for level in LEVELS for name in CHOICES for seed in SEEDS}
    curve = {(run.name, run.frames) for run in runs if run.level == "events" and run.name in ("defaults", "seqTransf")}
    assert curve == {(name, frames) for name in ("defaults", "seqTransf") for frames in CURVE}


def test_flags_are_the_programs_own_and_a_choice_differs_from_the_defaults():
    parsed = {}
    for run in all_runs():
        if run.trains and run.seed == SEEDS[0] and run.level == "events" and run.frames == FRAMES:
            flags = [*run.flags, "--pretrained_clip_name", "x", "--packed", "y", "--output_dir", "z"]
            flags += ["--train_csv", "a", "--val_csv", "b", "--data_path", "c"]
            arguments = parse_arguments(flags, "", RETRIEVAL, PROGRAMS["retrieval"][1])
            parsed[run.name] = (arguments.method_settings, arguments.train.precision)
    assert (
        len({repr(settings) for settings in parsed.values()}) == len(parsed) == len({*CHOICES, *CURVES} - {"zero-shot"})
    )


@pytest.fixture
def studied(tmp_path, monkeypatch):
    """A study whose runs take no time: its places, and the keys of the runs that were begun."""
    begun, trouble = [], {}

    def execute(run, places):
        begun.append(run.key)
        time.sleep(0.02)  # so that what a run leads to happens before the next ones are over
        if error := trouble.pop(len(begun), None):
            raise error
        return a_result(run)

    monkeypatch.setattr(runner, "make_files", lambda level, places: None)
    monkeypatch.setattr(runner, "execute", execute)
    return quick_places(tmp_path, tmp_path / "record.json"), begun, trouble


RUNS = [run for run in all_runs() if run.name == "zero-shot"]


@pytest.mark.parametrize("error", [RuntimeError("the machine is gone"), KeyError("loss")])
def test_a_study_does_what_is_not_recorded_and_records_each_run(studied, error, capsys):
    places, begun, trouble = studied
    trouble[3] = error
    assert not study(places, RUNS, jobs=1)
    assert str(error) in capsys.readouterr().err
    assert len(begun) == len(RUNS) and len(read_record(places.record)) == len(RUNS) - 1
    assert study(places, RUNS, jobs=2)
    assert len(begun) == len(RUNS) + 1 and begun[-1] == begun[2]
    assert set(read_record(places.record)) == {run.key for run in RUNS}


def test_what_others_are_compared_with_is_done_again_on_another_machines_clip(studied, monkeypatch):
    places, begun, _ = studied
    monkeypatch.setattr(runner, "digest_of", lambda file: {"clip": "here"}[file.parent.name])
    at = [run for run in all_runs() if run.frames == FRAMES and run.seed <= 2 and run.name in ("defaults", "sum")]
    of_defaults = [run for run in at if run.name == "defaults"]
    before = {run.key: a_result(run, 40.0) | {"clip_weights": "elsewhere"} for run in of_defaults}
    before[of_defaults[0].key]["clip_weights"] = "here"
    runner.write_record(places.record, before)
    here = {"clip_weights": "here"}
    monkeypatch.setattr(runner, "execute", lambda run, places: begun.append(run.key) or a_result(run) | here)
    assert study(places, at, jobs=1, base="defaults")
    again = [f"{run.key}/on_here" for run in of_defaults[1:]]
    assert begun == again + [run.key for run in at if run.name != "defaults"]
    record = read_record(places.record)
    assert record[of_defaults[1].key] == before[of_defaults[1].key]  # stays
    begun.clear()
    assert study(places, at, jobs=1, base="defaults") and not begun
    elsewhere = {of_defaults[0].key: before[of_defaults[0].key] | {"clip_weights": "", "machine": "an old one"}}
    both = joined([elsewhere, record])
    assert len(both) == len(record) + 1
    level = of_defaults[0].level
    compared = [runs_of(both, level, name, FRAMES) for name in ("sum", "defaults")]
    assert [len(runs) for runs in compared] == [2, 4] and differences(*compared) == [10, 0]  # each on the CLIP here


def test_ctrl_c_begins_nothing_more_and_keeps_what_is_done(studied):
    places, begun, trouble = studied
    trouble[2] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        study(places, RUNS, jobs=1)
    assert len(begun) < len(RUNS)
    done = len(read_record(places.record))
    begun.clear()
    assert study(places, RUNS, jobs=1)
    assert len(begun) == len(RUNS) - done


def test_what_was_recorded_with_other_settings_is_done_again(studied):
    places, begun, _ = studied
    runs = [run for run in all_runs() if run.name == "defaults" and run.seed == 1]
    assert study(places, runs, jobs=1)
    begun.clear()
    record = read_record(places.record)
    changed, lacking = runs[0].key, runs[1].key
    record[changed]["made_of"]["epsilon"] = 0.5  # a default that has changed since
    del record[lacking]["made_of"]["frame_weight"]  # from before there was such a setting, when it was "sum"
    del record[runs[2].key]["made_of"]["prompters"]  # which was "shared"
    runner.write_record(places.record, record)
    assert study(places, runs, jobs=1)
    assert sorted(begun) == sorted([changed, lacking])


def test_one_study_at_a_time_writes_to_a_folder(studied):
    places, _, _ = studied
    places.runs.mkdir()
    with lock_folder(places.runs), pytest.raises(BlockingIOError):
        study(places, RUNS, jobs=1)


def test_tables_have_mean_and_standard_deviation_over_seeds():
    runs = [run for run in all_runs() if run.name in ("defaults", "sum") and run.level == "events"]
    text = tables({run.key: a_result(run) for run in runs})
    assert "| defaults | 3 | 52.0 ± 1.0 |  | 50.0 ± 0.0 | 0.50 | 3.50 → 2.00 | 1,234 |" in text
    assert "| STOP |" + " 52.0 ± 1.0 (50.0 ± 0.0) |" * len(CURVE) in text
    one = {run.key: a_result(run) for run in runs if run.seed == 1}
    assert "| sum | 1 | 51.0 |  | 50.0 |" in tables(one)


def test_a_difference_to_the_defaults_has_the_error_of_all_choices_and_is_marked_where_it_is_shown():
    seeds, noise = np.array([1.0, 5.0, -3.0]), np.array([[1.0, -1, 0], [-1, 0, 1], [0, 1, -1]])
    found = {}
    for (name, shift), off in zip({"defaults": 50, "sum": 52, "frame scope": 60}.items(), noise, strict=True):
        for run in all_runs():
            if (run.name, run.level, run.frames) == (name, "events", 8):
                result = a_result(run)
                result["metrics"]["t2v_R1"] = shift + seeds[run.seed - 1] + off[run.seed - 1]
                found[run.key] = result
    level = Level.of(found, "events")
    # the residuals are the noise: its squares are 6, of 4 degrees of freedom
    error = sqrt(2 * (6 / 4) / 3)
    assert level.against_defaults("defaults") == ""
    assert level.against_defaults("sum") == f"+2.0 ± {error:.1f}"
    assert level.against_defaults("frame scope") == f"**+10.0 ± {error:.1f}**"
    for run in all_runs():  # a seed that one choice lacks is left out of all
        if run.name == "sum" and run.seed == 3:
            found.pop(run.key, None)
    assert Level.of(found, "events").values.shape == (3, 2)


@pytest.mark.slow
def test_a_quick_study_trains_and_evaluates(tmp_path):
    places = replace(quick_places(tmp_path, tmp_path / "record.json"), toy=tmp_path / "toy")
    runs = [run for run in all_runs() if run.seed == SEEDS[0] and run.frames == min(CURVE)]
    assert study(places, runs, jobs=2)
    record = json.loads(places.record.read_text())
    assert {run["name"] for run in record.values()} == {"defaults", "seqTransf", "zero-shot"}
    stop = record[next(run.key for run in runs if run.name == "defaults")]
    assert stop["steps"] == 1 and stop["seconds_per_step"] > 0 and stop["tokens_per_gap_at_the_start"] > 0
    assert stop["metrics"]["t2v_R1"] < 20  # of a CLIP that knows nothing
    assert {"git_commit", "machine", "made_of"} <= stop.keys()
