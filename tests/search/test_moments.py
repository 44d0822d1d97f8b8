"""Toy videos joined to long ones with known times, and what is measured on them."""

import json

import numpy as np
import pytest

from common.errors import UserError
from helpers.flags import path_of
from modules.program.loading import load_run
from preprocess.make_toy_dataset import DatasetSettings, make_dataset
from preprocess.toy.shapes import all_position_captions
from scripts.moments import measure, shots, speed
from search.__main__ import main as search


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """A toy dataset of two test sets of six, joined three a video."""
    root = tmp_path_factory.mktemp("moments")
    make_dataset(root / "dataset", DatasetSettings(num_train=2, num_test=6, num_test_sets=2, num_frames=9))
    assert shots.main(["--dataset", str(root / "dataset"), "--output_dir", str(root / "videos"), "--shots", "3"]) == 0
    return root


def test_every_shot_is_once_in_the_list_with_those_of_its_set(joined):
    found = json.loads((joined / "videos" / shots.SHOTS_FILE).read_text())["shots"]
    assert len(found) == 12 and {shot["end"] - shot["start"] for shot in found} == {9 / 8}
    for name in ("set1", "set2"):
        of_set = [shot for shot in found if shot["video"].startswith(name)]
        assert len({shot["caption"] for shot in of_set}) == 6 and len({shot["video"] for shot in of_set}) == 2
    assert (joined / "videos" / shots.GENERIC_FILE).read_text().splitlines() == all_position_captions()


def test_a_shot_shows_its_video_at_its_time(joined):
    found = json.loads((joined / "videos" / shots.SHOTS_FILE).read_text())["shots"]
    rows = (joined / "dataset" / "test.csv").read_text().splitlines()[1:]
    videos = {(row.split(",")[3], f"set{row.split(',')[4]}"): row.split(",")[2] for row in rows}
    for shot in found[:4]:
        whole = shots.read_frames(joined / "videos" / shot["video"])
        first = round(shot["start"] * 8)
        source = videos[shot["caption"], shot["video"].split("/")[0]]
        frames = shots.read_frames(joined / "dataset" / "videos" / f"{source}.mp4")
        assert np.abs(whole[first : first + 9].astype(int) - frames).mean() < 3  # encoded once more


def test_videos_are_made_once_and_what_is_something_else_is_kept(joined, tmp_path):
    times = {path: path.stat().st_mtime_ns for path in (joined / "videos").rglob("*.*")}
    shots.join(joined / "dataset", joined / "videos", 3)
    assert {path: path.stat().st_mtime_ns for path in (joined / "videos").rglob("*.*")} == times
    (tmp_path / "mine.mp4").touch()
    with pytest.raises(UserError, match="holds something else"):
        shots.join(joined / "dataset", tmp_path)
    with pytest.raises(UserError, match="is no toy dataset"):
        shots.join(tmp_path, tmp_path / "new")


@pytest.mark.parametrize("first, second", [((0, 3), (0, 3)), ((0, 3), (1.5, 4.5)), ((0, 3), (3, 6)), ((0, 9), (3, 6))])
def test_intersection_over_union_is_that_of_fine_slices(first, second):
    slices = np.arange(0, 10, 0.01) + 0.005
    one, other = ((slices > start) & (slices < end) for start, end in (first, second))
    expected = (one & other).sum() / (one | other).sum()
    assert measure.intersection_over_union(first, second) == pytest.approx(expected, abs=1e-6)


def test_higher_thresholds_miss_more_and_hit_less():
    draw = np.random.default_rng(0)
    means = {"present": 2.0} | dict.fromkeys(measure.ABSENT, 0.5)
    judged = {name: draw.normal(mean, 1, 200).tolist() for name, mean in means.items()}
    points = measure.curve(judged)
    assert [point["threshold"] for point in points] == list(measure.THRESHOLDS)
    for name, direction in (("misses", 1), *((name, -1) for name in measure.ABSENT)):
        assert (np.diff([point[name] for point in points]) * direction >= 0).all()
    at_one = next(point for point in points if point["threshold"] == 1)
    assert at_one["misses"] == 100 * sum(value < 1 for value in judged["present"]) / 200


def test_the_measure_of_an_index(joined, tiny_run, tmp_path, capsys):
    clip = str(path_of(tiny_run, "--pretrained_clip_name"))
    flags = ["--index_dir", str(tmp_path / "index"), "--pretrained_clip_name", clip, "--max_frames", "4"]
    flags += ["--max_words", "12", "--window", "1.125", "--stride", "0.5625"]
    assert search(["index", str(joined / "videos"), *flags]) == 0
    record = tmp_path / "record.json"
    words = ["--videos", str(joined / "videos"), "--record", str(record), f"random={tmp_path / 'index'}"]
    assert measure.main(words) == 0
    found = json.loads(record.read_text())["measured"]["random"]
    assert found["queries"] == 12 and found["windows"] == 4 * 5 and 0 <= found["right"] <= 100
    assert f"{found['right']:.1f} % of 12 queries" in capsys.readouterr().out
    # where its own shot is left out, the best that is left is no better
    for point in found["curve"]:
        assert point["its shot left out"] <= 100 - point["misses"] + 1e-6
    assert "| random | 12 |" in measure.table({"measured": {"random": found}})


def test_the_right_moment_is_that_of_the_shots_video_and_time():
    shot = {"video": "set1/joined00.mp4", "start": 3.0, "end": 6.0}
    moment = {"file": "videos/set1/joined00.mp4", "from": 3.0, "to": 7.5}
    assert measure.is_right(moment, shot) and measure.is_right(moment | {"from": 1.5, "to": 6.0}, shot)
    assert not measure.is_right(moment | {"from": 4.5}, shot)
    assert not measure.is_right(moment | {"file": "videos/set2/joined00.mp4"}, shot)


def test_the_speed_is_video_by_cpu_seconds(joined, monkeypatch, tiny_clip, capsys):
    monkeypatch.setattr(
        speed, "random_run", lambda *_: load_run(method="zero_shot", clip=tiny_clip, max_frames=4, max_words=12)
    )
    clock = iter([100.0, 102.0])
    monkeypatch.setattr(speed, "cpu_seconds", lambda: next(clock))
    assert speed.main([f"toy={joined / 'videos'}"]) == 0
    seconds = 12 * 9 / 8
    assert f"| toy | {seconds / 60:.1f} | 2 | {seconds / 2:.1f} |" in capsys.readouterr().out
