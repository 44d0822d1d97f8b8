"""The study of the chosen patches: shares on a constructed case, where the toy videos' things are, and what it runs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preprocess.make_toy_dataset import DatasetSettings, render_split
from preprocess.toy import shapes as toy
from preprocess.toy.events import LEVELS
from scripts.ablation import ablate
from scripts.studies import choices, patches
from scripts.studies.patches import (
    BACKGROUND,
    CHOICES,
    SEEDS,
    all_runs,
    cover_of_patches,
    measure_model,
    ratios,
    read_cover,
    shares_of,
    tables,
)
from scripts.studies.runner import FRAMES, made_of, quick_places, study

PLACES = quick_places(Path("nowhere"), Path("nowhere") / "record.json")


def test_shares_of_a_constructed_case():
    """Four patches of 2×2 pixels: the mover fills one and half of another, a still thing a quarter of a third."""
    where = {name: np.zeros((3, 4, 4)) for name in ("moving", "still")}
    where["moving"][1, :2, :2] = 1
    where["moving"][1, :2, 2] = 1
    where["still"][1, 2, 0] = 1
    cover = cover_of_patches(where, [1], 2)
    assert cover["moving"].tolist() == [[1, 0.5, 0, 0]] and cover["still"].tolist() == [[0, 0, 0.25, 0]]
    assert cover[BACKGROUND].tolist() == [[0, 0.5, 0.75, 1]]
    found = shares_of(np.array([[True, False, True, False]]), cover)
    assert found["moving"] == (0.5, 0.375) and found["still"] == (0.125, 0.0625)
    assert found[BACKGROUND] == (0.375, 0.5625)
    assert sum(share for share, _ in found.values()) == sum(chance for _, chance in found.values()) == 1


def test_choosing_all_patches_is_chance():
    cover = cover_of_patches({"moving": np.random.default_rng(0).random((5, 6, 6))}, range(5), 3)
    for share, chance in shares_of(np.ones((5, 9), bool), cover).values():
        assert share == chance


@pytest.mark.parametrize("level", LEVELS)
def test_things_are_where_the_frames_show_them(level):
    """Their colours are there, and nothing else changes from frame to frame."""
    settings = DatasetSettings(level=level, num_test=12, num_test_sets=1)
    things = {"motions": {toy.MOVING, toy.STILL}, "events": {toy.MOVING, toy.RESTING, toy.STILL, toy.DRIFTING}}
    palette = np.array(list(toy.COLOURS.values()))
    moved = []
    for video in render_split(settings, "test"):
        assert video.where.keys() == things[level]
        frames, where = video.frames.astype(int), video.where
        subject = np.maximum(where[toy.MOVING], where.get(toy.RESTING, 0))
        assert (abs(frames - palette[video.colour])[subject == 1] <= 1).all()
        anything = np.maximum.reduce([where[name] for name in where if name != toy.STILL])
        empty = (anything[1:] == 0) & (anything[:-1] == 0)
        assert (np.diff(frames, axis=0)[empty] == 0).all()
        assert (where[toy.STILL] == where[toy.STILL][0]).all() and where[toy.STILL].any()
        moves = where[toy.MOVING].any((1, 2))
        moved.append(moves.mean())
        assert (np.diff(where[toy.MOVING], axis=0)[moves[1:] & moves[:-1]] != 0).any((1, 2)).mean() > 0.9
        if level == "events":
            starts = {at for start in video.starts for at in range(start, start + settings.num_frames // 4)}
            assert set(np.flatnonzero(moves)) == starts
            assert not (moves & where[toy.RESTING].any((1, 2))).any()
    assert (min(moved) == 1) == (level == "motions")


def test_the_cover_is_of_the_frames_that_models_see(tiny_files):
    cover = read_cover(tiny_files / "dataset", 7)
    assert list(cover) == [f"video{22 + number}" for number in range(6)]  # behind those for training
    settings = DatasetSettings(**json.loads((tiny_files / "dataset" / "dataset.json").read_text())["settings"])
    video = next(iter(render_split(settings, "test")))
    # 9 frames in eight segments: their middles
    middles = [int((at + 0.5) * 9 / FRAMES) for at in range(FRAMES)]
    whole = video.where[toy.MOVING][middles].mean((1, 2))
    np.testing.assert_allclose(cover["video22"][toy.MOVING].mean(1), whole, atol=1e-6)


def test_what_a_model_chooses_is_counted_in_each_layer(monkeypatch):
    """Of two layers one chooses the mover's patch in all frames, the other never."""
    cover = {"a": {"moving": np.eye(4)[[0, 1]], BACKGROUND: 1 - np.eye(4)[[0, 1]]}}
    right, wrong = np.eye(4, dtype=bool)[[0, 1]], np.eye(4, dtype=bool)[[2, 2]]
    monkeypatch.setattr(patches, "chosen_by", lambda model, dataset: iter([np.stack([right, wrong])[:, None]]))
    dataset = type("Dataset", (), {"samples": [type("Sample", (), {"video_id": "a"})]})
    assert [layer["moving"] for layer in measure_model(None, dataset, cover)] == [(1, 0.25), (0, 0.25)]


def test_every_choice_is_trained_on_both_levels_with_every_seed_and_what_is_trained_elsewhere_is_named_alike():
    runs = all_runs()
    assert len({run.key for run in runs}) == len(runs) == len(CHOICES) * 2 * len(SEEDS)
    settings = [made_of(run, PLACES) for run in runs if run.seed == 1 and run.level == "events"]
    assert len({json.dumps(one, sort_keys=True) for one in settings}) == len(CHOICES)
    elsewhere = {said(run): run.key for run in (*choices.all_runs(), *ablate.toy_runs())}
    shared = {run: elsewhere[said(run)] for run in runs if said(run) in elsewhere}
    assert all(run.key == key for run, key in shared.items())
    assert {run.name for run in runs if run not in shared} == {"M as it is", "N^s untrained", "N^s of differences"}


def said(run):
    return run.level, json.dumps(made_of(run, PLACES), sort_keys=True)


def test_tables_say_how_often_things_are_chosen_before_and_after():
    record = {}
    for run in all_runs():
        if run.seed > 2 or run.level == "motions":
            continue
        one = {"moving": (0.3 * run.seed, 0.1), "still": (0.05, 0.1), BACKGROUND: (0.4, 0.8)}
        two = one | {"moving": (0.6, 0.1)}
        named = {"level": run.level, "name": run.name, "frames": run.frames, "seed": run.seed, "made_of": {}}
        shares = {"before": [one, two], "after": [two, two]}
        record[run.key] = named | {"metrics": {"t2v_R1": 50.0 + run.seed}, patches.SHARES: shares}
    assert np.allclose(ratios(record, "events", "alpha 1", "moving", "before"), [[3, 6], [6, 6]])
    text = tables(record)
    assert "| moving | 10.0% | 4.50 ± 1.50 → 6.00 ± 0.00 | 6.00 ± 0.00 → 6.00 ± 0.00 |" in text
    expected = "| alpha 1 | 2 | 51.5 ± 0.5 | +0.0 ± 0.0 | 5.25 ± 0.75 → 6.00 ± 0.00 | 0.50 ± 0.00 → 0.50 ± 0.00 |"
    assert expected in text and "motions, defaults" not in text


@pytest.mark.slow
def test_a_quick_study_trains_and_measures_what_is_not_measured(tmp_path):
    places = replace(quick_places(tmp_path, tmp_path / "record.json"), toy=tmp_path / "toy")
    runs = [
        run for run in all_runs() if run.seed == 1 and run.level == "events" and run.name in ("defaults", "alpha 1")
    ]
    more = {patches.SHARES: patches.measure_run}
    assert study(places, runs[:1], jobs=2)  # trained, as by another study
    assert study(places, runs, jobs=2, more=more)
    found = json.loads(places.record.read_text())
    assert set(found) == {run.key for run in runs}
    for run in found.values():
        for layers in run[patches.SHARES].values():
            for layer in layers:
                assert sum(share for share, _ in layer.values()) == pytest.approx(1, abs=1e-5)
    before = places.record.read_bytes()
    assert study(places, runs, jobs=2, more=more)
    assert places.record.read_bytes() == before and "| moving |" in tables(found)
